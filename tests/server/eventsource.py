"""Server-sent events as browsers read them: the algorithm of the HTML standard (9.2.6), and an `EventSource` on top of it."""

import json
import re
from dataclasses import dataclass

import httpx

# Whether a carriage return at the end of what is there has a line feed behind it, only what follows can tell.
_LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")


@dataclass
class Message:
    """An event that was dispatched."""

    data: str
    last_event_id: str

    def json(self):
        return json.loads(self.data)


class Parser:
    """Bytes in, messages out; keeps the last event id and the reconnection time over connections.

    Attributes:
        last_event_id: What a browser sends when it comes back.
        retry: Milliseconds, if the server has set them.
        comments: How many comment lines there were.
    """

    def __init__(self):
        self.last_event_id = ""
        self.retry = None
        self.comments = 0
        self.reset()

    def reset(self):
        """A new connection: what was not dispatched is discarded."""
        self._buffer = b""
        self._data = []
        self._id = self.last_event_id

    def feed(self, chunk):
        *lines, self._buffer = _LINE_END.split(self._buffer + chunk)
        return [message for line in lines if (message := self._line(line.decode())) is not None]

    def _line(self, line):
        if not line:
            return self._dispatch()
        if line.startswith(":"):
            self.comments += 1
            return None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)
        return None

    def _dispatch(self):
        self.last_event_id = self._id
        data, self._data = self._data, []
        return Message("\n".join(data), self.last_event_id) if data else None


class EventSource:
    """Reads a stream, and comes back with `Last-Event-ID` whenever it breaks, until the server says that that is all.

    Args:
        client: An httpx client.
        url: The stream.
        cut_after: Called with each connection; how many bytes are read before it is broken off, None for all.
    """

    def __init__(self, client, url, cut_after=lambda: None, headers=None):
        self.parser = Parser()
        self.connections = 0
        self.status = None
        self._client = client
        self._url = url
        self._cut_after = cut_after
        self._headers = headers or {}

    async def read(self):
        """All messages, until 204 or an error."""
        messages = []
        while True:
            self.connections += 1
            self.parser.reset()
            headers = {"accept": "text/event-stream", **self._headers}
            if self.parser.last_event_id:
                headers["last-event-id"] = self.parser.last_event_id
            left = self._cut_after()
            async with self._client.stream("GET", self._url, headers=headers) as response:
                self.status = response.status_code
                if response.status_code != 200:
                    await response.aread()
                    return messages
                try:
                    async for chunk in response.aiter_raw():
                        messages += self.parser.feed(chunk if left is None else chunk[:left])
                        if left is not None:
                            left -= len(chunk)
                            if left <= 0:
                                break
                except httpx.RemoteProtocolError:
                    pass

"""A proxy before a server that speaks HTTP, which does what networks and busy servers do."""

import asyncio
import re
from collections import Counter
from contextlib import asynccontextmanager

PASS = "pass"
ERROR_500 = "500"
BUSY_503 = "503"
HANGS = "hangs"
"""The request is taken, not passed on and never answered."""
ANSWERS_LATE = "answers late"
"""The request is carried out, and its answer never comes."""
CUT = "cut"
"""The connection is closed before the request is passed on."""
REPLY_LOST = "reply lost"
"""The request is carried out, and the connection closed instead of an answer."""
DONE_BUT_500 = "done, but 500"
"""The request is carried out, and answered with an error."""
FORBIDDEN_403 = "403"
"""The request is refused, as S3 does it: with all that was signed."""
HELD = "held"
"""The request is passed on once `release` is set."""
HALF = "half"
"""The answer stops in the middle of its body, and the connection is closed."""
STALLS = "stalls"
"""The answer stops in the middle of its body, and the connection stays open."""
PAUSES = "pauses"
"""The answer stops in the middle of its body, and goes on once `release` is set."""

_REFUSAL = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SignatureDoesNotMatch</Code><Message>The request signature we calculated does not match.</Message>
<AWSAccessKeyId>%s</AWSAccessKeyId><StringToSign>AWS4-HMAC-SHA256</StringToSign><CanonicalRequest>%s</CanonicalRequest></Error>"""
_BUSY = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"


class FaultyProxy:
    """Passes requests on to `port`; `fault(method, target, number)` says what goes wrong with each.

    Listings come in pages of `page_size`, if it is set.
    """

    def __init__(self, port):
        self._port = port
        self._hanging = asyncio.Event()
        self.fault = lambda method, target, number: PASS
        self.release = asyncio.Event()
        self.paused = asyncio.Event()
        self.page_size = None
        self.seen = []
        self.answered = []

    def next(self, method, *faults, at=""):
        """The next requests of a method whose target holds `at` go wrong like this, one after the other."""
        left = list(faults)

        def fault(actual, target, number):
            return left.pop(0) if left and actual == method and at in target else PASS

        self.fault = fault

    def always(self, fault, *methods):
        self.fault = lambda method, target, number: fault if method in methods or not methods else PASS

    def count(self):
        """How many requests there were of each method."""
        return Counter(method for method, _ in self.seen)

    async def quiet(self):
        """Waits until all clients have gone, and what they sent has been carried out."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @asynccontextmanager
    async def running(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._tasks = set()
        try:
            yield self
        finally:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(asyncio.current_task())

    async def _exchange(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.decode("latin1").split(" ", 2)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        self.seen.append((method, target))
        fault = self.fault(method, target, len(self.seen))
        if fault == CUT:
            return False
        if fault == HANGS:
            await self._hanging.wait()
        if fault == HELD:
            await self.release.wait()
        if fault in (ERROR_500, BUSY_503):
            await self._answer(writer, fault)
            return True
        if fault == FORBIDDEN_403:
            key_id = re.search(rb"Credential=([^/]+)/", head)
            await self._answer(writer, fault, _REFUSAL % (key_id[1] if key_id else b"", head.replace(b"<", b"")))
            return True
        return await self._pass_on(head, body, fault, writer)

    async def _pass_on(self, head, body, fault, writer):
        upstream, sink = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            head = re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head)
            if self.page_size is not None:
                head = re.sub(rb"([?&]list-type=2)", rb"\1&max-keys=%d" % self.page_size, head, count=1)
            sink.write(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
            await sink.drain()
            answer = await upstream.readuntil(b"\r\n\r\n")
            self.answered.append(head.split(b" ", 2)[1].decode())
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", answer)
            left = int(length[1]) if length and not head.startswith(b"HEAD") else 0
            if fault == ANSWERS_LATE:
                await self._hanging.wait()
            if fault == REPLY_LOST:
                return False
            if fault == DONE_BUT_500:
                await self._answer(writer, ERROR_500)
                return False
            writer.write(re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", answer))
            stop = left // 2 if fault in (HALF, STALLS, PAUSES) else 0
            left = await self._copy(upstream, writer, left, stop)
            if fault == PAUSES:
                self.paused.set()
                await self.release.wait()
                await self._copy(upstream, writer, left, 0)
            if fault == STALLS:
                await self._hanging.wait()
            return fault in (PASS, HELD, PAUSES)
        finally:
            sink.transport.abort()

    @staticmethod
    async def _copy(upstream, writer, left, stop):
        while left > stop:
            piece = await upstream.read(min(65_536, left - stop))
            left -= len(piece)
            writer.write(piece)
            await writer.drain()
        return left

    @staticmethod
    async def _answer(writer, status, body=_BUSY):
        writer.write(
            b"HTTP/1.1 %s Oops\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s"
            % (status[-3:].encode(), len(body), body)
        )
        await writer.drain()

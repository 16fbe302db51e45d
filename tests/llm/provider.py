"""A server on loopback that speaks OpenAI's protocol as badly as a test wants."""

import asyncio
import json
from contextlib import asynccontextmanager

DONE = "data: [DONE]\n\n"


def chunk(content=None, *, calls=None, finish=None, usage=None):
    """One chunk of a streamed answer."""
    delta = {"role": "assistant"}
    if content is not None:
        delta["content"] = content
    if calls is not None:
        delta["tool_calls"] = calls
    data = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "local",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    if usage is not None:
        data |= {"choices": [], "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}}
    return f"data: {json.dumps(data)}\n\n"


def answer(*pieces, usage=(7, 3)):
    """A streamed answer of text."""
    return Reply(chunks=[*map(chunk, pieces), chunk(finish="stop"), chunk(usage=usage), DONE])


def call(name, *args, id="call_0"):
    """A streamed call of a tool, its arguments in pieces."""
    first = {"index": 0, "id": id, "type": "function", "function": {"name": name, "arguments": args[0]}}
    rest = [{"index": 0, "function": {"arguments": piece}} for piece in args[1:]]
    return Reply(chunks=[*(chunk(calls=[c]) for c in (first, *rest)), chunk(finish="tool_calls"), chunk(usage=(5, 5)), DONE])


def failure(status, message="SECRET of the provider", *, code=None, **headers):
    """An answer that tells of an error."""
    body = json.dumps({"error": {"message": message, "type": "error", "code": code}})
    return Reply(status, {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}, [body])


class Reply:
    """What the server answers to one request.

    Args:
        status: The HTTP status.
        headers: More headers.
        chunks: The body, in pieces; an event to wait for between two.
        cut: Hangs up after the last piece, in the middle of the body; before anything was sent if there is none.
    """

    def __init__(self, status=200, headers=None, chunks=(), *, cut=False):
        self.status = status
        self.headers = headers or {"content-type": "text/event-stream"}
        self.chunks = chunks
        self.cut = cut


class Provider:
    """The server; `requests` is what it was sent."""

    def __init__(self, replies):
        self.replies = list(replies)
        self.requests = []
        self.hung_up = asyncio.Event()
        self.url = ""

    async def serve(self, reader, writer):
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            writer.close()

    async def _serve_one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length"))
        self.requests.append((head, json.loads(await reader.readexactly(length))))
        reply = self.replies.pop(0)
        if reply.cut and not reply.chunks:
            return False
        headers = {**reply.headers, "transfer-encoding": "chunked"}
        lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        writer.write("\r\n".join(lines).encode())
        for piece in reply.chunks:
            if isinstance(piece, asyncio.Event):
                waiting = asyncio.ensure_future(piece.wait())
                gone = asyncio.ensure_future(reader.read(1))
                await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if gone.done():
                    raise ConnectionError
                gone.cancel()
                continue
            data = piece.encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
        if reply.cut:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


@asynccontextmanager
async def provider(*replies):
    """Runs a server that gives these replies, in order."""
    one = Provider(replies)
    tasks = set()

    def accept(reader, writer):
        task = asyncio.ensure_future(one.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield one
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

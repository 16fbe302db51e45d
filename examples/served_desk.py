"""The reference desk behind a server: two users at once, a stream that is dropped and resumed, and a clean stop.

    python examples/served_desk.py --demo

It starts `sojourn serve` on a port that is free, talks to it as any HTTP client would, and shows what it sends.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

DESK = Path(__file__).with_name("reference_desk.py")
APP = "desk"
WIDTH = 100


def show(*lines: str) -> None:
    """Prints lines at once, those of two users in whatever order they come."""
    print("\n".join(lines), flush=True)


@contextmanager
def server(database: Path) -> Iterator[str]:
    """A server of the desk while the block runs; gives its address."""
    command = [sys.executable, "-m", "sojourn", "serve", f"{DESK}:desk", "--port", "0", "--app", APP, "--db", str(database)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit(f"the server did not start: {shlex.join(command)}")
        show(f"$ sojourn serve examples/reference_desk.py:desk --port 0   # {url}", "")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        process.stdout.close()
    show(f"$ kill -TERM {process.pid}   # the server ended with exit code {code}")
    if code:
        raise SystemExit(f"the server ended with exit code {code}")


def call(url: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> HTTPResponse:
    """One request: POST with a body, GET without."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url + path, data, {"content-type": "application/json", **(headers or {})})
    response: HTTPResponse = urlopen(request, timeout=60)
    return response


def blocks(response: HTTPResponse) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """The blocks of an event stream: their id, if they have one, and their data."""
    ident: int | None = None
    for raw in response:
        name, _, value = raw.decode().rstrip("\n").partition(": ")
        if name == "id":
            ident = int(value)
        elif name == "data":
            yield ident, json.loads(value)
            ident = None


def ask(url: str, user: str, question: str) -> None:
    """A user's question to `/run_sse`, as google-adk's clients ask it."""
    session = json.load(call(url, f"/apps/{APP}/users/{user}/sessions", {}))["id"]
    message = {"role": "user", "parts": [{"text": question}]}
    body = {"appName": APP, "userId": user, "sessionId": session, "newMessage": message, "streaming": True}
    pieces, said = 0, ""
    with call(url, "/run_sse", body) as stream:
        for _, event in blocks(stream):
            text = "".join(part.get("text", "") for part in event.get("content", {}).get("parts", ()))
            if event.get("partial"):
                pieces += 1
            elif text:
                said = text
    show(
        f"$ curl -N {url}/run_sse -d '…{question!r}…'   # as {user}: an answer in {pieces} pieces",
        textwrap.indent(textwrap.shorten(said, 3 * WIDTH, placeholder=" …"), "    "),
        "",
    )


def follow(url: str, run: str, after: int, stop_after: int | None) -> Iterator[tuple[int, str]]:
    """The numbered frames of a run, by `pos` and kind; the connection is dropped after so many."""
    headers = {"last-event-id": str(after)} if after else {}
    with call(url, f"/runs/{run}/events", headers=headers) as stream:
        for pos, frame in blocks(stream):
            if pos is None:
                continue
            yield pos, frame["kind"]
            if pos == stop_after:
                return


def resume(url: str) -> None:
    """Starts a run that lives on without its client, drops the stream of it, and takes it up again."""
    body = {"userId": "ada", "newMessage": "What does functools.lru_cache do?"}
    run = json.load(call(url, "/runs", body, {"idempotency-key": "demo-1"}))
    again = json.load(call(url, "/runs", body, {"idempotency-key": "demo-1"}))
    show(
        f"$ curl {url}/runs -H 'Idempotency-Key: demo-1' -d '{json.dumps(body)}'",
        f"    run {run['id']} is {run['status']}; the same request again is the same run: {again['id'] == run['id']}",
        "",
    )
    before = list(follow(url, run["id"], 0, 1))
    show(f"$ curl -N {url}/runs/{run['id']}/events   # and the line drops after frame 1", f"    {_told(before)}", "")
    rest = list(follow(url, run["id"], 1, None))
    show(f"$ curl -N {url}/runs/{run['id']}/events -H 'Last-Event-ID: 1'", f"    {_told(rest)}", "")
    numbers = [pos for pos, _ in before + rest]
    if numbers != list(range(1, len(numbers) + 1)) or rest[-1][1] != "run.completed":
        raise SystemExit(f"frames were lost or came twice: {numbers}")
    over = call(url, f"/runs/{run['id']}/events", headers={"last-event-id": str(numbers[-1])}).status
    show(f"    every frame once, none missing; asked for more, the server says {over}: there is nothing more", "")


def _told(frames: list[tuple[int, str]]) -> str:
    return " · ".join(f"{pos} {kind}" for pos, kind in frames)


def demo() -> None:
    """Runs the demonstration in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory, server(Path(directory) / "demo.db") as url:
        questions = {"ada": "How do I parse JSON?", "bob": "How do I read a CSV file?"}
        with ThreadPoolExecutor(len(questions)) as users:
            list(users.map(lambda user: ask(url, user, questions[user]), questions))
        resume(url)


if __name__ == "__main__":
    if sys.argv[1:] != ["--demo"]:
        raise SystemExit("usage: python examples/served_desk.py --demo")
    demo()

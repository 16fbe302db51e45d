"""Sessions inside a Flask app: its threads hand their work to an event loop that runs beside them.

    pip install sojourn flask anyio
    flask --app examples.web_flask:main run
    curl -N localhost:5000/chat/ada/stream -d 'Hello!'

Sojourn has one API, and it is async. What is sync here is `anyio`'s portal: it runs an event loop in a thread of its own, calls
async functions in it, and enters async blocks there.
"""

import atexit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from anyio.from_thread import BlockingPortal, start_blocking_portal
from flask import Flask, Response, jsonify, request

from sojourn import Run, SessionManager, SojournError, agent


@agent
async def clerk(ctx):
    """Greets, and remembers how often it was spoken to."""
    ctx.state["messages"] = ctx.state.get("messages", 0) + 1
    yield f"Hello {ctx.user_id}, "
    yield f"you said {ctx.user_content.text!r}. "
    yield f"That was message {ctx.state['messages']}."


class Sessions:
    """A SessionManager for threads.

    Args:
        manager: The manager; it lives in the loop that this starts, from `start` to `close`.
    """

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self._thread = start_blocking_portal()
        self._portal: BlockingPortal | None = None

    def start(self) -> None:
        """Starts the loop and enters the manager."""
        self._portal = self._thread.__enter__()
        self._portal.call(self._manager.__aenter__)

    def close(self) -> None:
        """Ends the runs under way and the loop."""
        if self._portal is not None:
            self._portal.call(self._manager.close)
            self._portal = None
            self._thread.__exit__(None, None, None)

    @contextmanager
    def run(self, user_id: str, message: str) -> Iterator[Run]:
        """Runs the agent on a message while the block is open; leaving it early cancels the run."""
        assert self._portal is not None, "start() comes first"
        enter = self._portal.wrap_async_context_manager
        with enter(self._manager.session(user_id=user_id, session_id="web")) as session, enter(session.run(message)) as run:
            yield run

    def result(self, run: Run) -> str:
        """Waits for the run's answer."""
        assert self._portal is not None, "start() comes first"
        answer: str = self._portal.call(run.result)
        return answer

    def pieces(self, run: Run) -> Iterator[str]:
        """The run's answer as it is written."""
        assert self._portal is not None, "start() comes first"
        stream = run.result_stream()

        async def following() -> str | None:
            return await anext(stream, None)

        while (piece := self._portal.call(following)) is not None:
            yield piece


sessions = Sessions(SessionManager(agent=clerk, app_name="clerk", max_concurrency=8, max_queue=100))
app = Flask(__name__)


def main() -> Flask:
    """What `flask --app examples.web_flask:main run` serves."""
    sessions.start()
    atexit.register(sessions.close)
    return app


@app.errorhandler(SojournError)
def refused(error: SojournError) -> tuple[Response, int]:
    return jsonify(code=error.code, detail=error.message), error.http_status


@app.post("/chat/<user_id>")
def chat(user_id: str) -> Response:
    with sessions.run(user_id, request.get_data(as_text=True)) as run:
        return jsonify(answer=sessions.result(run))


@app.post("/chat/<user_id>/stream")
def stream(user_id: str) -> Response:
    # The run begins before anything is answered, so that what is refused has its status.
    block = ExitStack()
    run = block.enter_context(sessions.run(user_id, request.get_data(as_text=True)))
    response = Response(sessions.pieces(run), mimetype="text/plain")
    response.call_on_close(block.close)
    return response

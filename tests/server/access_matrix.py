"""Who may do what: a row for each route of the server, and the things that the routes are about."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sojourn.agents.function import agent
from sojourn.content import Part

APP = "app"
SECRET = "what-nobody-else-may-see"


@agent
async def keeper(ctx):
    """Says and saves what it was told, and asks."""
    text = ctx.user_content.text
    ctx.state["noted"] = text
    await ctx.artifacts.save("doc.txt", text)
    await ctx.memory.add(text)
    yield f"Noted: {text}"
    await ctx.ask("sure", f"Sure about {text}?", schema=bool)
    yield "Done."


@dataclass(frozen=True)
class Things:
    """What a request is about, by ids."""

    user_id: str
    session_id: str
    run_id: str
    interrupt_id: str
    name: str = "doc.txt"
    version: str = "0"

    def path(self, template):
        return template.replace("{name:path}", "{name}").format(
            app_name=APP,
            runId=self.run_id,
            interruptId=self.interrupt_id,
            user_id=self.user_id,
            session_id=self.session_id,
            name=self.name,
            version=self.version,
        )

    def without_ids(self, text):
        """Text in which these ids are replaced by what they are."""
        for what in ("interrupt_id", "run_id", "session_id", "user_id"):
            text = text.replace(getattr(self, what), f"<{what}>")
        return text


def missing(user_id):
    """Things of a user that do not exist."""
    return Things(user_id, "no-such-session", "f" * 32, "e" * 32)


async def things_of(runner, user_id):
    """Makes what a user has: a session with state, an artifact, a memory, and a run that waits for an answer."""
    session_id = f"diary of {user_id}"
    run = await runner.start(user_id, session_id, f"{SECRET} of {user_id}")
    await run.wait()
    (interrupt,) = await run.interrupts()
    return Things(user_id, session_id, run.id, interrupt.id)


async def state_of(runner, things):
    """All that a user has, to be compared."""
    user, sessions = things.user_id, await runner.store.list_sessions(app_name=APP, user_id=things.user_id)
    kept = [
        await runner.store.get_session(app_name=APP, user_id=user, session_id=each.id, events=1000) for each in sessions.items
    ]
    runs = (await runner.list_runs(user_id=user)).items
    asked = await runner.list_interrupts(user_id=user)
    memories = await runner.memory.search(APP, user, SECRET, limit=100)
    return repr((kept, runs, asked, memories))


@dataclass(frozen=True)
class Row:
    """What a route answers.

    Attributes:
        owner: The status for whose things they are.
        other: The status for another user; that for what does not exist, and its body.
        admin: The status for an operator; that of the owner by default.
        code: What another user is told.
        query: Of the request, for some things.
        json: Of the request, for some things.
        public: Whether nobody is asked who they are.
    """

    owner: int = 200
    other: int = 404
    admin: int | None = None
    code: str | None = "session.not_found"
    query: Callable[[Things], dict[str, Any]] = field(default=lambda things: {})
    json: Callable[[Things], Any] = field(default=lambda things: None)
    public: bool = False


_PUBLIC = Row(other=200, code=None, public=True)
_RUN = Row(code="run.not_found")
_SESSIONS = "/apps/{app_name}/users/{user_id}/sessions"
_ARTIFACTS = f"{_SESSIONS}/{{session_id}}/artifacts"


def _message(things):
    return {
        "appName": APP,
        "userId": things.user_id,
        "sessionId": things.session_id,
        "newMessage": {"role": "user", "parts": [{"text": "Hello"}]},
    }


ROWS = {
    ("GET", "/openapi.json"): _PUBLIC,
    ("GET", "/livez"): _PUBLIC,
    ("GET", "/health"): _PUBLIC,
    ("GET", "/readyz"): _PUBLIC,
    ("GET", "/version"): _PUBLIC,
    ("GET", "/metrics"): Row(owner=403, other=403, admin=200, code="auth.not_admin"),
    ("GET", "/list-apps"): Row(other=200, code=None),
    ("POST", "/run"): Row(json=_message),
    ("POST", "/run_sse"): Row(json=_message),
    ("GET", _SESSIONS): Row(code="user.not_found"),
    ("POST", _SESSIONS): Row(code="user.not_found", json=lambda things: {"state": {"a": 1}}),
    ("GET", f"{_SESSIONS}/{{session_id}}"): Row(),
    ("POST", f"{_SESSIONS}/{{session_id}}"): Row(owner=409, code="user.not_found"),
    ("PATCH", f"{_SESSIONS}/{{session_id}}"): Row(json=lambda things: {"stateDelta": {"noted": "changed"}}),
    ("DELETE", f"{_SESSIONS}/{{session_id}}"): Row(),
    ("GET", _ARTIFACTS): Row(),
    ("POST", _ARTIFACTS): Row(json=lambda things: {"filename": things.name, "artifact": Part(text="changed").to_wire()}),
    ("GET", f"{_ARTIFACTS}/{{name:path}}"): Row(),
    ("GET", f"{_ARTIFACTS}/{{name:path}}/versions"): Row(),
    ("GET", f"{_ARTIFACTS}/{{name:path}}/versions/metadata"): Row(),
    ("GET", f"{_ARTIFACTS}/{{name:path}}/versions/{{version}}"): Row(),
    ("GET", f"{_ARTIFACTS}/{{name:path}}/versions/{{version}}/metadata"): Row(),
    ("DELETE", f"{_ARTIFACTS}/{{name:path}}"): Row(),
    ("GET", "/apps/{app_name}/users/{user_id}/memory"): Row(code="user.not_found", query=lambda things: {"query": SECRET}),
    ("PATCH", "/apps/{app_name}/users/{user_id}/memory"): Row(
        code="user.not_found", json=lambda things: {"sessionId": things.session_id}
    ),
    ("GET", "/dev/apps/{app_name}/debug/trace/session/{session_id}"): Row(other=200, code=None),
    ("GET", "/debug/trace/session/{session_id}"): Row(other=200, code=None),
    ("POST", "/runs"): Row(
        owner=201,
        code="user.not_found",
        json=lambda things: {"userId": things.user_id, "sessionId": things.session_id, "newMessage": "Hello"},
    ),
    ("GET", "/runs"): Row(code="user.not_found", query=lambda things: {"userId": things.user_id}),
    ("GET", "/runs/{runId}"): _RUN,
    ("GET", "/runs/{runId}/events"): _RUN,
    ("GET", "/runs/{runId}/interrupts"): _RUN,
    ("POST", "/runs/{runId}:cancel"): _RUN,
    ("POST", "/runs/{runId}:retry"): Row(owner=409, code="run.not_found"),
    ("POST", "/runs/{runId}/interrupts/{interruptId}:answer"): Row(code="run.not_found", json=lambda things: {"answer": True}),
    ("GET", "/interrupts"): Row(code="user.not_found", query=lambda things: {"userId": things.user_id}),
}
"""By method and path. A route that is not here fails the tests: say who may use it."""

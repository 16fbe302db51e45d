"""Sessions inside a FastAPI app of one's own: an answer at once, and an answer as it is written.

    pip install 'sojourn[server]'
    uvicorn examples.web_fastapi:app
    curl -N localhost:8000/chat/ada/stream -d 'Hello!'

Who the user is, the app says: here the path, in earnest whatever it authenticates people by.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Body, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from sojourn import Run, SessionManager, SojournError, UserSession, agent


@agent
async def clerk(ctx):
    """Greets, and remembers how often it was spoken to."""
    ctx.state["messages"] = ctx.state.get("messages", 0) + 1
    yield f"Hello {ctx.user_id}, "
    yield f"you said {ctx.user_content.text!r}. "
    yield f"That was message {ctx.state['messages']}."


manager = SessionManager(agent=clerk, app_name="clerk", max_concurrency=8, max_queue=100)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with manager:
        yield


app = FastAPI(title="Clerk", lifespan=lifespan)


@app.exception_handler(SojournError)
async def refused(_: Request, error: SojournError) -> JSONResponse:
    return JSONResponse({"code": error.code, "detail": error.message}, error.http_status)


async def users_session(user_id: str) -> AsyncIterator[UserSession]:
    """The user's one conversation; it holds a slot of the manager until the response is sent."""
    async with manager.session(user_id=user_id, session_id="web") as session:
        yield session


async def users_run(
    session: Annotated[UserSession, Depends(users_session)], message: Annotated[str, Body(media_type="text/plain")]
) -> AsyncIterator[Run]:
    """The run of a message. It begins before anything is answered, so that what is refused has its status; who goes away in
    the middle leaves the block, and with it the run."""
    async with session.run(message) as run:
        yield run


UsersRun = Annotated[Run, Depends(users_run)]


@app.post("/chat/{user_id}")
async def chat(run: UsersRun) -> dict[str, str]:
    return {"answer": await run.result()}


@app.post("/chat/{user_id}/stream")
async def stream(run: UsersRun) -> StreamingResponse:
    return StreamingResponse(run.result_stream(), media_type="text/plain")

"""A runner as it is set up in production: sessions in PostgreSQL, artifacts in a bucket, memory in Qdrant.

    pip install './sojourn[postgres,s3,qdrant]'
    export DATABASE_URL=postgresql://user:password@host/database
    export ARTIFACTS_URL=s3://bucket/prefix
    export QDRANT_URL=http://localhost:6333          # or a directory, which needs no server
    python examples/production.py ann monday "My router has a red lamp."
    python examples/production.py ann friday "Which lamp is red?"

The agent keeps notes: what it is told is a line of the user's notes, an artifact, and is remembered; questions it answers from
memory, in whatever session. Of a database, one process at a time executes runs, on whatever machine; the bucket and the Qdrant
server may serve others, too.
"""

from __future__ import annotations

import asyncio
import os
import sys

from sojourn import (
    Context,
    DatabaseSessionService,
    Memory,
    QdrantMemoryService,
    RunConfig,
    Runner,
    RunnerConfig,
    S3ArtifactService,
    StreamingMode,
    agent,
)
from sojourn.errors import NotFound

NOTES = "user:notes.txt"


@agent
async def notekeeper(ctx: Context):
    """Writes down what it is told, and answers questions by what was said before."""
    said = ctx.user_content.text.strip()
    if said.endswith("?"):
        yield answer([entry for entry in ctx.memories if entry.author == "user" and not entry.text.endswith("?")])
        return
    notes = await read_notes(ctx)
    version = await ctx.artifacts.save(NOTES, f"{notes}{said}\n".encode(), mime_type="text/plain")
    yield f"Noted, as line {version + 1}."


def answer(known: list[Memory]) -> str:
    """What is known, best first."""
    return f"You told me in session {known[0].session_id}: {known[0].text}" if known else "I have not been told."


async def read_notes(ctx: Context) -> str:
    """The user's notes so far."""
    try:
        return (await ctx.artifacts.load(NOTES)).inline_data.data.decode()
    except NotFound:
        return ""


async def main(user: str, session: str, message: str) -> None:
    """One message, and its answer as it comes."""
    sessions = DatabaseSessionService(os.environ["DATABASE_URL"])
    artifacts = S3ArtifactService(os.environ["ARTIFACTS_URL"])
    memory = QdrantMemoryService(os.environ["QDRANT_URL"], api_key=os.environ.get("QDRANT_API_KEY"))
    config = RunnerConfig(
        app_name="production_app",
        agent=notekeeper,
        session_service=sessions,
        artifact_service=artifacts,
        memory_service=memory,
        memory_ingest="on_run_end",
        run_config=RunConfig(streaming_mode=StreamingMode.SSE, max_turns=50, include_history=200),
    )
    try:
        # Left, it waits until what was said is in memory.
        async with Runner(config) as runner:
            async for event in runner.run(user, session, message):
                print(event.delta, end="", flush=True)
        print()
    finally:
        # What is given to a runner is not closed by it.
        await memory.close()
        await sessions.close()


if __name__ == "__main__":
    if len(sys.argv) != 4 or not {"DATABASE_URL", "ARTIFACTS_URL", "QDRANT_URL"} <= os.environ.keys():
        raise SystemExit(__doc__)
    asyncio.run(main(*sys.argv[1:]))

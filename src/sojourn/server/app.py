"""`create_app`: what a server answers, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from sojourn.runner.runner import Runner
from sojourn.server.adk.routes import adk_routers
from sojourn.server.config import ServerConfig
from sojourn.server.guards import guard
from sojourn.server.live import router as live_router
from sojourn.server.openapi import document_access
from sojourn.server.operations.metrics import Metrics
from sojourn.server.operations.probes import include_operations
from sojourn.server.operations.stores import Stores
from sojourn.server.operations.watch import is_probe, watch
from sojourn.server.problems import answer_with_problems
from sojourn.server.runs import events, interrupts, routes
from sojourn.server.serving import Serving
from sojourn.server.stream import RUN_ID_HEADER


def create_app(runner: Runner | Sequence[Runner], config: ServerConfig | None = None) -> FastAPI:
    """An ASGI app that serves Runners; to be served by itself or mounted in another app.

    Its lifespan enters the Runners, which take up what an earlier process left unfinished, and closes them. An app that mounts
    it has to enter them itself (`async with runner:` in its own lifespan): ASGI calls no lifespan of what is mounted.

    Args:
        runner: A Runner, or several of different apps.
        config: How they are served.

    Raises:
        InvalidInput: `server.invalid`.
    """
    runners = [runner] if isinstance(runner, Runner) else list(runner)
    serving = Serving(runners, config or ServerConfig())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as entered:
            for each in runners:
                await entered.enter_async_context(each)
            try:
                yield
            finally:
                serving.following.close()
                serving.conversations.close()

    app = FastAPI(
        title="Sojourn",
        lifespan=lifespan,
        # A redirect would tell a browser to repeat its request, headers and all, wherever `Host` says.
        redirect_slashes=False,
        # They load scripts from elsewhere into this origin.
        docs_url=None,
        redoc_url=None,
        # Spans and metrics of requests, for who has set up OpenTelemetry; its logs would tell what errors say.
        telemetry={
            "tracing": True,
            "metrics": True,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": is_probe,
        },
    )
    app.state.serving = serving
    answer_with_problems(app)
    for router in (*adk_routers(), live_router, routes.router, events.router, interrupts.router):
        # Not included: FastAPI matches a router that is included against each request two times, and once more per level.
        app.router.routes.extend(router.routes)
    metrics = Metrics(serving.runners)
    include_operations(app, metrics, Stores(runners), public_metrics=serving.config.public_metrics)
    document_access(app)
    guard(app, serving.config, expose=(RUN_ID_HEADER,))
    watch(app, metrics)
    return app

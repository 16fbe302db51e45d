"""`sojourn serve TARGET`: agents for many users, over HTTP."""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sojourn.artifact.place import artifact_service_at
from sojourn.artifact.service import ArtifactService
from sojourn.cli.execute import Job
from sojourn.cli.interrupts import CtrlC
from sojourn.cli.options import (
    DEFAULT_DB,
    BaseUrlOption,
    ModelOption,
    RunDbOption,
    TargetAppOption,
    VerboseOption,
    keys_path,
    open_storage,
    shown,
)
from sojourn.cli.othermodel import OtherModel
from sojourn.cli.screen import Screen
from sojourn.cli.target import Target, load_target
from sojourn.errors import Unavailable, Unsupported
from sojourn.run.store import Store
from sojourn.runner.config import RunnerConfig
from sojourn.runner.runner import Runner

if TYPE_CHECKING:
    from sojourn.server.auth.principal import Authenticator
    from sojourn.server.config import ServerConfig

LOOPBACK = "127.0.0.1"

MAX_BODY_BYTES = 16 * 2**20
HEARTBEAT_SECONDS = 15.0

_NEEDED = ("fastapi", "httptools", "httpx", "joserfc", "prometheus_client", "starlette", "uvicorn", "websockets")


class Auth(StrEnum):
    """How callers are identified."""

    NONE = "none"
    KEYS = "keys"
    JWT = "jwt"


class LogFormat(StrEnum):
    """How the log is written."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """What is logged at least."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class OnDisconnect(StrEnum):
    """What becomes of a run whose client has gone."""

    DETACH = "detach"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What `sojourn serve` was told.

    Attributes:
        targets: The agents.
        other_model: A model in place of those of their agents.
        app_name: The app; the target's own if None.
        db: The database; None for the default one, unless a target has its own.
        artifacts: Where artifacts are kept, a directory or a URL; None for the directory beside the database.
        host: The address to listen on.
        port: The port; 0 for any.
        max_concurrency: Runs of each app that execute at once; the target's own number if None.
        grace: Seconds that runs have at the end.
        keys: The file of API keys, if callers are identified by them.
        config: Makes what else the server needs to know.
        log_format: How the log is written.
        log_level: What is logged at least.
        exports: Whether to export traces and metrics by OpenTelemetry.
    """

    targets: Sequence[str | Target]
    other_model: OtherModel | None = None
    app_name: str | None = None
    db: str | None = None
    artifacts: str | None = None
    host: str = LOOPBACK
    port: int = 8000
    max_concurrency: int | None = None
    grace: float = 30.0
    keys: Path | None = None
    config: Callable[[], ServerConfig] = field()
    log_format: LogFormat = LogFormat.TEXT
    log_level: LogLevel = LogLevel.INFO
    exports: bool = False


def serve(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...", help="The agents: file.py:name, package.module:name or app.yaml.", show_default=False
        ),
    ],
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="The address to listen on.")] = LOOPBACK,
    port: Annotated[int, typer.Option("--port", "-p", metavar="N", min=0, max=65535, help="The port; 0 for any.")] = 8000,
    auth: Annotated[
        list[Auth],
        typer.Option("--auth", help="How callers are identified; repeatable. `none` is for this machine only."),
    ] = [Auth.NONE],  # noqa: B006
    jwt_issuer: Annotated[
        str | None, typer.Option("--jwt-issuer", metavar="URL", help="Who issues tokens.", show_default=False)
    ] = None,
    jwt_audience: Annotated[
        list[str] | None,
        typer.Option("--jwt-audience", metavar="NAME", help="Whom tokens are for; repeatable.", show_default=False),
    ] = None,
    jwt_jwks: Annotated[
        str | None,
        typer.Option(
            "--jwt-jwks", metavar="URL", help="Where the issuer's keys are; the issuer is asked otherwise.", show_default=False
        ),
    ] = None,
    jwt_admin: Annotated[
        str | None,
        typer.Option("--jwt-admin", metavar="SCOPE", help="The scope of tokens of operators.", show_default=False),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="A name that clients know it by; repeatable.", show_default=False),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="ORIGIN", help="Whose pages may use it (CORS); repeatable.", show_default=False),
    ] = None,
    max_concurrency: Annotated[
        int | None,
        typer.Option(
            "--max-concurrency", metavar="N", min=0, help="Runs of each app at once; 0 for no bound.", show_default="100"
        ),
    ] = None,
    on_disconnect: Annotated[
        OnDisconnect,
        typer.Option("--on-disconnect", help="What becomes of a run of /run, /run_sse or /run_live whose client has gone."),
    ] = OnDisconnect.DETACH,
    rate_per_user: Annotated[
        int | None,
        typer.Option("--rate-per-user", metavar="N", min=1, help="Requests of a user in a minute.", show_default=False),
    ] = None,
    max_unfinished_runs_per_user: Annotated[
        int | None,
        typer.Option(
            "--max-unfinished-runs-per-user", metavar="N", min=1, help="Runs of a user at the same time.", show_default=False
        ),
    ] = None,
    max_body_bytes: Annotated[
        int, typer.Option("--max-body-bytes", metavar="N", min=1, help="Size of a request's body.")
    ] = MAX_BODY_BYTES,
    heartbeat: Annotated[
        float, typer.Option("--heartbeat", metavar="SECONDS", min=0.1, help="How often a stream with nothing to say says so.")
    ] = HEARTBEAT_SECONDS,
    public_metrics: Annotated[bool, typer.Option("--public-metrics", help="Let everybody read /metrics.")] = False,
    grace: Annotated[
        float, typer.Option("--grace", metavar="SECONDS", min=0, help="How long runs may take when it is told to stop.")
    ] = 30.0,
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="How to write the log.")] = LogFormat.TEXT,
    log_level: Annotated[LogLevel, typer.Option("--log-level", help="What to log at least.")] = LogLevel.INFO,
    otel: Annotated[bool, typer.Option("--otel", help="Export traces and metrics by OpenTelemetry, as OTEL_… says.")] = False,
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    app: TargetAppOption = None,
    db: RunDbOption = None,
    artifacts: Annotated[
        str | None,
        typer.Option(
            "--artifacts",
            metavar="PLACE",
            help="Where to keep artifacts, a directory or s3://bucket/prefix; beside the database by default.",
            show_default=False,
        ),
    ] = None,
    verbose: VerboseOption = False,
) -> Job:
    """Serve agents to many users, over HTTP."""
    if app is not None and len(targets) > 1:
        raise typer.BadParameter("with several targets, each is an app of its own; leave it out", param_hint="--app")
    jwt = _jwt(auth, jwt_issuer, jwt_audience, jwt_jwks, jwt_admin)
    open_to_others = host not in (LOOPBACK, "localhost", "::1")

    def config() -> ServerConfig:
        from sojourn.server.config import LOOPBACK_HOSTS, ServerConfig

        # Whoever listens for others has names that nobody can guess; a page's trick with a name gains nothing without a key.
        hosts = allow_host or (("*",) if open_to_others else LOOPBACK_HOSTS)
        return ServerConfig(
            auth=_authenticator(auth, jwt, DEFAULT_DB if db is None else db),
            allowed_hosts=tuple(hosts),
            allowed_origins=tuple(allow_origin or ()),
            on_disconnect=on_disconnect.value,
            heartbeat=heartbeat,
            max_body_bytes=max_body_bytes,
            rate_per_user=rate_per_user,
            max_unfinished_runs_per_user=max_unfinished_runs_per_user,
            public_metrics=public_metrics,
        )

    options = ServeOptions(
        targets=targets,
        other_model=OtherModel.of(model, base_url),
        app_name=app,
        db=db,
        artifacts=artifacts,
        host=host,
        port=port,
        max_concurrency=max_concurrency,
        grace=grace,
        keys=keys_path(DEFAULT_DB if db is None else db) if Auth.KEYS in auth else None,
        config=config,
        log_format=log_format,
        log_level=log_level,
        exports=otel,
    )

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        return await serve_targets(screen, ctrl_c, options)

    return Job(work, verbose, _fast_loop())


async def serve_targets(screen: Screen, ctrl_c: CtrlC, options: ServeOptions) -> int:
    """Serves until it is told to stop."""
    try:
        from sojourn.server.operations.export import exporting
        from sojourn.server.operations.logs import logging_to
        from sojourn.server.serve import serve as serve_runners

        config = options.config()
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        raise Unsupported(
            f"a server needs {error.name}; install 'sojourn[server]', and 'sojourn[jwt]' for tokens",
            code="server.not_installed",
        ) from error
    with ctrl_c.raises():
        targets = [load_target(target, options.other_model) for target in options.targets]
    db = DEFAULT_DB if options.db is None else options.db
    level = logging.getLevelNamesMapping()[options.log_level.upper()]
    async with AsyncExitStack() as stack:
        for target in targets:
            await stack.enter_async_context(target)
        storage = await stack.enter_async_context(open_storage(db, create=True, role="executor"))
        artifacts: ArtifactService = storage.artifacts
        if options.artifacts is not None:
            artifacts = artifact_service_at(options.artifacts)
        runners = [Runner(_runner_config(target, storage.store, artifacts, options)) for target in targets]
        stack.enter_context(logging_to(format=options.log_format.value, level=level))
        stack.enter_context(exporting() if options.exports else nullcontext())

        def started(url: str) -> None:
            screen.line(url)
            names = ", ".join(runner.app_name for runner in runners)
            screen.note(f"serving {names}; the API is described in {url}/openapi.json; Ctrl-C stops")
            if options.keys is not None and not _has_keys(options.keys):
                database = "" if options.db is None else f" --db {shlex.quote(shown(options.db))}"
                screen.note(f"there is no API key that is valid; make one by: sojourn keys add USER{database}")

        await serve_runners(runners, config, options.host, options.port, grace=options.grace, on_started=started)
    return 0


def _runner_config(target: Target, store: Store, artifacts: ArtifactService, options: ServeOptions) -> RunnerConfig:
    config = target.runner_config(store, artifacts, app_name=options.app_name, own_services=options.db is None)
    return config if options.max_concurrency is None else replace(config, max_concurrency=options.max_concurrency)


@dataclass(frozen=True, slots=True)
class _Jwt:
    issuer: str
    audience: Sequence[str]
    jwks: str | None
    admin: str | None


def _jwt(
    auth: Sequence[Auth], issuer: str | None, audience: Sequence[str] | None, jwks: str | None, admin: str | None
) -> _Jwt | None:
    """What the options about tokens say.

    Raises:
        BadParameter: They are missing, or for nothing.
    """
    if Auth.JWT in auth:
        if issuer is None or not audience:
            raise typer.BadParameter("it needs --jwt-issuer and --jwt-audience", param_hint="--auth jwt")
        return _Jwt(issuer, audience, jwks, admin)
    if issuer is not None or audience or jwks is not None or admin is not None:
        raise typer.BadParameter("it is about tokens; give --auth jwt, too", param_hint="--jwt-…")
    return None


def _authenticator(auth: Sequence[Auth], jwt: _Jwt | None, db: str) -> Authenticator:
    from sojourn.server.auth.keys import ApiKeyAuth
    from sojourn.server.auth.none import NoAuth
    from sojourn.server.auth.several import AnyOf

    found: list[Authenticator] = []
    for way in auth:
        match way:
            case Auth.NONE:
                found.append(NoAuth())
            case Auth.KEYS:
                found.append(ApiKeyAuth(keys_path(db)))
            case Auth.JWT:
                from sojourn.server.auth.jwt import JwtAuth

                assert jwt is not None
                found.append(JwtAuth(issuer=jwt.issuer, audience=jwt.audience, jwks_url=jwt.jwks, admin_value=jwt.admin))
    return found[0] if len(found) == 1 else AnyOf(*found)


def _has_keys(path: Path) -> bool:
    """Whether anybody can be let in by a file of keys. One that cannot be read is told of with each request."""
    from sojourn.server.auth.keyfile import KeyFile

    try:
        return any(not key.has_expired() for key in KeyFile(path).keys().values())
    except Unavailable:
        return True


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop, where it is installed."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop

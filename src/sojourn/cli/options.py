"""The options that commands share, and what they open."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.place import artifact_service_at
from sojourn.artifact.service import ArtifactService
from sojourn.errors import InvalidInput, NotFound, Unavailable
from sojourn.run.store import Store
from sojourn.store.database import POSTGRES, DatabaseSessionService
from sojourn.store.role import Role

HOME = Path(".sojourn")
DEFAULT_DB = str(HOME / "sojourn.db")
DEFAULT_USER = "user"

TargetArgument = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="The agent: file.py:name, package.module:name or app.yaml.", show_default=False),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="PROVIDER:NAME", help="A model in place of those of the target's agents.", show_default=False
    ),
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        metavar="URL",
        help="Where --model is: a server that speaks OpenAI's protocol, such as Ollama, vLLM or llama.cpp.",
        show_default=False,
    ),
]
DbOption = Annotated[
    str, typer.Option("--db", metavar="PATH|URL", help="The database: a file, or a URL: sqlite:///my.db, postgresql://….")
]
RunDbOption = Annotated[
    str | None,
    typer.Option(
        "--db",
        metavar="PATH|URL",
        help=f"The database, in place of {DEFAULT_DB} and of what the agent's own code names.",
        show_default=False,
    ),
]
ArtifactsOption = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        metavar="PLACE",
        help="Where artifacts are kept, a directory or s3://bucket/prefix; beside the database by default.",
        show_default=False,
    ),
]
AppOption = Annotated[
    str | None, typer.Option("--app", metavar="NAME", help="The app; needed if the database has several.", show_default=False)
]
OfAppOption = Annotated[
    str | None, typer.Option("--app", metavar="NAME", help="Whose; needed if several apps have this id.", show_default=False)
]
TargetAppOption = Annotated[
    str | None, typer.Option("--app", metavar="NAME", help="The app; the target's own by default.", show_default=False)
]
UserOption = Annotated[
    str | None, typer.Option("--user", "-u", metavar="ID", help="Only this user's; all users' by default.", show_default=False)
]
SpeakerOption = Annotated[str, typer.Option("--user", "-u", metavar="ID", help="Who speaks.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line: the run's frames as they come.")]
JsonObjectOption = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
LimitOption = Annotated[int, typer.Option("--limit", metavar="N", min=0, help="At most so many, the newest; 0 for all.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Print tracebacks of errors, and the log.")]


_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def span_of(text: str) -> int | None:
    """A span of time as people give it, `90m`, `12h`, `30d` or `8w`, in seconds; None if the text is none."""
    span = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    return int(span[1]) * _SECONDS[span[2]] if span is not None else None


@dataclass(frozen=True, slots=True)
class Storage:
    """What a command has opened.

    Attributes:
        store: Sessions and runs.
        artifacts: Their artifacts: in the directory `artifacts` beside the database file, unless the user says otherwise.
    """

    store: Store
    artifacts: ArtifactService


@asynccontextmanager
async def open_storage(db: str, *, create: bool, role: Role, artifacts: str | None = None) -> AsyncIterator[Storage]:
    """Opens the database of a command, and closes it at the end.

    Args:
        db: A path or a URL.
        create: Whether to create a database that does not exist.
        role: `client` for a command that executes no runs.
        artifacts: Where artifacts are kept, a directory or a URL; beside the database if None.

    Raises:
        NotFound: `store.not_found` if there is none and none is to be created.
        InvalidInput: `store.invalid_url`.
        Unavailable: The directory of the default database cannot be made.
    """
    if db in ("", ":memory:"):
        raise InvalidInput("--db names no file; give it a path, or a URL like sqlite:///my.db", code="store.invalid_url")
    path = _file_of(db)
    if path is not None and not create and not path.exists():
        raise NotFound(f"there is no database {str(path)!r}; name another one with --db", code="store.not_found")
    if path == _file_of(DEFAULT_DB) and create:
        _make_home()
    store = open_store(db, role, create=create)
    try:
        beside = (path.parent if path is not None else HOME) / "artifacts"
        yield Storage(store, FileArtifactService(beside) if artifacts is None else artifact_service_at(artifacts))
    finally:
        await store.close()


def open_stored(db: str, artifacts: str | None = None) -> AbstractAsyncContextManager[Storage]:
    """Opens a database that is there, beside whoever executes its runs; as `open_storage` does."""
    return open_storage(db, create=False, role="client", artifacts=artifacts)


def open_store(db: str, role: Role, *, create: bool = True) -> Store:
    """The store behind `--db`; it is opened by the first call.

    Args:
        db: A path or a URL.
        role: `client` for a command that executes no runs.
        create: Whether to create the tables in a PostgreSQL database that has none.

    Raises:
        InvalidInput: `store.invalid_url`.
        Unsupported: `store.unsupported_url`.
    """
    if is_postgres(db):
        return DatabaseSessionService(db, role=role, create=create)
    return DatabaseSessionService(url_of(db), role=role)


def is_postgres(db: str) -> bool:
    """Whether a path or a URL names a database on a PostgreSQL server."""
    return url_of(db).partition("://")[0].lower() in POSTGRES


def url_of(place: str) -> str:
    """The URL of a database that is named by a path or a URL."""
    return place if "://" in place else f"sqlite:///{os.path.abspath(place)}"


def keys_path(db: str, *, create: bool = False) -> Path:
    """The file of API keys: `keys.json` beside the database file.

    Args:
        db: A path or a URL.
        create: Whether the directory of the default database is to be made.

    Raises:
        Unavailable: The directory cannot be made.
    """
    path = _file_of(db)
    if create and path == _file_of(DEFAULT_DB):
        _make_home()
    return (path.parent if path is not None else HOME) / "keys.json"


def database_path(db: str) -> Path:
    """The file of a SQLite database, of which the directory is made if it is the default one.

    Raises:
        InvalidInput: `store.invalid_url` if it is none.
        Unavailable: The directory cannot be made.
    """
    path = _file_of(db)
    if path is None or db in ("", ":memory:"):
        raise InvalidInput("--db names no file; give it a path, or a URL like sqlite:///my.db", code="store.invalid_url")
    if is_default(db):
        _make_home()
    return path


def is_default(db: str) -> bool:
    """Whether that is the database that is used if none is named."""
    return _file_of(db) == _file_of(DEFAULT_DB)


def shown(db: str) -> str:
    """A database as it may be shown: a password in its URL is left out, for the driver also looks for one elsewhere."""
    if "://" not in db or _file_of(db) is not None:
        return db
    scheme, _, rest = db.partition("://")
    # The last "@": one that stands in a password is to be left out with it.
    user, at, rest = rest.rpartition("@")
    rest, question, query = rest.partition("?")
    kept = "&".join(pair for pair in query.split("&") if pair.partition("=")[0].lower() not in _SECRET)
    return f"{scheme}://{user.partition(':')[0]}{at}{rest}{question if kept else ''}{kept}"


_SECRET = ("password", "sslpassword", "passfile")


def _file_of(db: str) -> Path | None:
    """The file of a database; None if it is none."""
    if "://" not in db:
        return Path(os.path.abspath(db))
    scheme, _, rest = db.partition(":///")
    return Path(os.path.abspath(rest)) if scheme.lower() == "sqlite" and rest else None


def _make_home() -> None:
    if HOME.exists():
        return
    try:
        HOME.mkdir()
        # What people said is not to end up in their repositories.
        (HOME / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise Unavailable(
            f"directory {str(HOME.absolute())!r} cannot be made: {error.strerror}; name another database with --db"
        ) from error


async def resolve_app(store: Store, app_name: str | None) -> str:
    """The app that a command is about: the one named, or the only one.

    Raises:
        InvalidInput: `app.ambiguous` if the database has several.
        NotFound: `app.not_found` if the database has none, or not the one named.
    """
    apps = await apps_in_question(store, app_name)
    if len(apps) > 1:
        raise InvalidInput(f"the database has several apps: {', '.join(apps)}; say which with --app", code="app.ambiguous")
    return apps[0]


async def apps_in_question(store: Store, app_name: str | None) -> list[str]:
    """The apps that a command may be about: the one named, or all; at least one.

    Raises:
        NotFound: `app.not_found` if the database has none, or not the one named.
    """
    apps = await store.list_apps()
    if app_name is None:
        if not apps:
            raise NotFound("there are no sessions in the database; name another one with --db", code="app.not_found")
        return apps
    if app_name not in apps:
        known = ", ".join(apps) or "none"
        raise NotFound(f"the database has no sessions of an app {app_name!r}; it has: {known}", code="app.not_found")
    return [app_name]

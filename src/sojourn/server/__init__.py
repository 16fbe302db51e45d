"""The server: any Runner over HTTP, for people's browsers, for other programs, and inside a web app of one's own.

Needs the extra `sojourn[server]`; `JwtAuth` needs `sojourn[jwt]`, too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sojourn.server.app import create_app
    from sojourn.server.auth.bind import check_bind
    from sojourn.server.auth.jwt import JwtAuth
    from sojourn.server.auth.keyfile import KeyFile
    from sojourn.server.auth.keys import ApiKeyAuth
    from sojourn.server.auth.none import NoAuth
    from sojourn.server.auth.principal import Authenticator, Principal
    from sojourn.server.auth.several import AnyOf
    from sojourn.server.config import ServerConfig
    from sojourn.server.stream import ndjson, sse

_HOME_OF = {
    "AnyOf": "sojourn.server.auth.several",
    "ApiKeyAuth": "sojourn.server.auth.keys",
    "Authenticator": "sojourn.server.auth.principal",
    "JwtAuth": "sojourn.server.auth.jwt",
    "KeyFile": "sojourn.server.auth.keyfile",
    "NoAuth": "sojourn.server.auth.none",
    "Principal": "sojourn.server.auth.principal",
    "ServerConfig": "sojourn.server.config",
    "check_bind": "sojourn.server.auth.bind",
    "create_app": "sojourn.server.app",
    "ndjson": "sojourn.server.stream",
    "sse": "sojourn.server.stream",
}

_EXTRAS = {"fastapi": "server", "prometheus_client": "server", "starlette": "server", "joserfc": "jwt", "httpx": "jwt"}

__all__ = [
    "AnyOf",
    "ApiKeyAuth",
    "Authenticator",
    "JwtAuth",
    "KeyFile",
    "NoAuth",
    "Principal",
    "ServerConfig",
    "check_bind",
    "create_app",
    "ndjson",
    "sse",
]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sojourn.server' has no attribute {name!r}")
    try:
        module = import_module(_HOME_OF[name])
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise ImportError(f"{name} needs {error.name}: pip install 'sojourn[{extra}]'", name=error.name) from error
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)

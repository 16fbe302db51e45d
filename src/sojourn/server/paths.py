"""Ids and names in addresses: `%2F` is a slash of theirs, `/` stands between them."""

from __future__ import annotations

import re
from urllib.parse import unquote

from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)
# No address can hold it: what is no UTF-8 in one is read as U+FFFD.
_SLASH = "\ud800"


class PathRoute(APIRoute):
    """A route in whose path an id or a name may hold `/`, as `%2F`.

    Servers give paths in which both are the same: a session called `s/artifacts` would be taken for the artifacts of `s`.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See `APIRoute`."""
        path = _with_slashes_apart(scope) if b"%2" in (scope.get("raw_path") or b"") else None
        if path is None:
            return super().matches(scope)
        match, child = super().matches({**scope, "path": path})
        if match is not Match.NONE:
            params = child["path_params"]
            # Those of an app that mounts this one may be of any type, and are not this route's.
            child["path_params"] = params | {name: params[name].replace(_SLASH, "/") for name in self.param_convertors}
        return match, child


def _with_slashes_apart(scope: Scope) -> str | None:
    """The path with what stands for `%2F`; None if it holds none, or if somebody has changed the path on its way."""
    text = scope["raw_path"].decode("latin-1")
    pieces = _ENCODED_SLASH.split(text)
    if len(pieces) == 1 or unquote(text) != scope["path"]:
        return None
    return _SLASH.join(map(unquote, pieces))

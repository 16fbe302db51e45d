"""Who calls: the seam for authentication."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from starlette.requests import HTTPConnection


@dataclass(slots=True, frozen=True)
class Principal:
    """A caller who has been identified.

    Attributes:
        user_id: The user that the caller is; None for one who is not told apart from others, and may name any user.
        admin: Whether the caller may see and do what belongs to other users, too.
    """

    user_id: str | None
    admin: bool = False

    def may_act_for(self, user_id: str) -> bool:
        """Whether what belongs to this user is the caller's to see and to change."""
        return self.admin or self.user_id is None or self.user_id == user_id


@runtime_checkable
class Authenticator(Protocol):
    """Says who calls."""

    @property
    def needs_loopback(self) -> bool:
        """Whether this may be used only where nobody but this machine's users can call."""
        ...

    @property
    def schemes(self) -> Mapping[str, Mapping[str, Any]]:
        """How callers show who they are: security schemes of OpenAPI by name, each of which suffices; none if they need not."""
        ...

    async def authenticate(self, connection: HTTPConnection) -> Principal:
        """Identifies the caller of a request or of a WebSocket, by its headers.

        Any number of calls may be under way at once. What takes longer than reading headers is to be remembered.

        Raises:
            Unauthorized: Nobody is identified: `auth.missing` or `auth.invalid`. The message does not say which part of what
                was shown is wrong.
            Unavailable: `auth.unavailable`: whoever has to be asked does not answer.
        """
        ...

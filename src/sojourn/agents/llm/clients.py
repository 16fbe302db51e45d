"""What the toolsets of agents hold open, and when it is closed: when the last agent that uses it lets go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar
from weakref import WeakSet, WeakValueDictionary

from pydantic_ai.toolsets import AbstractToolset


class Clients:
    """The MCP clients of one agent's toolsets.

    Several agents may have one client: copies of an agent, and agents that were given the same toolset. Each that has run
    uses it until it lets go.

    Args:
        toolsets: The agent's.
    """

    def __init__(self, toolsets: Sequence[AbstractToolset[Any]]) -> None:
        self._toolsets = toolsets
        self._shared: list[_SharedClient] | None = None

    def use(self) -> None:
        """Takes note that the agent uses its clients: until it lets go, nobody else closes them."""
        for shared in self._all():
            shared.users.add(self)

    async def let_go(self) -> None:
        """Closes the clients that no other agent uses, all at once; they are opened again when they are needed.

        Raises:
            Exception: What one raised; of several an `ExceptionGroup`. The others are closed all the same.
        """
        unused = [shared.client for shared in self._all() if shared.is_left_by(self)]
        results = await asyncio.gather(*(client.close() for client in unused), return_exceptions=True)
        errors = [result for result in results if isinstance(result, Exception)]
        if len(errors) > 1:
            raise ExceptionGroup("clients of toolsets could not be closed", errors)
        if errors:
            raise errors[0]

    def _all(self) -> list[_SharedClient]:
        if self._shared is None:
            leaves: list[AbstractToolset[Any]] = []
            for toolset in self._toolsets:
                toolset.apply(leaves.append)
            clients = {id(client): client for leaf in leaves if (client := getattr(leaf, "client", None)) is not None}
            self._shared = [_SharedClient.of(client) for client in clients.values()]
        return self._shared


class _SharedClient:
    """A client, and who uses it; one for each client, as long as any agent has it."""

    # By the client's identity, which nothing else can have as long as this holds it.
    _known: ClassVar[WeakValueDictionary[int, _SharedClient]] = WeakValueDictionary()

    def __init__(self, client: Any) -> None:
        self.client = client
        self.users: WeakSet[Clients] = WeakSet()

    @classmethod
    def of(cls, client: Any) -> _SharedClient:
        return cls._known.setdefault(id(client), cls(client))

    def is_left_by(self, user: Clients) -> bool:
        """Whether nobody uses it any more after this one."""
        self.users.discard(user)
        return not self.users

"""How many tokens a user may spend in a window of time; the store's ledger says how many that are."""

from __future__ import annotations

import math
from weakref import WeakValueDictionary

from sojourn import platform
from sojourn.errors import InvalidInput, LimitExceeded
from sojourn.run.store import Store
from sojourn.run.usage import UserUsage


class TokenLimit:
    """Bounds what each user of an app spends, over a window that moves on with time.

    Tokens are counted by the hour, and those of an hour count until all of it has left the window: for up to an hour longer
    than the window is. Once the limit is reached within a window, no model call begins; calls under way may go beyond it.

    Args:
        store: Whose ledger counts.
        app_name: The app.
        most: Tokens, in and out, that a user may spend.
        window: Seconds.

    Raises:
        InvalidInput: `limit.invalid`.
    """

    def __init__(self, store: Store, app_name: str, most: int, window: float) -> None:
        if most < 1:
            raise InvalidInput("max_tokens_per_user must be at least 1, or None for no bound", code="limit.invalid")
        if not 0 < window < math.inf:
            raise InvalidInput("token_window must be a positive number of seconds", code="limit.invalid")
        self.most = most
        self.window = window
        self._store = store
        self._app_name = app_name
        # Of users with runs under way: what one of them learns, the others know.
        self._users: WeakValueDictionary[str, UserTokens] = WeakValueDictionary()

    def of(self, user_id: str) -> UserTokens:
        """What a user has spent; kept as long as somebody has it."""
        tokens = self._users.get(user_id)
        if tokens is None:
            tokens = self._users[user_id] = UserTokens(self, user_id)
        return tokens

    async def refusal(self, user_id: str) -> LimitExceeded | None:
        """Why a user may start no run; None if tokens are left."""
        tokens = self.of(user_id)
        await tokens.refresh()
        return tokens.refusal()

    async def read(self, user_id: str) -> UserUsage:
        """What the ledger has of a user for the window that ends now."""
        return await self._store.user_usage(self._app_name, user_id, self.since())

    def since(self) -> float:
        """When the window that ends now began."""
        return platform.now() - self.window


class UserTokens:
    """What one user has spent, as far as this process knows: as of the newest append of any of their runs here."""

    def __init__(self, limit: TokenLimit, user_id: str) -> None:
        self._limit = limit
        self._user_id = user_id
        # By the hour in which they were spent: until when they count, and how many.
        self._spent: dict[int, tuple[float, int]] = {}

    def since(self) -> float:
        """From when on this wants to know what was spent."""
        return self._limit.since()

    async def refresh(self) -> None:
        """Asks the ledger.

        Raises:
            Unavailable: The store is away.
        """
        self.learn(await self._limit.read(self._user_id))

    def learn(self, usage: UserUsage) -> None:
        """Takes note of what the ledger says; replies may overtake each other."""
        now = platform.now()
        for bucket in usage.buckets:
            _, known = self._spent.get(bucket.hour, (0.0, 0))
            # A ledger only grows.
            self._spent[bucket.hour] = bucket.end + self._limit.window, max(known, bucket.usage.total_token_count)
        self._spent = {hour: one for hour, one in self._spent.items() if one[0] > now}

    def refusal(self) -> LimitExceeded | None:
        """What to say to who wants to spend more; None if there is room."""
        now, most = platform.now(), self._limit.most
        spent = sorted(one for one in self._spent.values() if one[0] > now)
        total = left = sum(tokens for _, tokens in spent)
        if total < most:
            return None
        room_at = now
        for until, tokens in spent:
            room_at, left = until, left - tokens
            if left < most:
                break
        wait = float(math.ceil(room_at - now))
        return LimitExceeded(
            f"user {self._user_id!r} has spent {total} tokens in the last {self._limit.window:g} seconds, {most} are allowed; "
            f"there is room again in {wait:g} seconds; raise max_tokens_per_user if that is intended",
            code="user.max_tokens",
            retry_after=wait,
        )

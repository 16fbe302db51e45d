"""Listings in pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sojourn.errors import InvalidInput

T = TypeVar("T")

MAX_PAGE = 1000
"""Items that a page may have."""


@dataclass(slots=True, frozen=True)
class Page(Generic[T]):
    """A piece of a listing.

    Attributes:
        items: The items, in the listing's order.
        next: Pass it as `after` to get the next page; None if there is none.
    """

    items: list[T]
    next: str | None = None


async def each_item(read: Callable[[str | None], Awaitable[Page[T]]]) -> AsyncIterator[T]:
    """The items of all pages of a listing, each page read when it is needed.

    Args:
        read: Reads the page after a token; the first one for None.
    """
    after: str | None = None
    while True:
        page = await read(after)
        for item in page.items:
            yield item
        if page.next is None:
            return
        after = page.next


def check_page(limit: object) -> int:
    """Returns `limit` if it may be the size of a page: 1 to 1,000.

    Raises:
        InvalidInput: `page.invalid`.
    """
    if isinstance(limit, int) and not isinstance(limit, bool) and 1 <= limit <= MAX_PAGE:
        return limit
    raise InvalidInput(f"limit is {limit!r}; give 1 to {MAX_PAGE}", code="page.invalid")


def page_token(when: float, tie: str) -> str:
    """The token of the page that starts after this position: a time, and an id that orders what has the same time."""
    return f"{when!r}~{tie}"


def page_after(token: str | None) -> tuple[float, str] | None:
    """The position that a page token names; None for the first page.

    Raises:
        InvalidInput: `page.invalid` if it is none of ours.
    """
    if token is None:
        return None
    when, sep, tie = token.partition("~") if isinstance(token, str) else ("", "", "")
    try:
        if sep and float(when) - float(when) == 0:
            return float(when), tie
    except ValueError:
        pass
    raise InvalidInput(f"{token!r} is not a page token; pass Page.next of the page before", code="page.invalid")

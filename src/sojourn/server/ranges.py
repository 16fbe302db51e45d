"""Which bytes a request asks for, and whether its client has them already (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Header
from starlette.responses import Response

from sojourn.server.problems import problem

# More digits than these are no size, and more than Python reads.
_RANGE = re.compile(r"bytes=[ \t,]*([0-9]{0,4000})-([0-9]{0,4000})[ \t,]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a request says of the bytes that it wants.

    Attributes:
        range: Its `Range`.
        if_range: Its `If-Range`: without what has this `ETag`, the range does not count.
        if_none_match: Its `If-None-Match`: the `ETag`s of what the client has, or `*` for whatever there is.
    """

    range: str | None
    if_range: str | None
    if_none_match: str | None

    def __bool__(self) -> bool:
        """Whether the answer depends on what there is."""
        return self.range is not None or self.if_none_match is not None

    def met_by(self, etag: str) -> bool:
        """Whether the client has what has this `ETag`."""
        given = [tag.strip().removeprefix("W/") for tag in (self.if_none_match or "").split(",")]
        return etag in given or given == ["*"]

    def span(self, etag: str, size: int) -> tuple[int, int] | None:
        """The first byte that is asked for, and the one to stop before, not beyond the size.

        None if all are: without a range that counts, or with several.

        Args:
            etag: Of what there is.
            size: How many bytes that has. If the first one is not among them, `unsatisfiable` is what to answer.
        """
        match = _RANGE.fullmatch(self.range or "")
        if match is None or self.if_range not in (None, etag):
            return None
        first, last = ((int(digits) if digits else None) for digits in match.groups())
        if first is not None:
            return None if last is not None and last < first else (first, size if last is None else min(last + 1, size))
        # The last bytes: of nothing, all of them are sent, since no header can name none.
        return None if last is None or (last and not size) else (size - min(last, size), size)


async def _conditions(
    wanted: Annotated[
        str | None, Header(alias="Range", description="With `alt=media`: `bytes=0-1023`, `bytes=1024-` or `bytes=-1024`.")
    ] = None,
    if_range: Annotated[str | None, Header(description="The range counts only for what has this `ETag`.")] = None,
    if_none_match: Annotated[str | None, Header(description="The `ETag`s of what the client has.")] = None,
) -> Conditions:
    return Conditions(wanted, if_range, if_none_match)


ConditionsDep = Annotated[Conditions, Depends(_conditions)]
"""What the request says of the bytes that it wants."""


def unsatisfiable(size: int) -> Response:
    """The answer to a range that begins behind the last byte."""
    return problem(
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        f"the range begins behind the last one of {size} bytes; ask for bytes that there are",
        code="range.not_satisfiable",
        headers={"Content-Range": f"bytes */{size}"},
    )

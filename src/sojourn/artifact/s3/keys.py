"""Where things are in a bucket.

<prefix>/<app>/<user>/versions/user/<name>/<position>            entries of an artifact that the user's sessions share
<prefix>/<app>/<user>/versions/session/<uid>/<name>/<position>   those of one session's artifact
<prefix>/<app>/<user>/data/user/<name>/<id>                      bytes
<prefix>/<app>/<user>/data/session/<uid>/<name>/<id>
<prefix>/.conditional-writes                                     by which stores are told that ignore `If-None-Match`
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sojourn.artifact.segments import HASH_MARK, decode_segment, encode_segment
from sojourn.artifact.types import USER_PREFIX, ArtifactScope

PROBE = ".conditional-writes"
"""No app is kept under it: encoded ids do not start with a dot."""

_POSITION_DIGITS = 12
_LAST = {"versions": re.compile(f"[0-9]{{{_POSITION_DIGITS}}}"), "data": re.compile("[0-9a-f]{32}")}
_DEPTHS = {"user": 2, "session": 3}

# Every store takes these characters in a key as they are; `%` and `~` are among those that S3 advises against.
_TO_KEY = str.maketrans("%~", "=!")
_FROM_KEY = str.maketrans("=!", "%~")


def key_segment(text: str) -> str:
    """A segment of a key that is different for every text."""
    return encode_segment(text).translate(_TO_KEY)


def text_of(segment: str) -> str | None:
    """The text that a segment stands for; None if it was shortened, or is not one of ours."""
    return decode_segment(segment.translate(_FROM_KEY))


def is_shortened(segment: str) -> bool:
    """Whether only a hash tells what the segment stands for."""
    return HASH_MARK in segment.translate(_FROM_KEY)


class Place(NamedTuple):
    """A part of a user's artifacts: one of them, those of a session, all shared ones, or all.

    Attributes:
        user: The user's prefix.
        below: Segments below `versions` and `data`; empty for all that the user has.
    """

    user: str
    below: tuple[str, ...] = ()

    @property
    def versions(self) -> str:
        """The prefix of its entries."""
        return "/".join((self.user, "versions", *self.below))

    @property
    def data(self) -> str:
        """The prefix of its bytes."""
        return "/".join((self.user, "data", *self.below))

    def at(self, position: int) -> str:
        """The key of an entry of the artifact."""
        return f"{self.versions}/{position:0{_POSITION_DIGITS}}"

    def of(self, key: str) -> Place | None:
        """The artifact that an entry's key or that of bytes belongs to; None if it is not one of ours."""
        kind, *below, last = key.removeprefix(f"{self.user}/").split("/")
        form = _LAST.get(kind)
        owned = len(below) == _DEPTHS.get(below[0]) if below else False
        return Place(self.user, tuple(below)) if owned and form is not None and form.fullmatch(last) else None


def user_place(app_name: str, user_id: str) -> Place:
    """All that a user has in an app."""
    return Place(f"{key_segment(app_name)}/{key_segment(user_id)}")


def session_place(scope: ArtifactScope) -> Place:
    """The artifacts of the session."""
    return Place(user_place(scope.app_name, scope.user_id).user, ("session", key_segment(scope.session_uid)))


def shared_place(scope: ArtifactScope) -> Place:
    """The artifacts that the user's sessions share."""
    return Place(user_place(scope.app_name, scope.user_id).user, ("user",))


def name_place(scope: ArtifactScope, name: str) -> Place:
    """An artifact."""
    owner = shared_place(scope) if name.startswith(USER_PREFIX) else session_place(scope)
    return Place(owner.user, (*owner.below, key_segment(name)))


def position_of(key: str) -> int | None:
    """The position of an entry; None if the key is not one of ours."""
    last = key.rpartition("/")[2]
    return int(last) if _LAST["versions"].fullmatch(last) else None

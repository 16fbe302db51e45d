"""What clients may change of the state: what is theirs."""

from __future__ import annotations

from typing import Any

from sojourn.errors import Forbidden
from sojourn.session.state import APP, check_key


def check_client_state(state: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns state keys that a client sets, if it may: those of the session (`temp:` ones too) and of its user.

    Raises:
        Forbidden: `state.app_scope` for a key with `app:`, which all users of the app share.
        InvalidInput: `state.invalid_key`.
    """
    for key in state or ():
        if check_key(key).startswith(APP):
            raise Forbidden(
                f"state key {key!r} is shared by all users of the app; only the app itself changes it", code="state.app_scope"
            )
    return state

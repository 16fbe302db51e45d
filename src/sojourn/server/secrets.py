"""Credentials that people gave to agents are stored, since runs go on with them, and are shown to nobody."""

from __future__ import annotations

import json
from typing import Any

from sojourn.event import CREDENTIAL_CALL
from sojourn.run.types import Interrupt
from sojourn.wire import interrupt_to_wire

SECRET_KEYS = frozenset(
    {
        "accesstoken",
        "additionalheaders",
        "apikey",
        "authcode",
        "authresponseuri",
        "clientsecret",
        "codeverifier",
        "idtoken",
        "password",
        "privatekey",
        "privatekeyid",
        "refreshtoken",
        "token",
    }
)
"""Members of a credential that are left out, in lower case and without underscores."""

GIVEN = {"status": "redacted"}
"""What is shown in place of a credential that was given."""

_CREDENTIALS = frozenset({"authconfig", "exchangedauthcredential", "rawauthcredential", "requestedauthconfigs"})
# Of these, one is in each of those names, in camelCase and in snake_case, and hardly in anything else. What holds none of them
# holds no credential: to look for them takes far less time than to take the JSON apart.
_MARKS = ("uthT", "uthC", "uth_", CREDENTIAL_CALL)


def redacted_text(text: str) -> str:
    """JSON text of an event, or of anything that holds events, without credentials."""
    if not any(mark in text for mark in _MARKS):
        return text
    return json.dumps(redacted(json.loads(text)), ensure_ascii=False, separators=(",", ":"))


def redacted(value: Any) -> Any:
    """The same for JSON that is not text yet.

    What goes: the answers to `adk_request_credential`, and `SECRET_KEYS` of whatever is a credential of google-adk's: its
    question, `requestedAuthConfigs`, `rawAuthCredential`, `exchangedAuthCredential`, and objects with an `authType`.
    """
    if isinstance(value, list):
        return [redacted(item) for item in value]
    if not isinstance(value, dict):
        return value
    if any(_plain(key) == "authtype" for key in value):
        return _without_secrets(value)
    if value.get("name") == CREDENTIAL_CALL and "response" in value:
        return {**value, "response": GIVEN}
    return {k: _without_secrets(v) if _plain(k) in _CREDENTIALS else redacted(v) for k, v in value.items()}


def redacted_interrupt(interrupt: Interrupt) -> dict[str, Any]:
    """A question as JSON, without the credential if it asks for one."""
    wire = interrupt_to_wire(interrupt)
    if interrupt.kind != "credential":
        return wire
    given = GIVEN if interrupt.status == "answered" else None
    return {**wire, "prompt": _without_secrets(wire["prompt"]), "answer": given}


def _without_secrets(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    if isinstance(value, dict):
        return {k: _without_secrets(v) for k, v in value.items() if _plain(k) not in SECRET_KEYS}
    return value


def _plain(key: str) -> str:
    return key.replace("_", "").lower()

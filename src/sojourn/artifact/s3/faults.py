"""What object stores answer, as errors of ours."""

from __future__ import annotations

import re
from typing import NamedTuple

from sojourn.errors import Unavailable

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})</Message>")
_TOO_EARLY = frozenset({408, 409, 429})

# What does not get better by trying again, and what to do about it: by the store's code, then by the HTTP status.
_ACCESS = "check its credentials, and what they permit"
_LASTING: dict[str | int, str] = {
    "NoSuchBucket": "create the bucket, or name another one",
    "InvalidBucketName": "name another bucket",
    "PermanentRedirect": "the bucket is in another region; give its region",
    "AuthorizationHeaderMalformed": "the bucket may be in another region; check region and credentials",
    "RequestTimeTooSkewed": "set this machine's clock",
    "ExpiredToken": "the credentials have expired; get new ones",
    301: "the bucket is in another region or at another endpoint; give it",
    401: _ACCESS,
    403: _ACCESS,
    501: "use a store that honours If-None-Match",
    404: "create the bucket or container, or name another one; check the endpoint",
}
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal", "security-credentials", "MissingCredentials")


class Fault(NamedTuple):
    """What a store answered.

    Attributes:
        status: The HTTP status; None if there was no answer.
        code: The store's own code, "" if it gave none.
        text: What the driver says, without anything secret: signed requests and answers that repeat them are left out.
    """

    status: int | None
    code: str
    text: str

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        """Reads a driver's error."""
        whole = str(error)
        status, code = _STATUS.search(whole), _CODE.search(whole)
        return cls(int(status[1]) if status else None, code[1] if code else "", _without_secrets(whole))

    @property
    def lasting(self) -> str | None:
        """What to do about it; None if it may be over by itself."""
        if (self.status or 0) < 500 and any(mark in self.text for mark in _NO_CREDENTIALS):
            return "no credentials were found in the environment, and the machine gives none; give some"
        if self.status is None:
            return None
        advice = _LASTING.get(self.code) or _LASTING.get(self.status)
        if advice is None and 300 <= self.status < 500 and self.status not in _TOO_EARLY:
            return "it refuses the request; check its address and what it supports"
        return advice


def unavailable(where: str, error: BaseException) -> Unavailable:
    """What a service raises for a driver's error.

    Args:
        where: The bucket.
        error: The driver's error; a copy of it that tells no secrets becomes the cause.
    """
    fault = Fault.of(error)
    answer = " ".join(str(part) for part in (fault.status, fault.code) if part) or "no answer, or not all of it"
    raised = Unavailable(
        f"artifact store {where} cannot be used ({answer}); {fault.lasting or 'try again later'}",
        code="artifact.unavailable",
        retryable=fault.lasting is None,
    )
    raised.__cause__ = _told_again(error, fault.text)
    return raised


def _told_again(error: BaseException, text: str) -> BaseException:
    try:
        return type(error)(text)
    except TypeError:
        return OSError(text)


def _without_secrets(whole: str) -> str:
    """What comes before the answer's body, and its message."""
    message = _MESSAGE.search(whole)
    text = re.split(r"[<{]|\n", whole, maxsplit=1)[0]
    # Queries may be signed; addresses of proxies may hold a password.
    text = re.sub(r"\?[^\s)]*", "", re.sub(r"//[^/@\s]*@", "//", text)).strip()
    return f"{text} {message[1]}" if message else text

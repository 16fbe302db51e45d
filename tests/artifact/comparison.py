"""Random calls to an artifact service and to the one in RAM, and whether the two are the same after each of them."""

from __future__ import annotations

from hypothesis import strategies as st

from sojourn import platform
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.content import Part
from sojourn.errors import SojournError
from sojourn.testing.artifact_suite import (
    ALICE,
    ALICE_ELSEWHERE,
    ALICE_RECREATED,
    BOB_SAME_UID,
    OTHER_APP_SAME_UID,
    names_of,
    stream,
    versions_of,
)
from sojourn.testing.clock import ManualPlatform

SCOPES = (ALICE, ALICE_ELSEWHERE, ALICE_RECREATED, BOB_SAME_UID, OTHER_APP_SAME_UID)

# Few, so that they meet; the first more often than the others.
_SCOPE = st.sampled_from([ALICE, ALICE, ALICE, *SCOPES])
_NAME = st.sampled_from(["a", "a", "a/b", "user:a"])
_VERSION = st.sampled_from([None, 0, 1, 2])
_PIECES = st.lists(st.sampled_from([b"", b"x", b"yz" * 400]), max_size=3)
_BOUND = st.sampled_from([0, 1, 700, 5000])
_LIMIT = st.sampled_from([1, 2, 100])
_CALL = st.one_of(
    st.tuples(
        st.just("save"),
        _SCOPE,
        _NAME,
        st.sampled_from(["bytes", "text", "part", "stream"]),
        _PIECES,
        st.sampled_from([None, {}, {"k": [1, None, "\0"]}]),
        st.sampled_from([None, "r1"]),
    ),
    st.tuples(st.just("open"), _SCOPE, _NAME, _VERSION, _BOUND, _BOUND | st.none()),
    st.tuples(st.just("names"), _SCOPE, _LIMIT),
    st.tuples(st.just("versions"), _SCOPE, _NAME, _LIMIT),
    st.tuples(st.just("delete"), _SCOPE, _NAME),
    st.tuples(st.just("delete session"), _SCOPE),
    st.tuples(st.just("delete user"), _SCOPE),
)
CALLS = st.lists(st.tuples(st.integers(0, 1), _CALL), min_size=1, max_size=8)
"""Each with which of the two objects that are open on one storage is called."""


async def compare(services, calls) -> None:
    """Makes the calls to services on one storage and to one in RAM, and fails if the two differ after any of them."""
    ram = InMemoryArtifactService()
    with platform.use(ManualPlatform()) as clock:
        for which, call in calls:
            assert await outcome(services[which], call) == await outcome(ram, call), call
            clock.advance(1)
            assert await everything(services[1 - which]) == await everything(ram), call


async def outcome(service, call):
    """What a call gives, or the error that it raises."""
    try:
        return await made(service, *call)
    except SojournError as error:
        return type(error), error.code


async def made(service, name, scope, *arguments):
    match name, arguments:
        case "save", (artifact, kind, pieces, metadata, run_id):
            return await service.save_artifact(scope, artifact, given(kind, pieces), custom_metadata=metadata, run_id=run_id)
        case "open", (artifact, version, start, end):
            opened = await service.open_artifact(scope, artifact, version, start=start, end=end)
            return opened.info, opened.start, opened.end, await opened.read()
        case "names", (limit,):
            return await names_of(service, scope, limit=limit)
        case "versions", (artifact, limit):
            return await versions_of(service, scope, artifact, limit=limit)
        case "delete", (artifact,):
            return await service.delete_artifact(scope, artifact)
        case "delete session", ():
            return await service.delete_session_artifacts(scope)
        case "delete user", ():
            return await service.delete_user_artifacts(scope.app_name, scope.user_id)
    raise AssertionError(name)


def given(kind, pieces):
    whole = b"".join(pieces)
    match kind:
        case "text":
            return Part.from_text(whole.decode())
        case "part":
            return Part.from_bytes(whole, "image/png")
        case "stream":
            return stream(*pieces)
    return whole


async def everything(service):
    """All that there is: of each session and name what is known of the versions, and what they load as."""
    found = {}
    for scope in SCOPES:
        for name in await names_of(service, scope):
            versions = await versions_of(service, scope, name)
            found[scope, name] = [(info, await service.load_artifact(scope, name, info.version)) for info in versions]
    return found

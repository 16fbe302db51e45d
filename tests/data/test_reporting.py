"""How much is kept."""

import pytest

from sojourn.data import DataCare
from sojourn.errors import InvalidInput
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.builders import finished, session_key
from sojourn.testing.suite import raises
from tests.data.support import APP, beside, fill

pytestmark = pytest.mark.anyio


async def test_the_largest_come_first(tmp_path):
    store = InMemorySessionService()
    artifacts, memory = beside(tmp_path)
    for n, size in enumerate((100, 10_000, 1_000)):
        await finished(store, f"r{n}", session_key(f"s{n}", app_name=f"app{n}"), "x" * size)
    await fill(store, artifacts, memory, "bob", word="w", sessions=1)
    report = await DataCare(store, artifacts=artifacts).report()
    assert [one.size.key.session_id for one in report.page.items][:1] == ["s1"]
    sizes = [one.bytes for one in report.page.items]
    assert sizes == sorted(sizes, reverse=True)
    assert (report.sessions, report.runs, report.events) == (4, 6, 21)
    assert report.bytes == sum(sizes)
    (bob,) = (await DataCare(store, artifacts=artifacts).report(APP, user_id="bob")).page.items
    assert (bob.artifacts, bob.artifact_bytes, bob.bytes) == (2, 300, bob.size.bytes + 300)


async def test_pages_hold_each_session_once():
    store = InMemorySessionService()
    for n in range(7):
        await store.create_session(app_name=APP, user_id=f"u{n % 2}", session_id=f"s{n}")
    care, found, after = DataCare(store), [], None
    while True:
        report = await care.report(limit=2, after=after)
        assert report.sessions == 7
        found += [one.size.key for one in report.page.items]
        after = report.page.next
        if after is None:
            break
    assert len(found) == len(set(found)) == 7


@pytest.mark.parametrize("token", ["x", "1.0~x", ""])
async def test_tokens_are_checked(token):
    with raises(InvalidInput, "page.invalid"):
        await DataCare(InMemorySessionService()).report(after=token)

"""The cases that every `SessionService` passes: creating, reading, listing, patching and deleting sessions."""

# A case is told by its name.

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sojourn.errors import AlreadyExists, Fenced, InvalidInput, NotFound, Unavailable
from sojourn.run.status import Move
from sojourn.run.store import Store
from sojourn.run.types import RunQuery
from sojourn.session.types import Session, SessionKey
from sojourn.testing.builders import event, finished, new_run, session_key, start, write
from sojourn.testing.suite import StoreSuite, manual_clock, raises, unchanged
from sojourn.testing.world import all_sessions

VALUES: dict[str, Any] = {
    "null": None,
    "bools": [True, False],
    "numbers": [0, -1, 1.0, 1.5, -0.25, 1e300, 2**53 + 1, 2**63, -(2**64), 10**40],
    "nul": "a\x00b",
    "emoji": "naïve 👩‍🚀 \U0001f600",
    "marks": "line\nbreak\ttab \u2028 \"quoted\" 'single' \\ % _",
    "composed": ["\u00e9", "e\u0301"],
    "keys": {"": 1, "\x00": 2, "👋": 3, "a.b": 4, "$": 5},
    "empty": [{}, [], ""],
    "deep": [[[{"a": [1, {"b": None}]}]]],
    "long": "x" * 100_000,
}
"""JSON values that some store somewhere gets wrong."""

BAD_IDS: list[Any] = ["", "x" * 257, "é" * 129, "a\nb", "a\x00b", "a\x7fb", "a\x9fb", "\ud800", 7, b"bytes", ["list"], ("t",)]
"""What may not be an id: empty, too long (also in bytes), control characters, half a character, not text."""

ODD_IDS = [
    "x" * 256, "é" * 128, " ", "a b ", "../../etc/passwd", "a/b\\c", "%", "_", "%25", "'; DROP TABLE sessions; --", '"', "`",
    "~", "👩‍🚀", "\u202egnp", "null", "None", "0", "temp:", "user:x", "{}", "a:b:c", "a\u2028b",
]  # fmt: skip
"""What may be an id although it looks odd."""


class SessionServiceConformance(StoreSuite):
    """Sessions, their state and their listing."""

    # -- create and get ---------------------------------------------------------------------------------------------

    async def test_create_then_get(self, store: Store) -> None:
        with manual_clock() as clock:
            created = await _create(store, "s1", state={"topic": "routers"})
            clock.advance(5)
            got = await _get(store, "s1")
        assert got == created
        assert got.key == session_key("s1")
        assert got.state == {"topic": "routers"}
        assert (got.events, got.event_count, got.active_agent) == ((), 0, None)
        assert got.created_at == got.updated_at == clock.now() - 5
        assert got.uid

    async def test_create_makes_an_id(self, store: Store) -> None:
        first = await store.create_session(app_name="shop", user_id="alice")
        second = await store.create_session(app_name="shop", user_id="alice")
        assert first.id
        assert first.id != second.id
        assert (await _get(store, first.id)).uid == first.uid

    async def test_create_does_not_overwrite(self, store: Store) -> None:
        await _create(store, "s1", state={"a": 1, "user:b": 2, "app:c": 3})
        await finished(store, "r1", None, "Hi.")
        async with unchanged(store):
            with raises(AlreadyExists, "session.exists"):
                await _create(store, "s1", state={"a": 9, "user:b": 9, "app:c": 9, "d": 9})

    async def test_missing_session_is_not_found(self, store: Store) -> None:
        await _create(store, "s1")
        for key in (session_key("s2"), session_key("s1", user_id="bob"), session_key("s1", app_name="other")):
            for name, call in _calls_on(store, key):
                async with unchanged(store, "shop", "other"):
                    with raises(NotFound, "session.not_found"):
                        await call()
                    assert name

    async def test_two_users_may_use_one_session_id(self, store: Store) -> None:
        mine = await _create(store, "s1", state={"who": "alice"})
        theirs = await _create(store, "s1", user_id="bob", state={"who": "bob"})
        elsewhere = await _create(store, "s1", app_name="other", state={"who": "alice elsewhere"})
        assert len({mine.uid, theirs.uid, elsewhere.uid}) == 3
        await store.delete_session(app_name="shop", user_id="bob", session_id="s1")
        assert (await _get(store, "s1")).state == {"who": "alice"}
        assert (await _get(store, "s1", app_name="other")).state == {"who": "alice elsewhere"}
        with raises(NotFound, "session.not_found"):
            await _get(store, "s1", user_id="bob")

    # -- ids --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("bad", BAD_IDS, ids=lambda v: repr(v)[:20])
    async def test_bad_ids_are_refused(self, store: Store, bad: Any) -> None:
        keys = [SessionKey(bad, "alice", "s1"), SessionKey("shop", bad, "s1"), SessionKey("shop", "alice", bad)]
        async with unchanged(store):
            for key in keys:
                for name, call in _calls_on(store, key):
                    with raises(InvalidInput, "id.invalid"):
                        await call()
                        raise AssertionError(f"{name} took {key}")
                with raises(InvalidInput, "id.invalid"):
                    await store.create_session(app_name=key.app_name, user_id=key.user_id, session_id=key.session_id)
            for app_name, user_id in ((bad, None), ("shop", bad)):
                with raises(InvalidInput, "id.invalid"):
                    await store.list_sessions(app_name=app_name, user_id=user_id)

    @pytest.mark.parametrize("odd", ODD_IDS, ids=ascii)
    async def test_any_text_may_be_an_id(self, store: Store, odd: str) -> None:
        key = SessionKey(odd, odd, odd)
        created = await store.create_session(app_name=odd, user_id=odd, session_id=odd, state={"n": 1, "user:n": 2, "app:n": 3})
        assert created.key == key
        run = await start(store, odd, key)
        await write(store, run, event(run, 1, "Hi."), move=Move.COMPLETE)
        got = await store.get_session(app_name=odd, user_id=odd, session_id=odd, events=2)
        assert got.state == {"n": 1, "user:n": 2, "app:n": 3}
        assert [e.text for e in got.events] == ["Hello", "Hi."]
        assert [s.key for s in (await store.list_sessions(app_name=odd, user_id=odd)).items] == [key]
        assert (await store.get_run(odd, odd, odd)).key == key
        assert [r.id for r in (await store.list_runs(RunQuery(odd, odd, odd))).items] == [odd]
        await store.delete_session(app_name=odd, user_id=odd, session_id=odd)
        assert (await store.list_sessions(app_name=odd)).items == []

    async def test_ids_that_look_alike_are_different(self, store: Store) -> None:
        alike = ["a", "A", "a ", " a", "\u00e9", "e\u0301", "ß", "ss", "1", "01", "1.0", "%", "_", "a\u200b", "Å", "\u212b"]
        for n, id_ in enumerate(alike):
            await _create(store, id_, state={"n": n})
        assert [(await _get(store, id_)).state["n"] for id_ in alike] == list(range(len(alike)))
        for n, id_ in enumerate(alike):
            await store.create_session(app_name="other", user_id=id_, session_id="s", state={"user:n": n})
        for n, id_ in enumerate(alike):
            assert (await _get(store, "s", user_id=id_, app_name="other")).state == {"user:n": n}
            page = await store.list_sessions(app_name="other", user_id=id_)
            assert [s.user_id for s in page.items] == [id_]

    async def test_ids_do_not_run_into_each_other(self, store: Store) -> None:
        keys = [
            SessionKey("a", "b/c", "d"), SessionKey("a/b", "c", "d"), SessionKey("a", "b", "c/d"), SessionKey("a:b", "c", "d"),
            SessionKey("a", "b:c", "d"), SessionKey("a", "b", "c:d"), SessionKey("ab", "c", "d"), SessionKey("a", "bc", "d"),
        ]  # fmt: skip
        for n, key in enumerate(keys):
            await store.create_session(
                app_name=key.app_name, user_id=key.user_id, session_id=key.session_id, state={"n": n, "user:n": n}
            )
        for n, key in enumerate(keys):
            got = await store.get_session(app_name=key.app_name, user_id=key.user_id, session_id=key.session_id)
            assert got.state["n"] == n
            expected = max(m for m, k in enumerate(keys) if k[:2] == key[:2])
            assert got.state["user:n"] == expected

    # -- state ------------------------------------------------------------------------------------------------------

    async def test_user_state_visible_to_other_sessions(self, store: Store) -> None:
        await _create(store, "s1", state={"mine": 1})
        await _create(store, "s2")
        await _create(store, "s2", state={"user:theirs": 1}, user_id="bob")
        await _create(store, "s2", state={"user:elsewhere": 1}, app_name="other")
        await _patch(store, "s1", {"user:name": "Alice"})
        assert (await _get(store, "s1")).state == {"mine": 1, "user:name": "Alice"}
        assert (await _get(store, "s2")).state == {"user:name": "Alice"}
        assert (await _get(store, "s2", user_id="bob")).state == {"user:theirs": 1}
        assert (await _get(store, "s2", app_name="other")).state == {"user:elsewhere": 1}

    async def test_app_state_visible_to_all_users(self, store: Store) -> None:
        await _create(store, "s1")
        await _create(store, "s1", user_id="bob")
        await _create(store, "s1", app_name="other")
        await _patch(store, "s1", {"app:motd": "Hi"})
        assert (await _get(store, "s1", user_id="bob")).state == {"app:motd": "Hi"}
        assert (await _get(store, "s1", app_name="other")).state == {}
        assert (await _create(store, "s9", user_id="carol")).state == {"app:motd": "Hi"}

    async def test_scopes_do_not_mix(self, store: Store) -> None:
        await _create(store, "s1", state={"k": "session", "user:k": "user", "app:k": "app"})
        got = await _patch(store, "s1", None, ["user:k"])
        assert got.state == {"k": "session", "app:k": "app"}

    async def test_temp_keys_are_not_stored(self, store: Store) -> None:
        created = await _create(store, "s1", state={"temp:a": 1, "b": 2})
        assert created.state == {"b": 2}
        assert (await _patch(store, "s1", {"temp:c": 1}, ["temp:d"])).state == {"b": 2}
        assert (await _get(store, "s1")).state == {"b": 2}

    async def test_patch_sets_and_deletes(self, store: Store) -> None:
        with manual_clock() as clock:
            await _create(store, "s1", state={"a": 1, "b": 2, "user:c": 3, "app:d": 4})
            clock.advance(3)
            patched = await _patch(store, "s1", {"a": 10, "e": None}, ["b", "user:c", "app:d", "absent"])
            assert patched.state == {"a": 10, "e": None}
            assert patched.updated_at == patched.created_at + 3
            assert await _get(store, "s1") == patched

    async def test_patch_with_a_key_in_both_deletes_it(self, store: Store) -> None:
        await _create(store, "s1", state={"a": 1})
        assert (await _patch(store, "s1", {"a": 2, "b": 3}, ["a", "b"])).state == {}

    async def test_none_is_a_value(self, store: Store) -> None:
        await _create(store, "s1", state={"a": None, "user:b": None, "app:c": None})
        assert (await _get(store, "s1")).state == {"a": None, "user:b": None, "app:c": None}

    async def test_different_keys_never_overwrite(self, store: Store) -> None:
        for n in range(5):
            await _create(store, f"s{n}")
        for n in range(5):
            await _patch(store, f"s{n}", {f"user:k{n}": n, f"app:k{n}": n})
        expected = {f"{scope}:k{n}": n for scope in ("user", "app") for n in range(5)}
        assert (await _get(store, "s0")).state == expected

    async def test_nul_emoji_bigint_roundtrip(self, store: Store) -> None:
        created = await _create(store, "s1", state=VALUES)
        assert _exact(created.state, VALUES)
        assert _exact((await _get(store, "s1")).state, VALUES)
        await _patch(store, "s1", {f"user:{k}": v for k, v in VALUES.items()})
        await _patch(store, "s1", {f"app:{k}": v for k, v in VALUES.items()})
        store = await self.reopen(store)
        state = (await _get(store, "s1")).state
        assert _exact(state, {f"{scope}{k}": v for scope in ("", "user:", "app:") for k, v in VALUES.items()})

    @pytest.mark.parametrize(
        "bad", [float("nan"), float("inf"), [1, float("-inf")], {"a": {1: 2}}, {"s"}, b"bytes", "\ud800", Ellipsis], ids=ascii
    )
    async def test_nan_is_refused(self, store: Store, bad: Any) -> None:
        await _create(store, "s1", state={"a": 1})
        async with unchanged(store):
            with raises(InvalidInput, "json.invalid"):
                await _create(store, "s2", state={"user:ok": 1, "bad": bad})
            with raises(InvalidInput, "json.invalid"):
                await _patch(store, "s1", {"user:ok": 1, "bad": bad}, ["a"])

    @pytest.mark.parametrize("bad", ["", "x" * 257, "a\x00b", "app:", "user:", "temp:", "user:\n", 7], ids=ascii)
    async def test_bad_state_keys_are_refused(self, store: Store, bad: Any) -> None:
        await _create(store, "s1", state={"a": 1})
        async with unchanged(store):
            with raises(InvalidInput, "state.invalid_key"):
                await _create(store, "s2", state={"app:ok": 1, bad: 1})
            with raises(InvalidInput, "state.invalid_key"):
                await _patch(store, "s1", {"user:ok": 1, bad: 1})
            with raises(InvalidInput, "state.invalid_key"):
                await _patch(store, "s1", {"user:ok": 1}, [bad])

    # -- copies -----------------------------------------------------------------------------------------------------

    async def test_does_not_retain_callers_dict(self, store: Store) -> None:
        given: dict[str, Any] = {"list": [1], "user:dict": {"a": {}}, "app:list": []}
        await _create(store, "s1", state=given)
        given["list"].append(2)
        given["user:dict"]["a"]["b"] = 1
        given["app:list"].append(1)
        given["more"] = 1
        assert (await _get(store, "s1")).state == {"list": [1], "user:dict": {"a": {}}, "app:list": []}
        patch: dict[str, Any] = {"list": [5]}
        await _patch(store, "s1", patch)
        patch["list"].append(6)
        assert (await _get(store, "s1")).state["list"] == [5]

    async def test_results_are_copies(self, store: Store) -> None:
        results = [await _create(store, "s1", state={"list": [1], "user:list": [1], "app:list": [1]})]
        results += [await _patch(store, "s1", {"a": 1}), await _get(store, "s1")]
        for result in results:
            for name in ("list", "user:list", "app:list"):
                result.state[name].append("leak")
            result.state["leak"] = 1
        assert (await _get(store, "s1")).state == {"list": [1], "user:list": [1], "app:list": [1], "a": 1}

    # -- listing ----------------------------------------------------------------------------------------------------

    async def test_list_is_newest_first(self, store: Store) -> None:
        with manual_clock() as clock:
            for n in range(4):
                await _create(store, f"s{n}", user_id="alice" if n % 2 else "bob", state={"n": n})
                clock.advance(1)
            await _create(store, "x", app_name="other")
            await _patch(store, "s0", {"n": 9}, user_id="bob")
        page = await store.list_sessions(app_name="shop")
        assert [s.id for s in page.items] == ["s3", "s2", "s1", "s0"]
        assert page.next is None
        assert [s.id for s in (await store.list_sessions(app_name="shop", user_id="alice")).items] == ["s3", "s1"]
        assert (await store.list_sessions(app_name="shop", user_id="carol")).items == []
        assert (await store.list_sessions(app_name="nobody")).items == []

    async def test_apps_are_those_that_have_sessions(self, store: Store) -> None:
        assert await store.list_apps() == []
        for app_name in ("shop", "é", "a b", "Shop", "\uffee", "\U0001f600"):
            await _create(store, "s1", app_name=app_name)
        await _create(store, "s2", app_name="shop")
        assert await store.list_apps() == ["Shop", "a b", "shop", "é", "\uffee", "\U0001f600"]
        for session_id in ("s1", "s2"):
            assert "shop" in await store.list_apps()
            await store.delete_session(app_name="shop", user_id="alice", session_id=session_id)
        assert await store.list_apps() == ["Shop", "a b", "é", "\uffee", "\U0001f600"]

    async def test_a_session_created_again_is_the_newest(self, store: Store) -> None:
        with manual_clock():
            for n in range(4):
                await _create(store, f"s{n}")
            await _delete(store, "s1")
            await _create(store, "s1")
            await _patch(store, "s0", {"n": 9})
            await start(store, "r1", session_key("s4"))
        assert [s.id for s in (await store.list_sessions(app_name="shop")).items] == ["s4", "s1", "s3", "s2", "s0"]
        assert [s.id for s in await all_sessions(store, "shop", "alice", limit=2)] == ["s4", "s1", "s3", "s2", "s0"]

    async def test_list_leaves_out_state_and_events(self, store: Store) -> None:
        await _create(store, "s1", state={"a": 1, "user:b": 1})
        await finished(store, "r1", None, "Hi.")
        [listed] = (await store.list_sessions(app_name="shop")).items
        assert (listed.state, listed.events, listed.event_count) == ({}, (), 2)

    @pytest.mark.parametrize("tick", [1, 0, -1], ids=["ticking", "same-moment", "set-back"])
    async def test_pages_neither_repeat_nor_skip(self, store: Store, tick: int) -> None:
        with manual_clock() as clock:
            for n in range(7):
                await _create(store, f"s{n}")
                clock.advance(tick)
        whole = [s.id for s in (await store.list_sessions(app_name="shop")).items]
        assert whole == [f"s{n}" for n in reversed(range(7))]
        for limit in (1, 2, 3, 6, 7, 8):
            paged = await all_sessions(store, "shop", "alice", limit=limit)
            assert [s.id for s in paged] == whole

    async def test_a_full_last_page_has_no_next(self, store: Store) -> None:
        for n in range(4):
            await _create(store, f"s{n}")
        first = await store.list_sessions(app_name="shop", limit=2)
        assert first.next is not None
        second = await store.list_sessions(app_name="shop", limit=2, after=first.next)
        assert (len(second.items), second.next) == (2, None)

    async def test_pages_bear_changes_between_them(self, store: Store) -> None:
        with manual_clock() as clock:
            for n in range(6):
                clock.advance(1)
                await _create(store, f"s{n}")
            first = await store.list_sessions(app_name="shop", limit=2)
            assert [s.id for s in first.items] == ["s5", "s4"]
            clock.advance(1)
            await _create(store, "s6")
            await _delete(store, "s4")
            await _delete(store, "s2")
            second = await store.list_sessions(app_name="shop", limit=2, after=first.next)
        assert [s.id for s in second.items] == ["s3", "s1"]

    @pytest.mark.parametrize("limit", [0, -1, 1001, 10**30, 1.5, "10", None], ids=repr)
    async def test_bad_page_sizes_are_refused(self, store: Store, limit: Any) -> None:
        await _create(store, "s1")
        run = await start(store)
        with raises(InvalidInput, "page.invalid"):
            await store.list_sessions(app_name="shop", limit=limit)
        with raises(InvalidInput, "page.invalid"):
            await store.list_runs(RunQuery("shop"), limit=limit)
        with raises(InvalidInput, "page.invalid"):
            await store.list_events(app_name="shop", user_id="alice", session_id="s1", limit=limit)
        with raises(InvalidInput, "page.invalid"):
            await store.run_events(run.uid, limit=limit)

    @pytest.mark.parametrize("token", ["", "~", "x~y", "nan~s1", "inf~", "12", "'; --", 5], ids=repr)
    async def test_bad_page_tokens_are_refused(self, store: Store, token: Any) -> None:
        await _create(store, "s1")
        with raises(InvalidInput, "page.invalid"):
            await store.list_sessions(app_name="shop", after=token)
        with raises(InvalidInput, "page.invalid"):
            await store.list_runs(RunQuery("shop"), after=token)

    # -- delete -----------------------------------------------------------------------------------------------------

    async def test_delete_then_create_is_empty(self, store: Store) -> None:
        before = await _create(store, "s1", state={"a": 1, "user:b": 2, "app:c": 3})
        run = await start(store)
        await write(store, run, event(run, 1, "Hi.", calls=["c1"]), agent="billing")
        deleted = await _delete(store, "s1")
        assert deleted.uid == before.uid
        assert deleted.state == {"a": 1, "user:b": 2, "app:c": 3}
        assert (deleted.event_count, deleted.active_agent) == (2, "billing")
        created = await _create(store, "s1")
        assert created.uid != before.uid
        assert (created.event_count, created.active_agent, created.state) == (0, None, {"user:b": 2, "app:c": 3})
        assert await store.history(session_key(), None) == ([], [])
        assert await store.list_events(app_name="shop", user_id="alice", session_id="s1", superseded=True) == []
        assert (await store.list_runs(RunQuery("shop"))).items == []
        assert (await start(store, "r2")).no == 1

    async def test_delete_fences_a_live_run(self, store: Store) -> None:
        run = await start(store)
        await _delete(store, "s1")
        with raises(Fenced, "run.fenced"):
            await write(store, run, event(run, 1, "late"))
        await _create(store, "s1")
        with raises(Fenced, "run.fenced"):
            await write(store, run, event(run, 1, "later"))
        with raises(NotFound, "run.not_found"):
            await store.begin(run.uid)
        assert (await _get(store, "s1")).event_count == 0

    async def test_delete_removes_its_runs_and_no_others(self, store: Store) -> None:
        run = await start(store, "r1", session_key("s1"))
        other = await start(store, "r2", session_key("s2"))
        await write(store, other, event(other, 1, "Hi.", calls=["c1"]))
        await _delete(store, "s1")
        with raises(NotFound, "run.not_found"):
            await store.get_run("shop", "r1")
        with raises(NotFound, "run.not_found"):
            await store.list_steps(run.uid)
        assert [r.id for r in await store.unfinished("shop")] == ["r2"]
        assert len((await store.history(session_key("s2"), None)).events) == 2
        again = await store.submit(new_run("r1", session_key("s3")), begin=False)
        assert not again.known

    async def test_a_run_uid_is_never_used_again(self, store: Store) -> None:
        zombie = await start(store, "r1", session_key("s1"))
        await _delete(store, "s1")
        run = await start(store, "r1", session_key("s2"))
        assert run.uid != zombie.uid
        with raises(Fenced, "run.fenced"):
            await write(store, zombie, event(zombie, 1, "from the grave"))

    async def test_deleting_twice_is_not_found(self, store: Store) -> None:
        await _create(store, "s1")
        await _delete(store, "s1")
        with raises(NotFound, "session.not_found"):
            await _delete(store, "s1")

    # -- durability and failure -------------------------------------------------------------------------------------

    async def test_reopen_keeps_sessions(self, store: Store) -> None:
        self._needs_reopen()
        await _create(store, "s1", state={"a": 1, "user:b": 2})
        await _create(store, "s2")
        await _delete(store, "s2")
        before = await _get(store, "s1")
        store = await self.reopen(store)
        assert await _get(store, "s1") == before
        assert [s.id for s in (await store.list_sessions(app_name="shop")).items] == ["s1"]

    async def test_failure_is_not_absence(self, store: Store) -> None:
        if not self.can_fail:
            pytest.skip("this backend cannot be made to fail")
        await _create(store, "s1", state={"a": 1})
        before = await _get(store, "s1")
        async with self.failing(store):
            for name, call in _calls_on(store, session_key("s1")):
                with raises(Unavailable, "store.unavailable"):
                    await call()
                    raise AssertionError(f"{name} did not fail")
            with raises(Unavailable, "store.unavailable"):
                await _create(store, "s2")
            with raises(Unavailable, "store.unavailable"):
                await store.submit(new_run(), begin=True)
            with raises(Unavailable, "store.unavailable"):
                await store.get_run("shop", "r1")
        assert await _get(store, "s1") == before

    def _needs_reopen(self) -> None:
        if not self.durable:
            pytest.skip("this store lives as long as its object")


def _calls_on(store: Store, key: SessionKey) -> list[tuple[str, Callable[[], Awaitable[Any]]]]:
    """Every call that needs an existing session."""
    ids: dict[str, Any] = {"app_name": key.app_name, "user_id": key.user_id, "session_id": key.session_id}
    return [
        ("get_session", lambda: store.get_session(**ids)),
        ("patch_session", lambda: store.patch_session(**ids, state_delta={"user:z": 1, "app:z": 1})),
        ("delete_session", lambda: store.delete_session(**ids)),
        ("list_events", lambda: store.list_events(**ids)),
        ("history", lambda: store.history(key, 10)),
        ("submit", lambda: store.submit(new_run("r-new", key, create_session=False), begin=True)),
    ]


def _exact(a: Any, b: Any) -> bool:
    """Equality that tells True, 1 and 1.0 apart."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_exact(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_exact, a, b))
    return bool(a == b)


async def _create(store: Store, id_: str, *, user_id: str = "alice", app_name: str = "shop", **fields: Any) -> Session:
    return await store.create_session(app_name=app_name, user_id=user_id, session_id=id_, **fields)


async def _get(store: Store, id_: str, *, user_id: str = "alice", app_name: str = "shop", events: int = 0) -> Session:
    return await store.get_session(app_name=app_name, user_id=user_id, session_id=id_, events=events)


async def _patch(
    store: Store, id_: str, delta: dict[str, Any] | None, deleted: list[str] | None = None, *, user_id: str = "alice"
) -> Session:
    return await store.patch_session(app_name="shop", user_id=user_id, session_id=id_, state_delta=delta, state_deleted=deleted)


async def _delete(store: Store, id_: str) -> Session:
    return await store.delete_session(app_name="shop", user_id="alice", session_id=id_)

"""The tables: how they are made, brought up to date, and refused."""

import asyncio

import asyncpg
import pytest

from sojourn.errors import Unsupported
from sojourn.postgres.migrations import Migration, Place, migrate
from sojourn.store.postgres.schema import MIGRATIONS
from sojourn.store.postgres.text import column, indexed, text_of
from sojourn.testing.suite import raises
from tests.store.postgres.conftest import TABLES

pytestmark = pytest.mark.anyio


async def tables_of(admin, schema):
    rows = await admin.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1 ORDER BY 1", schema)
    return [row[0] for row in rows]


async def test_the_tables_are_made_once_by_whoever_comes_first(opened, schema, admin):
    stores = [opened() for _ in range(8)]
    await asyncio.gather(*(store.list_apps() for store in stores))
    assert set(await tables_of(admin, schema)) >= {*TABLES, "sojourn_versions"}
    versions = await admin.fetch(f'SELECT * FROM "{schema}".sojourn_versions')
    assert [tuple(row) for row in versions] == [("sessions", MIGRATIONS[-1].version)]


async def test_names_that_need_quoting(opened, schema):
    store = opened(schema=f"""{schema} a"b\'c %s {{schema}}""")
    await store.create_session(app_name="shop", user_id="alice", session_id="s1", state={"k": 1})
    assert await store.list_apps() == ["shop"]


async def test_an_empty_schema_and_another_services_tables_are_fine(opened, schema, admin):
    await admin.execute(f'CREATE SCHEMA "{schema}"')
    other = (Migration(1, "something", "CREATE TABLE {schema}.something (x int)"),)
    await migrate(admin, Place(schema, "other", "the database"), other)
    store = opened()
    await store.list_apps()
    assert "something" in await tables_of(admin, schema)
    versions = await admin.fetch(f'SELECT * FROM "{schema}".sojourn_versions ORDER BY service')
    assert [tuple(row) for row in versions] == [("other", 1), ("sessions", MIGRATIONS[-1].version)]


async def test_another_programs_schema_is_refused_and_left_alone(opened, schema, admin):
    await admin.execute(f'CREATE SCHEMA "{schema}"; CREATE TABLE "{schema}".customers (name text)')
    with raises(Unsupported, "store.foreign"):
        await opened().list_apps()
    assert await tables_of(admin, schema) == ["customers"]


async def test_a_newer_schema_is_refused_and_left_alone(opened, schema, admin):
    store = opened()
    await store.create_session(app_name="shop", user_id="alice", session_id="s1")
    newer = MIGRATIONS[-1].version + 1
    await admin.execute(f'UPDATE "{schema}".sojourn_versions SET version = $1', newer)
    with pytest.raises(Unsupported, match=f"version {newer}, this version of Sojourn knows {newer - 1}") as caught:
        await opened().list_apps()
    assert caught.value.code == "store.schema_newer"
    assert await admin.fetchval(f'SELECT count(*) FROM "{schema}".sessions') == 1


async def test_steps_are_taken_from_where_the_schema_is(schema, admin):
    place = Place(schema, "sessions", "the database")
    first = Migration(1, "one", "CREATE TABLE {schema}.one (x int)")
    second = Migration(2, "two", "ALTER TABLE {schema}.one ADD y int; CREATE TABLE {schema}.two (x int)")
    await migrate(admin, place, (first,))
    await admin.execute(f'INSERT INTO "{schema}".one VALUES (7)')
    for _ in range(2):
        await migrate(admin, place, (first, second))
        assert tuple(await admin.fetchrow(f'SELECT * FROM "{schema}".one')) == (7, None)
    with raises(Unsupported, "store.schema_newer"):
        await migrate(admin, place, (first,))


async def test_a_step_that_fails_leaves_nothing_of_any(schema, admin):
    place = Place(schema, "sessions", "the database")
    steps = (
        Migration(1, "one", "CREATE TABLE {schema}.one (x int)"),
        Migration(2, "two", "CREATE TABLE {schema}.two (x int); SELECT 1 / 0"),
    )
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(admin, place, steps)
    assert not await admin.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", schema)
    await migrate(admin, place, steps[:1])
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(admin, place, steps)
    assert await tables_of(admin, schema) == ["one", "sojourn_versions"]
    assert await admin.fetchval(f'SELECT version FROM "{schema}".sojourn_versions') == 1


async def test_a_database_of_another_encoding_is_refused(opened, postgres):
    postgres.psql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with pytest.raises(Unsupported, match="LATIN1") as caught:
        await opened(postgres.url("latin")).list_apps()
    assert caught.value.code == "store.unsupported_server"


async def test_nothing_is_made_of_what_a_client_may_only_read(opened, schema, admin, postgres):
    """A role that may not create anything opens what is there."""
    store = opened()
    await store.create_session(app_name="shop", user_id="alice", session_id="s1")
    await admin.execute(
        f'CREATE ROLE "reader_{schema}" LOGIN; GRANT USAGE ON SCHEMA "{schema}" TO "reader_{schema}";'
        f'GRANT SELECT ON ALL TABLES IN SCHEMA "{schema}" TO "reader_{schema}"'
    )
    reader = opened(f"postgresql://reader_{schema}@127.0.0.1:{postgres.port}/postgres", role="client")
    assert await reader.list_apps() == ["shop"]


@pytest.mark.parametrize("text", ["", "plain", "\0", "\\", "\\0", "\0\\", "\\\0", "\\\\0", "a\0b\\c\\\\\0", "é\0👋"])
def test_texts_have_a_form_without_nul(text: str):
    assert "\0" not in column(text)
    assert text_of(column(text)) == text


def test_no_two_texts_have_one_form():
    texts = [a + b + c for a in ("", "\0", "\\", "0") for b in ("", "\0", "\\", "0") for c in ("", "\0", "\\", "0")]
    assert len({column(text) for text in texts}) == len(set(texts))
    long = ["x" * 5000, "x" * 5001, "é" * 400, "\ud800" * 300]
    assert len({indexed(text) for text in long}) == len(long)
    assert all(len(indexed(text)) < 700 for text in long)

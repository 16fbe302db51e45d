"""What others do while entries are being embedded."""

import asyncio

from sojourn.memory.qdrant.points import Owner
from sojourn.memory.types import Memory
from sojourn.testing.memory_conformance import ALICE, APP, everything, texts


async def forget_and_replace(service, embedder):
    """Forgets an entry and replaces another one while both are being embedded, and checks that it stays so."""
    embedder.is_away = True
    await service.add(APP, ALICE, [Memory("a hound", id="1"), Memory("a kettle", id="2"), Memory("a car", id="3")])
    embedder.is_away = False
    come, going = embedder.hold()
    embedding = asyncio.ensure_future(service._embed_the_rest(Owner(APP, ALICE)))
    await come.wait()
    await service.forget(APP, ALICE, ids=["1"])
    embedder.is_away = True
    await service.add(APP, ALICE, [Memory("a teapot", id="2")])
    embedder.is_away = False
    going.set()
    await embedding
    assert sorted(texts(await everything(service))) == ["a car", "a teapot"]
    assert texts(await service.search(APP, ALICE, "automobile", limit=1)) == ["a car"]
    assert texts(await service.search(APP, ALICE, "teapot", limit=1)) == ["a teapot"]

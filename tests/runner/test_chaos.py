"""Everything at once: whatever goes wrong in whatever order, what must be true in the end is true."""

import pytest

from sojourn import platform
from sojourn.testing.loop import for_seeds
from tests.runner.chaos import World


async def live_through(**options):
    world = World(f"{platform.new_id()}", **options)
    try:
        await world.live()
        await world.check()
    finally:
        await world.bury()


@for_seeds(30)
async def test_fair_weather():
    await live_through(failures=0.0, deaths=0)


@for_seeds(30)
async def test_bad_weather():
    await live_through(failures=0.04, deaths=0)


@for_seeds(30)
async def test_processes_that_die():
    await live_through(failures=0.0, deaths=2)


@pytest.mark.slow
@for_seeds(60)
async def test_everything_at_once():
    await live_through(failures=0.04, deaths=2)

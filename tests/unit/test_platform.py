"""Clock, ids and randomness, and how a test owns them."""

import pytest

from sojourn import platform


class Fixed(platform.Platform):
    """A platform whose answers are given."""

    def __init__(self, now: float) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time - 1000

    def random(self) -> float:
        return 0.25

    def random_bytes(self, n: int) -> bytes:
        return bytes(range(n))


def test_the_default_is_the_machine_s():
    assert platform.now() > 1_700_000_000
    assert platform.monotonic() <= platform.monotonic()
    assert all(0 <= platform.random() < 1 for _ in range(100))
    assert len(platform.Platform().random_bytes(7)) == 7


def test_ids_are_unique_hex_of_32_digits():
    ids = [platform.new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(i) == 32 and int(i, 16) >= 0 and i == i.lower() for i in ids)


def test_ids_sort_by_time():
    ids = []
    for milliseconds in (0, 1, 2, 1_000, 1_767_225_600_000, 1_767_225_600_001, 2**48 - 1):
        with platform.use(Fixed(milliseconds / 1000)):
            ids.append(platform.new_id())
    assert ids == sorted(ids)
    assert {len(i) for i in ids} == {32}


def test_use_installs_a_platform_while_the_block_runs():
    with platform.use(Fixed(5000.0)) as installed:
        assert isinstance(installed, Fixed)
        assert (platform.now(), platform.monotonic(), platform.random()) == (5000.0, 4000.0, 0.25)
        assert platform.new_id() == f"{5_000_000:012x}" + bytes(range(10)).hex()
    assert platform.now() > 1_700_000_000


def test_use_nests_and_ends_with_an_error():
    with platform.use(Fixed(1.0)):
        with pytest.raises(ZeroDivisionError), platform.use(Fixed(2.0)):
            1 / (platform.now() - 2.0)
        assert platform.now() == 1.0

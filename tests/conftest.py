"""What all tests share."""

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

from tests.postgresql import postgres, schema  # noqa: F401

# Before numpy is imported: its threads wait for each other on a busy machine, and burn CPU while they do.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

pytest.register_assert_rewrite("sojourn.testing", "tests.runner.support", "tests.runner.chaos")

# Machines are noisy: how long an example takes says nothing. CI draws the same examples each time.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One worker more than there are processors: tests wait for disks, servers and processes."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items):
    """The slow ones first: at the end, no worker is left with one while the others have nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """Leaves what all tests share, themselves included, out of what the garbage collector looks through in each of them."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What tests log may hold halves of characters, which cannot be sent from one process to another."""
    report = yield
    report.sections = [(name, text.encode(errors="replace").decode()) for name, text in report.sections]
    return report

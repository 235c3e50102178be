"""What holds for all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tracing import free_slot

from agenttop.collectors.bpf.tracer import Tracer
from agenttop.policies import lock
from agenttop.policies.journal import NAME, JournalError, open_state_dir
from agenttop.policies.undo import recover

# How long an example takes says something about the machine, nothing about what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Live measurements are held against clocks on a machine that others use too.

    One that is off three times in a row is wrong; which were tried again
    stands in the summary. What the programs do, and not how long it takes,
    is tried again once: what fails every second time shall show.
    """
    for item in items:
        if item.get_closest_marker("bpf"):
            measures = item.path.name.startswith(("test_bpf_", "test_window_live"))
            item.add_marker(pytest.mark.flaky(reruns=1 + measures, reruns_delay=2))


@pytest.fixture
def slot(tracer: Tracer) -> int:
    """A clean one in the programs of the test's own module."""
    slot = free_slot()
    tracer.clear(slot)
    return slot


@pytest.fixture
def state(tmp_path: Path) -> Iterator[int]:
    """A state directory of its own, open."""
    fd = open_state_dir(str(tmp_path / "state"))
    assert fd is not None
    yield fd
    os.close(fd)


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    """Compiled programs are kept for the session, and nothing in the machine's own cache."""
    before = os.environ.get("AGENTTOP_CACHE")
    with tempfile.TemporaryDirectory(prefix="agenttop-cache-") as folder:
        os.environ["AGENTTOP_CACHE"] = folder
        yield
    if before is None:
        del os.environ["AGENTTOP_CACHE"]
    else:
        os.environ["AGENTTOP_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_by_a_killed_run() -> None:
    """A run of the tests that was killed with all its guardians leaves journals and settings."""
    for journal in Path(tempfile.gettempdir()).glob(f"pytest-of-*/pytest-*/*/state/{NAME}"):
        state = str(journal.parent)
        try:
            held = lock.acquire(state)
            try:
                dir_fd = open_state_dir(state, create=False)
                if dir_fd is not None:
                    recover(dir_fd)
                    os.close(dir_fd)
            finally:
                lock.release(held)
        except (JournalError, lock.LockedError, OSError):
            pass  # somebody's who lives, or a test's that was no journal

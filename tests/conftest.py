"""What holds for all tests."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.policies.guardian import lock
from agenttop.policies.guardian.journal import NAME, JournalError, open_state_dir
from agenttop.policies.guardian.undo import recover
from tests.support.tracing import free_slot

pytest_plugins = ["tests.support.tiers"]

# How long an example takes says something about the machine, nothing about what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# readline, which pytest imports, sets them for what pytest starts (the workers of xdist): then a
# terminal that a test makes would not have the size that the test gave it.
for name in ("LINES", "COLUMNS"):
    os.environ.pop(name, None)


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
def _signals_as_in_a_terminal() -> None:
    """What runs in the background (``nohup``, ``&``) ignores signals, and so would all it starts.

    One that is handled is as it always is in a program that is started; our own runs go on.
    """
    for number, handler in ((signal.SIGHUP, _noted), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def _noted(number: int, frame: object) -> None:
    pass


@pytest.fixture(scope="session", autouse=True)
def _own_cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiled programs are kept with pytest's own files, nothing in the machine's own cache."""
    before = os.environ.get("AGENTTOP_CACHE")
    kept = getattr(request.config, "cache", None)
    with tempfile.TemporaryDirectory(prefix="agenttop-cache-") as folder:
        if kept is not None:
            folder = str(kept.mkdir(f"programs-{os.uname().release}"))
        os.environ["AGENTTOP_CACHE"] = folder
        yield
    if before is None:
        del os.environ["AGENTTOP_CACHE"]
    else:
        os.environ["AGENTTOP_CACHE"] = before


def _alive(run: Path) -> bool:
    """Whether the run of the tests that this directory of pytest's belongs to goes on.

    pytest keeps its process id in a file of the directory, and removes the file at its end.
    """
    try:
        pid = int((run / ".lock").read_text())
        return b"pytest" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True


def pytest_sessionstart(session: pytest.Session) -> None:
    """A run of the tests that was killed with all its guardians leaves journals and settings."""
    if hasattr(session.config, "workerinput"):
        return  # what started this one has looked
    for run in Path(tempfile.gettempdir()).glob("pytest-of-*/pytest-*"):
        if run.is_symlink() or _alive(run):
            continue
        for journal in [*run.glob(f"*/state/{NAME}"), *run.glob(f"popen-*/*/state/{NAME}")]:
            _restore(str(journal.parent))


def _restore(state: str) -> None:
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
        pass  # of a process that lives, or a test's that was no journal

"""Each hold is restored by itself, whatever exception another one meets."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenttop.policies.guardian.journal import Journal, load, open_state_dir
from agenttop.policies.guardian.lease import Lease
from agenttop.policies.guardian.undo import recover
from agenttop.policies.knobs import KNOBS, base
from agenttop.policies.knobs.base import AFFINITY, Change, cpu_set, thread_stat
from tests.support.policy_rig import needs_root, needs_two_cpus

COUNT = 8
#: What a knob may meet: the kernel's refusals, and faults of any kind.
ERRORS = (
    lambda: OSError(5, "Input/output error"),
    lambda: FileNotFoundError(2, "No such file or directory"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    lambda: ValueError("not a CPU list: '\udcff\n'"),
    lambda: KeyError("missing"),
    lambda: IndexError(),
    lambda: RecursionError("too deep"),
    lambda: base.KnobError("refused"),
)


class Faulty(base.Knob):
    """A knob whose values are in memory, and whose steps raise as asked for."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        #: Target -> the step that raises, and what.
        self.faults: dict[str, tuple[str, int]] = {}

    def _step(self, name: str, target: str) -> None:
        step, error = self.faults.get(target, ("", 0))
        if step == name:
            raise ERRORS[error]()

    def valid(self, target: str, value: str) -> bool:
        return True

    def label(self, target: str) -> str:
        self._step("label", target)
        return f"faulty {target}"

    def read(self, target: str) -> str | None:
        self._step("read", target)
        return self.values[target]

    def write(self, target: str, value: str) -> None:
        self._step("write", target)
        self.values[target] = value

    def same(self, a: str, b: str) -> bool:
        return a == b

    ours = same

    def drift(self, target: str, written: str, thorough: bool = True) -> str | None:
        return None


FAULTS = st.dictionaries(
    st.integers(0, COUNT - 1).map(str),
    st.tuples(st.sampled_from(("read", "write", "label")), st.integers(0, len(ERRORS) - 1)),
)


@settings(max_examples=150, deadline=None)
@given(FAULTS)
def test_what_one_hold_meets_keeps_no_other_from_being_restored(
    faults: dict[str, tuple[str, int]],
) -> None:
    faulty = Faulty()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setitem(KNOBS, "faulty", faulty)
        dir_fd = open_state_dir(os.path.join(folder, "state"))
        assert dir_fd is not None
        targets = [str(n) for n in range(COUNT)]
        journal = Journal(dir_fd)
        journal.record(Change("home", "faulty", target, "0", "1") for target in targets)
        journal.close()
        faulty.values = dict.fromkeys(targets, "1")
        faulty.faults = faults
        stuck = {target for target, (step, _) in faults.items() if step != "label"}
        outcomes = recover(dir_fd)
        assert outcomes is not None
        assert {o.target for o in outcomes if not o.settled} == stuck
        assert {o.target for o in outcomes if o.settled} == set(targets) - stuck
        assert all(o.text.isprintable() and o.target in o.text for o in outcomes)
        assert faulty.values == {t: "1" if t in stuck else "0" for t in targets}
        # What could not be restored is held still, and nothing else.
        left = load(dir_fd)
        assert ({hold.target for hold in left.holds} if left else set()) == stuck
        faulty.faults = {}
        recover(dir_fd)
        assert set(faulty.values.values()) == {"0"}
        assert load(dir_fd) is None
        os.close(dir_fd)


NAMES = (b"\xff\xfe", b"a\nb", b"x) S 1 (", b"", b"\x1b[31m", b"Cpus_allowed", b"\t\r\n\\")

_RENAMES = """
import ctypes, sys, time
print("ready", flush=True)
name = bytes.fromhex(sys.stdin.readline().strip())
ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
print("renamed", flush=True)
time.sleep(60)
"""


@pytest.fixture
def two() -> Iterator[list[subprocess.Popen[str]]]:
    """One that renames itself to the hex that it is sent, and one that does not."""
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", _RENAMES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in pair:
        assert process.stdout is not None
        process.stdout.readline()
    yield pair
    for process in pair:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def target(process: subprocess.Popen[str]) -> str:
    stat = thread_stat(process.pid, process.pid)
    assert stat is not None
    return f"{process.pid}/{process.pid}/{stat.start}"


@needs_root
@needs_two_cpus
@pytest.mark.parametrize("name", NAMES, ids=repr)
@pytest.mark.parametrize("end", ["close", "guardian killed"])
def test_a_threads_name_keeps_nothing_from_being_restored(
    two: list[subprocess.Popen[str]], tmp_path: Path, name: bytes, end: str
) -> None:
    renamed, other = two
    every = os.sched_getaffinity(0)
    before = AFFINITY.read(target(other))
    assert before is not None
    cpu = str(min(cpu_set("online")))
    lease = Lease(str(tmp_path / "state"))
    changes = [Change("home", "affinity", target(p), before, cpu) for p in (other, renamed)]
    assert [r.status for r in lease.apply(changes)] == ["ok", "ok"]
    assert renamed.stdin is not None
    assert renamed.stdout is not None
    renamed.stdin.write(name.hex() + "\n")
    renamed.stdin.flush()
    renamed.stdout.readline()
    if end == "guardian killed":
        os.kill(lease.guardian, 9)
    outcomes = lease.close()
    assert all(outcome.settled for outcome in outcomes)
    assert [os.sched_getaffinity(p.pid) for p in two] == [every, every]


@needs_root
def test_what_was_found_of_a_name_is_free_of_control_characters() -> None:
    ctypes.CDLL(None).prctl(15, b"\xff\n\x1b[1m", 0, 0, 0)
    try:
        stat = thread_stat(os.getpid(), os.getpid())
        assert stat is not None
        assert AFFINITY.label(f"{os.getpid()}/{os.getpid()}/{stat.start}").isprintable()
    finally:
        ctypes.CDLL(None).prctl(15, b"pytest", 0, 0, 0)


#: Each process starts its successor and lives on, as make, a shell's pipeline or a supervisor do.
_CHAIN = """
import os, sys, time
sys.stdin.readline()
for depth in range(200):
    if os.fork():
        time.sleep(20)
        os._exit(0)
    time.sleep(float(sys.argv[1]))
"""


@needs_root
@needs_two_cpus
def test_what_is_born_while_a_revert_runs_is_restored_too(tmp_path: Path) -> None:
    family, pinned, settled = chain_during_a_revert(tmp_path, pause_s=0.002)
    assert family > 2
    # A machine that is too busy to catch up says so.
    assert not pinned or not settled


@needs_root
@needs_two_cpus
@pytest.mark.measures
@pytest.mark.parametrize("turn", range(3))
def test_a_fast_chain_of_forks_is_overtaken(tmp_path: Path, turn: int) -> None:
    family, pinned, settled = chain_during_a_revert(tmp_path, pause_s=0.0005)
    assert family > 2
    assert (pinned, settled) == ([], True)


def chain_during_a_revert(tmp_path: Path, pause_s: float) -> tuple[int, list[int], bool]:
    """How many there are at last, those still on the held CPU, and whether all was settled."""
    process = subprocess.Popen(
        [sys.executable, "-c", _CHAIN, str(pause_s)],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        before = AFFINITY.read(target(process))
        assert before is not None
        assert process.stdin is not None
        lease = Lease(str(tmp_path / "state"))
        cpu = str(max(cpu_set("online")))
        lease.apply([Change("home", "affinity", target(process), before, cpu)])
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(0.08)
        outcomes = lease.close()
        time.sleep(0.5)
        family = [int(n) for n in os.listdir("/proc") if n.isdigit() and session(n) == process.pid]
        pinned = [pid for pid in family if os.sched_getaffinity(pid) == {int(cpu)}]
        return len(family), pinned, all(outcome.settled for outcome in outcomes)
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def session(pid: str) -> int:
    try:
        return os.getsid(int(pid))
    except ProcessLookupError:
        return 0

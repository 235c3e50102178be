"""What cannot be given back at once: never forgotten, tried again, told of once each time."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from agenttop.model.sample import Event
from agenttop.policies.builtin.vfs import NAME
from agenttop.policies.guardian import undo
from agenttop.policies.guardian.journal import Journal, load
from agenttop.policies.guardian.process import Guardian
from agenttop.policies.guardian.window_watch import Watch
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import Change, KnobError, thread_stat
from agenttop.policies.knobs.files import Sysctl
from agenttop.policies.manager import PolicyManager
from tests.live.policies.test_command import Shell
from tests.live.policies.test_heirs import ending
from tests.support.knob_files import Trees, targets, use
from tests.support.policy_rig import needs_root

BUDGET = "net.core.netdev_budget"


class Stubborn(Sysctl):
    """A sysctl that cannot be read, or written, while it is told so."""

    readable = writable = True
    #: Not readable any more from the next write on.
    breaks = False

    def read(self, target: str) -> str | None:
        if not self.readable:
            raise KnobError("Device or resource busy")
        return super().read(target)

    def write(self, target: str, value: str) -> None:
        if not self.writable:
            raise KnobError("Permission denied")
        super().write(target, value)
        self.readable = self.readable and not self.breaks


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    trees = use(tmp_path, monkeypatch)
    trees.sysctl(NAME, "100")
    trees.sysctl(BUDGET, "300")
    return trees


def change(name: str, before: str, after: str, policy: str = "vfs") -> Change:
    return Change(policy, "sysctl", name, before, after)


def held(state: int) -> dict[str, tuple[str, list[str]]]:
    found = load(state)
    return {hold.target: (hold.original, hold.ours) for hold in found.holds} if found else {}


def told(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.kind, event.text) for event in events if event.kind in ("warning", "error")]


# --------------------------------------------------------------------------- a later agenttop


@pytest.fixture
def stuck(trees: Trees, state: int) -> Path:
    """The limit of a CPU as a killed agenttop has left it; just now it is no file."""
    file = trees.sys / "devices/system/cpu/cpu0/power/pm_qos_resume_latency_us"
    file.mkdir(parents=True)
    journal = Journal(state)
    journal.record([Change("guard", "pm_qos", "cpu0", "0", "5")])
    journal.close()
    return file


def mend(stuck: Path) -> None:
    stuck.rmdir()
    stuck.write_text("5\n")


STUCK = "pm_qos_resume_latency_us: could not be restored to 0: Is a directory"


def test_a_start_that_cannot_repair_leaves_it_to_the_next(
    stuck: Path, state: int, tmp_path: Path
) -> None:
    for _ in range(2):
        summary, line = told(PolicyManager(tmp_path / "state").tick(targets()))
        assert summary[1].endswith("had left changes, 1 could not be restored")
        assert line[0] == "error"
        assert line[1].endswith(STUCK)
        assert held(state) == {"cpu0": ("0", ["5"])}
    mend(stuck)
    (line,) = told(PolicyManager(tmp_path / "state").tick(targets()))
    assert line[1].endswith("had left changes: 1 restored")
    assert stuck.read_text() == "0"
    assert load(state) is None


@needs_root
def test_other_policies_leave_it_in_the_journal(
    stuck: Path, trees: Trees, state: int, tmp_path: Path
) -> None:
    manager = PolicyManager(tmp_path / "state")
    assert [kind for kind, _ in told(manager.set("vfs", True, targets()))] == ["warning", "error"]
    assert manager.is_on("vfs")
    assert held(state) == {"cpu0": ("0", ["5"]), NAME: ("100", ["50"])}
    (line,) = told(manager.close())
    assert line[1].endswith(STUCK)
    assert held(state) == {"cpu0": ("0", ["5"])}
    assert Path(trees.proc / "sys/vm/vfs_cache_pressure").read_text() == "100"


@needs_root
def test_it_is_given_back_at_the_end_of_whatever_comes_next(
    stuck: Path, state: int, tmp_path: Path
) -> None:
    manager = PolicyManager(tmp_path / "state")
    manager.set("vfs", True, targets())
    mend(stuck)
    manager.set("vfs", False, targets())
    assert stuck.read_text() == "0"
    assert load(state) is None


@needs_root
def test_commands_go_on_beside_it(stuck: Path, state: int, tmp_path: Path) -> None:
    shell = Shell(tmp_path / "state")
    code, out, _ = shell.run("policy", "apply", "vfs", "--for", "0.2")
    assert code == 1
    assert "vfs on: " in out
    assert out.endswith(f"{STUCK}\n")
    mend(stuck)
    code, out, _ = shell.run("restore")
    assert code == 0
    assert out.endswith("pm_qos_resume_latency_us: 5 -> 0\n")


@needs_root
def test_a_revert_tells_what_became_of_each(
    stuck: Path, trees: Trees, state: int, tmp_path: Path
) -> None:
    manager = PolicyManager(tmp_path / "state")
    manager.set("vfs", True, targets())
    shell = Shell(tmp_path / "state")
    code, out, err = shell.run("policy", "revert")
    assert (code, err) == (1, "")
    first, second, last = out.splitlines()
    assert first.endswith("pm_qos_resume_latency_us: could not be restored, is tried again")
    assert second == f"  {NAME}: restored to 100"
    assert last == "reverted guard, vfs"
    manager.close()


# --------------------------------------------------------------------------- the guardian itself


@pytest.fixture
def knob(trees: Trees, monkeypatch: pytest.MonkeyPatch) -> Stubborn:
    knob = Stubborn()
    monkeypatch.setitem(KNOBS, "sysctl", knob)
    return knob


@pytest.fixture
def guardian(state: int, knob: Stubborn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guardian]:
    """In this process, whose signals stay its own."""
    for name in ("signal", "set_wakeup_fd", "pthread_sigmask"):
        monkeypatch.setattr(signal, name, lambda *_, **__: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        yield Guardian(theirs.detach(), -1, state)


def test_a_knob_that_waits_to_be_given_back_is_nobody_elses(
    guardian: Guardian, knob: Stubborn, state: int
) -> None:
    assert guardian._apply([change(NAME, "100", "50")]) == [["ok", ""]]
    knob.writable = False
    (outcome,) = guardian._undo([("sysctl", NAME)])
    assert not outcome.settled
    ((status, text),) = guardian._apply([change(NAME, "50", "20", "second")])
    assert (status, text) == ("refused", "what vfs had set could not be given back yet")
    assert held(state) == {NAME: ("100", ["50"])}
    knob.writable = True
    # Given back first: what was planned for the old value is planned anew.
    assert guardian._apply([change(NAME, "50", "20", "second")]) == [["changed", "100"]]
    assert load(state) is None
    assert guardian._apply([change(NAME, "100", "20", "second")]) == [["ok", ""]]
    assert held(state) == {NAME: ("100", ["20"])}
    (outcome,) = guardian._undo(None)
    assert outcome.text == f"{NAME}: 20 -> 100"


def test_what_waits_to_be_given_back_is_not_kept(
    guardian: Guardian, knob: Stubborn, state: int
) -> None:
    guardian._apply([change(NAME, "100", "50")])
    knob.writable = False
    guardian._undo([("sysctl", NAME)])
    assert [outcome.settled for outcome in guardian._keep()] == [False]
    found = load(state)
    assert found is not None
    assert not found.kept
    knob.writable = True
    assert [outcome.settled for outcome in guardian._keep()] == [True]
    assert load(state) is None


def test_what_was_written_and_cannot_be_read_back_is_taken_back(
    guardian: Guardian, knob: Stubborn, state: int
) -> None:
    knob.breaks = True
    assert guardian._apply([change(NAME, "100", "50")]) == [["refused", "Device or resource busy"]]
    knob.readable = True
    assert knob.read(NAME) == "100"
    assert load(state) is None


def test_what_cannot_be_taken_back_either_stays_in_the_journal(
    guardian: Guardian, knob: Stubborn, state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = knob.write

    def once(target: str, value: str) -> None:
        write(target, value)
        knob.readable = knob.writable = False

    with monkeypatch.context() as goes_offline:
        goes_offline.setattr(knob, "write", once)
        found = guardian._apply([change(NAME, "100", "50"), change(BUDGET, "300", "200")])
    assert found == [["refused", "Device or resource busy"], ["refused", "Permission denied"]]
    assert held(state) == {NAME: ("100", ["50"]), BUDGET: ("300", ["200"])}
    knob.readable = knob.writable = True
    assert [o.text for o in guardian._undo(None)] == [
        f"{BUDGET}: is 300 again",
        f"{NAME}: 50 -> 100",
    ]
    assert load(state) is None


def test_what_was_refused_outright_is_not_held(
    guardian: Guardian, knob: Stubborn, state: int
) -> None:
    knob.writable = False
    assert guardian._apply([change(NAME, "100", "50")]) == [["refused", "Permission denied"]]
    assert load(state) is None


def test_of_what_the_kernel_makes_another_value_the_one_before_stays(
    guardian: Guardian, knob: Stubborn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal names what was asked for: what the kernel made of it would be nobody's."""
    write = knob.write
    monkeypatch.setattr(knob, "write", lambda t, value: write(t, "30" if value == "20" else value))
    assert guardian._apply([change(NAME, "100", "50")]) == [["ok", ""]]
    assert guardian._apply([change(NAME, "50", "20")]) == [["refused", "the kernel makes 30 of 20"]]
    assert knob.read(NAME) == "50"
    (outcome,) = guardian._undo(None)
    assert outcome.text == f"{NAME}: 50 -> 100"


def test_one_whose_heirs_are_not_all_restored_is_tried_again_before_it_is_held(
    guardian: Guardian, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ending(["sleep", "60"]) as process:
        stat = thread_stat(process.pid, process.pid)
        assert stat is not None
        wanted = Change(
            "block", "ioprio", f"{process.pid}/{process.pid}/{stat.start}", "0:0", "2:3"
        )
        assert guardian._apply([wanted]) == [["ok", ""]]
        with monkeypatch.context() as forks:
            forks.setattr(undo, "release_all", lambda *_: ([], {wanted.key}))
            guardian._undo([wanted.key])
        assert wanted.key in guardian._journal.holds
        assert guardian._apply([wanted]) == [["ok", ""]]


def test_what_cannot_be_noted_as_kept_is_restored(
    guardian: Guardian, knob: Stubborn, state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Journal) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    guardian._apply([change(NAME, "100", "50")])
    monkeypatch.setattr(Journal, "keep", full)
    assert [outcome.text for outcome in guardian._keep()] == [f"{NAME}: 50 -> 100"]
    assert knob.read(NAME) == "100"
    assert load(state) is None


class Watching(Watch):
    """A watch without a kernel side, which cannot open one knob's file."""

    def __init__(self, refused: str) -> None:
        self._refused_target = refused
        self._size = 8
        self._knobs, self._by_cell, self._held = {}, {}, set()
        self._cells = memoryview(bytearray(16 * self._size)).cast("Q")

    def add(self, change: Change, cells: Iterable[int]) -> None:
        if change.target == self._refused_target:
            raise KnobError("Too many open files")
        super().add(change, cells)

    def close(self) -> dict[tuple[str, str], str]:
        return self.forget(list(self._knobs))


def test_one_that_cannot_be_followed_is_refused_alone(
    guardian: Guardian, knob: Stubborn, trees: Trees, state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    guardian._watch = Watching(NAME)
    monkeypatch.setattr(guardian, "_poll", select.poll())
    changes = [change(NAME, "100", "50"), change(BUDGET, "300", "150")]
    # The same cell twice is one.
    answers = guardian._follow(changes, [[1], [2, 2]])
    assert answers == [["refused", "Too many open files"], ["ok", ""]]
    assert (knob.read(NAME), knob.read(BUDGET)) == ("100", "300")
    assert held(state).keys() == {BUDGET}
    assert [outcome.settled for outcome in guardian._undo(None)] == [True]
    assert load(state) is None

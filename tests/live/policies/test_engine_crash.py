"""The whole program on a terminal, both policies on, and then SIGKILL at a random moment.

Every setting that the policies touch must be as before within a second, with
no process of agenttop left; where nobody is left to do it, ``agenttop
restore`` must. (test_crash.py does the same to the policies alone,
more often and at finer moments.)
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.policies.guardian import lock
from agenttop.policies.guardian.journal import load, open_state_dir
from agenttop.policies.knobs.base import RESUME_LATENCY, cpu_set
from tests.support.engines import needs_bpf
from tests.support.live_terminal import ROOT, LivePty, cmdline, environed, live
from tests.support.policy_rig import (
    cpu_latency,
    machine_lock,
    needs_qos,
    needs_root,
    needs_two_cpus,
    until,
)

pytestmark = [needs_root, needs_qos, needs_two_cpus, pytest.mark.alone]

#: What SIGKILL must leave behind: nothing, within this, s.
RESTORED_S = 1.0
#: The same for a stopped engine, whose lease has to run out.
EXPIRED_S = 2.0
#: Each is hit this often, each time and in the long tier.
TURNS = [1, pytest.param(3, marks=pytest.mark.long)]
WHOM = ("view", "engine", "guardian", "group", "everything")


class Agents:
    """Loops of several kinds under a name of their own."""

    NAME = "atcrash"
    KINDS = (
        ("--gate", "epoll", "--source", "timer", "--interval-us", "2000"),
        ("--gate", "read", "--source", "ipc", "--interval-us", "3000"),
        ("--gate", "sleep", "--source", "timer", "--interval-us", "1000"),
    )

    def __init__(self) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, *f"-m agenttop loop --name {self.NAME} --for 600".split(), *kind],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=ROOT,
                process_group=0,
            )
            for kind in self.KINDS
        ]

    def ready(self) -> bool:
        """Do they all step?"""
        names = [Path(f"/proc/{process.pid}/comm").read_text() for process in self._processes]
        return all(name == f"{self.NAME}\n" for name in names)

    def tids(self) -> list[int]:
        """Every thread of every loop and of the peers that they started."""
        groups = {process.pid for process in self._processes}
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.getpgid(int(name)) in groups:
                    found += map(int, os.listdir(f"/proc/{name}/task"))
        return sorted(found)

    def state(self) -> dict[str, object]:
        """Every setting that the two policies touch."""
        now: dict[str, object] = {
            cpu: RESUME_LATENCY.read(cpu) for cpu in (f"cpu{n}" for n in cpu_set("present"))
        }
        now["all"] = cpu_latency()
        for tid in self.tids():
            with contextlib.suppress(ProcessLookupError):
                now[f"tid {tid}"] = os.sched_getaffinity(tid)
        return now

    def end(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def agents() -> Iterator[Agents]:
    needs_bpf()
    with machine_lock():
        started = Agents()
        try:
            assert until(started.ready, 20)
            yield started
        finally:
            started.end()


def holds(state: Path) -> set[str]:
    """The policies that hold something, by the journal."""
    dir_fd = open_state_dir(str(state), create=False)
    if dir_fd is None:
        return set()
    try:
        found = load(dir_fd)
    finally:
        os.close(dir_fd)
    return {hold.policy for hold in found.holds} if found else set()


def guardian(state: Path) -> int:
    owner = lock.owner(str(state))
    return owner.guardian if owner else 0


def restore(state: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "agenttop", "restore"],
        env={**os.environ, "AGENTTOP_STATE": str(state)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def screen(state: Path) -> Iterator[LivePty]:
    """The live screen for the agents; whatever the test does, nothing of it is left."""
    wanted = f"comm:^{Agents.NAME}$"
    environ = {"AGENTTOP_STATE": str(state), "AGENTTOP_CRASH_TEST": str(state)}
    with contextlib.ExitStack() as stack:
        stack.callback(_sweep, state)
        yield stack.enter_context(live("--agent", wanted, "-d", "0.5", env=environ))


def _sweep(state: Path) -> None:
    for number in (signal.SIGCONT, signal.SIGTERM):
        for pid in environed("AGENTTOP_CRASH_TEST", str(state)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    if not until(lambda: not environed("AGENTTOP_CRASH_TEST", str(state)), 3):
        for pid in environed("AGENTTOP_CRASH_TEST", str(state)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if (state / "journal").exists():
        restore(state)


def all_ended(state: Path, told: str = "") -> None:
    """No process of that start lives on: view, engine, guardian, loader."""

    def left() -> list[int]:
        return environed("AGENTTOP_CRASH_TEST", str(state))

    if not until(lambda: not left(), 5):
        lines = [f"{pid}: {cmdline(pid).decode(errors='replace')[-200:]!r}" for pid in left()]
        pytest.fail("\n".join([f"{told}: still there:", *lines]))


def switch_on(shown: LivePty) -> None:
    shown.until("guard")
    shown.type("gh")


def kill(*pids: int) -> None:
    for pid in filter(None, pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def strike(whom: str, shown: LivePty, state: Path) -> None:
    """SIGKILL, and nothing else."""
    if whom == "view":
        kill(shown.pid)
    elif whom == "engine":
        kill(shown.engine())
    elif whom == "guardian":
        kill(guardian(state))
    elif whom == "group":
        os.killpg(shown.pid, signal.SIGKILL)
    else:
        kill(*environed("AGENTTOP_CRASH_TEST", str(state)))


@pytest.mark.parametrize("turns_each", TURNS)
def test_sigkill_of_any_process_at_random_moments(
    turns_each: int, tmp_path: Path, agents: Agents
) -> None:
    seed = int(os.environ.get("AGENTTOP_SEED") or random.randrange(1 << 32))
    print(f"AGENTTOP_SEED={seed}")
    chance = random.Random(seed)
    before = agents.state()
    turns = [whom for whom in WHOM for _ in range(turns_each)]
    chance.shuffle(turns)
    changed = 0
    for turn, whom in enumerate(turns):
        state = tmp_path / str(turn)
        told = f"turn {turn}: {whom}, AGENTTOP_SEED={seed}"
        with screen(state) as shown:
            switch_on(shown)
            # From before the first setting is written to well after the last.
            if turn % 3:
                assert until(lambda: bool(holds(state)), 20), told + shown.seen()  # noqa: B023
            time.sleep(chance.random() * 0.6)
            changed += agents.state() != before
            strike(whom, shown, state)
            if whom == "everything":
                all_ended(state, told)
                restore(state)
            if whom == "guardian":
                # The screen lives on, and may be switching on the next policy right now.
                assert until(lambda: agents.state() == before or bool(guardian(state)), 1.0), told  # noqa: B023
                shown.type("q")
                assert shown.wait(10) == 0, told
            assert until(lambda: agents.state() == before, RESTORED_S), (
                f"{told}: {agents.state()} instead of {before}"
            )
            all_ended(state, told)
            assert not (state / "journal").exists(), told
    assert changed > len(turns) // 3, "the policies were hardly ever on: the test proves nothing"


@pytest.mark.parametrize("whom", WHOM)
def test_sigkill_while_both_policies_are_on(whom: str, tmp_path: Path, agents: Agents) -> None:
    before = agents.state()
    state = tmp_path / "state"
    with screen(state) as shown:
        switch_on(shown)
        assert until(lambda: holds(state) == {"guard", "home"}, 20), shown.seen()
        assert agents.state() != before
        strike(whom, shown, state)
        if whom == "everything":
            all_ended(state)
            assert agents.state() != before
            assert "affinity of tid" in restore(state)
        assert until(lambda: agents.state() == before, RESTORED_S), agents.state()
        if whom == "engine":
            assert shown.wait(10) == 2
            assert b"agenttop: the engine ended (signal 9)" in shown.output
        if whom == "guardian":
            shown.until("guardian was killed")
            shown.type("q")
            assert shown.wait(10) == 0
        all_ended(state)
        assert not (state / "journal").exists()
        if whom in ("engine", "guardian"):
            assert shown.settings_now() == shown.settings


def test_a_stopped_engine_loses_its_policies(tmp_path: Path, agents: Agents) -> None:
    before = agents.state()
    state = tmp_path / "state"
    with screen(state) as shown:
        switch_on(shown)
        assert until(lambda: holds(state) == {"guard", "home"}, 20), shown.seen()
        os.kill(shown.engine(), signal.SIGSTOP)
        assert until(lambda: agents.state() == before, EXPIRED_S), agents.state()


def test_the_next_start_repairs(tmp_path: Path, agents: Agents) -> None:
    before = agents.state()
    state = tmp_path / "state"
    with screen(state) as shown:
        switch_on(shown)
        assert until(lambda: holds(state) == {"guard", "home"}, 20), shown.seen()
        strike("everything", shown, state)
        all_ended(state)
        assert agents.state() != before
        with screen(state) as successor:
            assert until(lambda: agents.state() == before, 20), successor.seen()


@pytest.mark.parametrize("how", ["TERM", "HUP", "INT", "the line drops", "q"])
def test_an_end_gives_everything_back(how: str, tmp_path: Path, agents: Agents) -> None:
    before = agents.state()
    state = tmp_path / "state"
    with screen(state) as shown:
        switch_on(shown)
        assert until(lambda: holds(state) == {"guard", "home"}, 20), shown.seen()
        if how == "q":
            shown.type("q")
            expected = 0
        elif how == "the line drops":
            shown.hang_up()
            expected = 128 + signal.SIGHUP
        else:
            number = getattr(signal, f"SIG{how}")
            os.kill(shown.pid, number)
            expected = 128 + number
        assert until(lambda: agents.state() == before, 5), agents.state()
        assert shown.wait(10) == expected
        all_ended(state)
        assert not (state / "journal").exists()
        assert b"Traceback" not in shown.output
        if how != "the line drops":
            assert shown.settings_now() == shown.settings
            assert b"\x1b[?1049l" in shown.output

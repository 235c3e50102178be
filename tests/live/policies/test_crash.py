"""Whatever is killed or stopped, and whenever: every setting is as it was before."""

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
from tests.support.places import ROOT
from tests.support.policy_rig import (
    Victim,
    machine,
    needs_qos,
    needs_root,
    needs_two_cpus,
    until,
    victims,
)

pytestmark = [needs_root, needs_qos, needs_two_cpus]


@pytest.fixture
def victim() -> Iterator[Victim]:
    with victims() as victim:
        yield victim


class Owner:
    """policy_owner.py at work, in a process group of its own."""

    def __init__(self, state: Path, victim: Victim, seed: str) -> None:
        self.state = state
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.policy_owner", str(state), str(victim.pid), seed],
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.read_until(" on")

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return line
        raise AssertionError(f"the owner ended before it said {text!r}")

    def guardian(self) -> int:
        found = lock.owner(str(self.state))
        return found.guardian if found else 0

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert until(lambda: lock.owner(str(self.state)) is None, 3), "the guardian lives on"


@contextlib.contextmanager
def owners(state: Path, victim: Victim, seed: str) -> Iterator[Owner]:
    owner = Owner(state, victim, seed)
    try:
        yield owner
    finally:
        owner.end()


def kill(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def restore(state: Path) -> str:
    return subprocess.run(
        [sys.executable, "-m", "agenttop", "restore"],
        env={**os.environ, "AGENTTOP_STATE": str(state), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("whom", ["owner", "group", "both"])
def test_sigkill_at_random_moments(whom: str, tmp_path: Path, victim: Victim) -> None:
    chance = random.Random()
    before = machine(victim)
    changed = 0
    for turn in range(10):
        state = tmp_path / f"{whom}{turn}"
        seed = str(chance.random())
        with owners(state, victim, seed) as owner:
            time.sleep(chance.random() * 0.25)
            changed += machine(victim) != before
            if whom == "both":
                kill(owner.guardian())
            if whom == "group":
                os.killpg(owner.process.pid, signal.SIGKILL)
            else:
                owner.process.kill()
            if whom == "both":
                owner.process.wait()
                restore(state)
            assert until(lambda: machine(victim) == before, 1.0), (
                f"seed {seed}: {machine(victim)} instead of {before}"
            )
            assert until(lambda: lock.owner(str(state)) is None, 1.0)  # noqa: B023
            assert not (state / "journal").exists()
    assert changed, "the policies were never on: the test proves nothing"


def test_sigkill_of_the_guardian_at_random_moments(tmp_path: Path, victim: Victim) -> None:
    chance = random.Random()
    before = machine(victim)
    changed = 0
    for turn in range(10):
        state = tmp_path / str(turn)
        seed = str(chance.random())
        with owners(state, victim, seed) as owner:
            time.sleep(chance.random() * 0.25)
            changed += machine(victim) != before
            owner.process.send_signal(signal.SIGUSR1)
            # It may just be changing from one guardian to the next: that one is killed too.
            killed, deadline = 0, time.monotonic() + 1.0
            while machine(victim) != before or (state / "journal").exists():
                if (guardian := owner.guardian()) not in (0, killed) and kill(guardian):
                    killed, deadline = guardian, time.monotonic() + 1.0
                assert time.monotonic() < deadline, (
                    f"seed {seed}: {machine(victim)} instead of {before}"
                )
                time.sleep(0.005)
    assert changed, "the policies were never on: the test proves nothing"


def test_a_stopped_engine_loses_its_policies_and_learns_of_it(
    tmp_path: Path, victim: Victim
) -> None:
    before = machine(victim)
    with owners(tmp_path / "state", victim, "steady") as owner:
        owner.read_until("home on")
        assert until(lambda: machine(victim) != before, 1)
        owner.process.send_signal(signal.SIGSTOP)
        assert until(lambda: machine(victim) == before, 2.0)
        owner.process.send_signal(signal.SIGCONT)
        assert "agenttop was stopped" in owner.read_until("warning")
        assert machine(victim) == before


def test_a_stopped_guardian_is_replaced_by_the_engine(tmp_path: Path, victim: Victim) -> None:
    before = machine(victim)
    with owners(tmp_path / "state", victim, "steady") as owner:
        owner.read_until("home on")
        os.kill(owner.guardian(), signal.SIGSTOP)
        assert "the guardian was stopped" in owner.read_until("warning")
        assert machine(victim) == before


def test_sigterm_to_the_guardian_gives_everything_back(tmp_path: Path, victim: Victim) -> None:
    before = machine(victim)
    with owners(tmp_path / "state", victim, "steady") as owner:
        owner.read_until("home on")
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(owner.guardian(), number)
        assert machine(victim) != before
        os.kill(owner.guardian(), signal.SIGTERM)
        assert "was told to end" in owner.read_until("warning")
        assert machine(victim) == before


def test_the_next_start_repairs_and_says_so(tmp_path: Path, victim: Victim) -> None:
    before = machine(victim)
    state = tmp_path / "state"
    with owners(state, victim, "steady") as owner:
        owner.read_until("home on")
        kill(owner.guardian())
        owner.process.kill()
        owner.process.wait()
        assert machine(victim) != before
        with owners(state, victim, "steady") as successor:
            assert successor.guardian()
        assert until(lambda: machine(victim) == before, 1.0)


def test_children_that_inherited_a_home_are_set_free(tmp_path: Path, victim: Victim) -> None:
    every = os.sched_getaffinity(0)
    with owners(tmp_path / "state", victim, "steady") as owner:
        owner.read_until("home on")
        assert until(lambda: all(len(mask) == 1 for mask in victim.masks().values()), 2)
        _, child = victim.spawn()
        assert len(os.sched_getaffinity(child)) == 1
        # Killed before or after the owner saw them.
        owner.process.kill()
        assert until(lambda: os.sched_getaffinity(child) == every, 1.0)
        assert all(mask == every for mask in victim.masks().values())


def test_restore_refuses_while_the_owner_lives(tmp_path: Path, victim: Victim) -> None:
    with owners(tmp_path / "state", victim, "steady") as owner:
        owner.read_until("home on")
        with pytest.raises(subprocess.CalledProcessError) as error:
            restore(tmp_path / "state")
        assert error.value.returncode == 2
        assert f"pid {owner.process.pid} " in error.value.stderr


def test_restore_says_what_it_did(tmp_path: Path, victim: Victim) -> None:
    state = tmp_path / "state"
    assert restore(state) == "nothing to restore\n"
    with owners(state, victim, "steady") as owner:
        owner.read_until("home on")
        kill(owner.guardian())
        owner.process.kill()
        owner.process.wait()
        theirs = victim.tids()[0]
        others = set(os.sched_getaffinity(0)) - os.sched_getaffinity(theirs)
        os.sched_setaffinity(theirs, others)
        said = restore(state)
        assert f"tid {theirs} " in said
        assert "changed by another process since" in said
        assert os.sched_getaffinity(theirs) == others
        ours = victim.tids()[1]
        assert f"affinity of tid {ours} " in said
        assert len(os.sched_getaffinity(ours)) > 1
        assert restore(state) == "nothing to restore\n"

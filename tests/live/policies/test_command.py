"""agenttop policy and agenttop restore, as a user types them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.policies.catalog import POLICIES
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

real = [needs_root, needs_qos, needs_two_cpus]


class Shell:
    """Runs agenttop with a state directory of the test."""

    def __init__(self, state: Path) -> None:
        self.env = {
            **os.environ,
            "AGENTTOP_STATE": str(state),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """``before``: what starts it, with its own arguments."""
        return subprocess.Popen(
            [*before, sys.executable, "-m", "agenttop", *arguments],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def apply(self, victim: Victim, seconds: str = "30") -> subprocess.Popen[str]:
        """Both policies on, for so long."""
        process = self.start(
            "policy", "apply", "guard", "home", "--for", seconds, "--agent", f"pid:{victim.pid}"
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("home on"):
                return process
        raise AssertionError(process.communicate())


@pytest.fixture
def victim() -> Iterator[Victim]:
    with victims() as victim:
        yield victim


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "state")


def test_list(shell: Shell) -> None:
    code, out, err = shell.run("policy", "list")
    assert (code, err) == (0, "")
    policies, _, bundles = out.partition("\n\n")
    assert [line.split()[0] for line in policies.splitlines()] == list(POLICIES)
    assert bundles.startswith("agent-window ")


@pytest.mark.live
def test_at_rest(shell: Shell, tmp_path: Path) -> None:
    assert shell.run("policy", "status")[:2] == (0, "no policy is applied\n")
    assert shell.run("policy", "revert")[:2] == (0, "no policy is applied\n")
    assert shell.run("restore")[:2] == (0, "nothing to restore\n")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["policy"],
        ["policy", "apply", "guard"],
        ["policy", "apply", "guard", "--for", "never"],
        ["policy", "apply", "guard", "--for", "-1"],
        ["policy", "apply", "turbo", "--for", "1"],
        ["policy", "revert", "turbo"],
        ["policy", "plan", "guard", "--set", "guard.limit_us=0"],
        ["policy", "plan", "guard", "--agent", "pid:x"],
        ["policy", "plan", "guard", "--agents", "/nowhere.yaml"],
        ["restore", "now"],
    ],
)
def test_a_mistake_is_one_line(shell: Shell, arguments: list[str]) -> None:
    code, out, err = shell.run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("agenttop: ")
    assert err.count("\n") == 1


def test_headless_needs_no_screen() -> None:
    code = (
        "import sys, agenttop.commands.policy, agenttop.commands.restore;"
        "print([m for m in sys.modules if m.split('.')[0] in ('textual', 'rich', 'numpy')])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert out == "[]\n"


class TestOnTheKernel:
    pytestmark = real

    def test_plan_touches_nothing(self, shell: Shell, victim: Victim, tmp_path: Path) -> None:
        before = machine(victim)
        code, out, err = shell.run(
            "policy", "plan", "guard", "home", "--agent", f"pid:{victim.pid}"
        )
        assert (code, err) == (0, "")
        assert "0 -> n/a" in out or "/dev/cpu_dma_latency: none -> " in out
        assert f"affinity of tid {victim.tids()[-1]} " in out
        assert machine(victim) == before
        assert not (tmp_path / "state").exists()

    def test_apply_ends_by_itself_and_says_what_it_did(self, shell: Shell, victim: Victim) -> None:
        before = machine(victim)
        process = shell.apply(victim, "0.5")
        assert machine(victim) != before
        out, err = process.communicate(timeout=10)
        assert process.returncode == 0
        assert err == ""
        assert "home off" in out
        for tid in victim.tids()[1:]:
            assert f"affinity of tid {tid} " in out
        assert machine(victim) == before

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_signals_end_it_in_order(
        self, shell: Shell, victim: Victim, number: signal.Signals
    ) -> None:
        before = machine(victim)
        process = shell.apply(victim)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=10)
        assert process.returncode == 0
        assert err == ""
        assert "restored" in out
        assert machine(victim) == before

    def test_a_reader_that_goes_away_does_not_keep_it_from_reverting(
        self, shell: Shell, victim: Victim
    ) -> None:
        before = machine(victim)
        process = shell.apply(victim)
        assert process.stdout is not None
        process.stdout.close()
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stderr.close()
        assert machine(victim) == before

    def test_status_and_revert_from_another_terminal(self, shell: Shell, victim: Victim) -> None:
        before = machine(victim)
        process = shell.apply(victim)
        _, out, _ = shell.run("policy", "status")
        assert f"held by agenttop with pid {process.pid}, guardian " in out
        assert "  home: affinity of tid " in out
        code, out, _ = shell.run("policy", "revert", "home")
        assert code == 0
        assert out.endswith("reverted home\n")
        assert victim.masks() == before["masks"]
        assert machine(victim) != before
        assert process.poll() is None
        code, out, _ = shell.run("policy", "revert")
        assert (code, out.splitlines()[-1]) == (0, "reverted guard")
        assert machine(victim) == before
        out, _ = process.communicate(timeout=5)
        assert process.returncode == 1
        assert "reverted by 'agenttop policy revert'" in out

    def test_a_bundle_is_reverted_whole(self, shell: Shell, victim: Victim) -> None:
        before = machine(victim)
        process = shell.apply(victim)
        code, out, _ = shell.run("policy", "revert", "quiet-home")
        assert (code, out.splitlines()[-1]) == (0, "reverted home")
        assert victim.masks() == before["masks"]
        assert machine(victim) != before
        code, out, _ = shell.run("policy", "revert", "all-safe")
        assert (code, out) == (0, "all-safe holds nothing\n")
        process.terminate()
        process.communicate(timeout=10)

    def test_a_second_apply_is_refused(self, shell: Shell, victim: Victim) -> None:
        process = shell.apply(victim)
        code, _, err = shell.run(
            "policy", "apply", "guard", "--for", "1", "--agent", f"pid:{victim.pid}"
        )
        assert code == 2
        assert f"agenttop with pid {process.pid} holds the policies" in err
        process.terminate()
        process.communicate(timeout=10)

    def test_killed_with_everything_else_restore_repairs(
        self, shell: Shell, victim: Victim
    ) -> None:
        before = machine(victim)
        process = shell.apply(victim)
        guardian = int(shell.run("policy", "status")[1].split("guardian ")[1].split()[0])
        os.kill(guardian, signal.SIGKILL)
        process.kill()
        process.communicate()
        if machine(victim) != before:
            assert "'agenttop restore' puts it back" in shell.run("policy", "status")[1]
            code, out, _ = shell.run("restore")
            assert code == 0
            assert "affinity of tid" in out
        assert machine(victim) == before
        assert shell.run("restore")[1] == "nothing to restore\n"

    def test_without_agents_it_waits_for_one(self, shell: Shell) -> None:
        mark = f"late-agent-{os.getpid()}"
        process = shell.start("policy", "apply", "home", "--for", "20", "--agent", f"cmd:{mark}$")
        time.sleep(1.0)
        code = "import time\nwhile True: time.sleep(0.002)"
        late = subprocess.Popen([sys.executable, "-c", code, mark])
        try:
            assert until(lambda: len(os.sched_getaffinity(late.pid)) == 1, 6)
            process.terminate()
            process.communicate(timeout=10)
            assert os.sched_getaffinity(late.pid) == os.sched_getaffinity(0)
        finally:
            late.kill()
            late.wait()

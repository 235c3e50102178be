"""agenttop policy apply with the latency window, --readonly, and what is left out."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.commands.policy_apply import Budgets
from agenttop.model.sample import Budget, PolicyStatus
from agenttop.policies.base import Agent, Targets
from agenttop.policies.knobs.base import RESUME_LATENCY, cpu_set
from tests.live.policies.test_command import Shell
from tests.support.engines import needs_bpf
from tests.support.loops import Loop, loop
from tests.support.policy_rig import machine_lock, needs_qos, needs_root, until

#: It closes HLT too, so that there is something to hold on a virtual machine.
WINDOW = ("--set", "window.limit_us=1")
BUDGET = re.compile(
    r"  window: .+: ([\d,]+) of ([\d,]+) tokens, ([\d,]+) grants, ([\d,]+) refusals(.*)"
)
#: Without what BPF asks for, root otherwise; tracefs is mounted, as almost everywhere.
NO_BPF = (
    *("unshare", "-m", "sh", "-c"),
    'mount -t tracefs none /sys/kernel/tracing 2>&-; exec setpriv "$@"',
    *("sh", "--bounding-set", "-sys_admin,-bpf,-perfmon"),
    *("--inh-caps", "-sys_admin,-bpf,-perfmon"),
)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with machine_lock():
        before = limits()
        yield Shell(tmp_path / "state")
        assert limits() == before


def limits() -> dict[str, str | None]:
    return {f"cpu{cpu}": RESUME_LATENCY.read(f"cpu{cpu}") for cpu in sorted(cpu_set("online"))}


def armed() -> bool:
    return any(value not in ("0", None) for value in limits().values())


def begun(process: subprocess.Popen[str]) -> None:
    """Wait until the window is on and an agent holds it."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("window on: "):
            break
    assert until(armed, 10)


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    """Its exit code, the lines that followed, and its errors."""
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        lines = process.stdout.read().splitlines()
        err = process.stderr.read()
    return process.wait(10), lines, err


def budget(lines: list[str]) -> re.Match[str]:
    """The agent with the most grants; a thread that opted in elsewhere is one too."""
    found = [match for line in lines if (match := BUDGET.fullmatch(line))]
    assert found, lines
    return found[0]


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.bpf
@needs_root
@needs_qos
class TestWindow:
    @pytest.fixture(autouse=True)
    def kernel_side(self) -> None:
        needs_bpf()

    @pytest.fixture
    def agent(self) -> Iterator[Loop]:
        with loop("--interval-us", 2000, "--for", 90) as one:
            one.go()
            yield one

    def test_it_is_held_and_its_budget_is_told(self, shell: Shell, agent: Loop) -> None:
        process = shell.start(
            *("policy", "apply", "window", "--for", "3", "--agent", f"pid:{agent.pid}", *WINDOW)
        )
        begun(process)
        code, lines, err = ended(process)
        assert (code, err) == (0, "")
        held = [line for line in lines if "pm_qos_resume_latency_us: 0 -> " in line]
        assert held
        assert all(line.endswith(" while a window is open") for line in held)
        assert f"window off: {len(held)} restored" in lines
        tokens, capacity, grants, refusals = map(number, budget(lines).groups()[:4])
        assert 0 <= tokens <= capacity == 2000
        assert grants > 100
        assert refusals == 0

    def test_an_agent_that_asks_too_often_is_said_to_be_throttled(
        self, shell: Shell, agent: Loop
    ) -> None:
        small = 'window.budget={"capacity": 20, "refill_per_s": 20}'
        code, out, _ = shell.run(
            *("policy", "apply", "window", "--for", "3", "--agent", f"pid:{agent.pid}"),
            *(*WINDOW, "--set", small),
        )
        assert code == 0
        assert "is throttled, its budget is empty" in out
        found = budget(out.splitlines())
        assert number(found[4]) > number(found[3]) > 0
        assert re.fullmatch(r", throttled [\d,]+ times for \S+ together", found[5])

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it_in_order(
        self, shell: Shell, agent: Loop, number: signal.Signals
    ) -> None:
        process = shell.start(
            *("policy", "apply", "window", "--for", "60", "--agent", f"pid:{agent.pid}", *WINDOW)
        )
        begun(process)
        process.send_signal(number)
        code, lines, err = ended(process)
        assert (code, err) == (0, "")
        assert any(line.startswith("window off: ") for line in lines)
        assert budget(lines)

    def test_killed_and_the_guardian_gives_it_back(self, shell: Shell, agent: Loop) -> None:
        process = shell.start(
            *("policy", "apply", "window", "--for", "60", "--agent", f"pid:{agent.pid}", *WINDOW)
        )
        begun(process)
        process.kill()
        assert until(lambda: not armed(), 2)
        ended(process)
        assert until(lambda: shell.run("policy", "status")[1] == "no policy is applied\n", 5)

    def test_taken_back_from_another_terminal(self, shell: Shell, agent: Loop) -> None:
        process = shell.start(
            *("policy", "apply", "window", "--for", "60", "--agent", f"pid:{agent.pid}", *WINDOW)
        )
        begun(process)
        assert shell.run("policy", "revert", "window")[0] == 0
        code, lines, _ = ended(process)
        assert code == 1
        assert any("reverted by 'agenttop policy revert'" in line for line in lines)
        assert budget(lines)

    def test_plan_and_show_tell_what_it_would_write(self, shell: Shell, agent: Loop) -> None:
        for action in ("plan", "show"):
            code, out, err = shell.run(
                *("policy", action, "window", "--agent", f"pid:{agent.pid}", *WINDOW)
            )
            assert (code, err) == (0, "")
            assert "pm_qos_resume_latency_us: 0 -> " in out
            assert "while a window is open" in out
        assert not Path(shell.env["AGENTTOP_STATE"]).exists()

    def test_a_bundle_with_a_window(self, shell: Shell, agent: Loop) -> None:
        code, out, _ = shell.run(
            *("policy", "apply", "agent-window", "--for", "2", "--agent", f"pid:{agent.pid}")
        )
        assert code == 0
        assert "window on: " in out
        assert "home on: " in out
        assert budget(out.splitlines())


@needs_root
@needs_qos
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv here")
class TestWithoutBpf:
    def run(self, shell: Shell, *arguments: str) -> tuple[int, str, str]:
        process = shell.start("policy", *arguments, before=NO_BPF)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def test_the_window_says_why_not_in_one_line(self, shell: Shell) -> None:
        code, out, err = self.run(shell, "apply", "window", "--for", "1")
        assert (code, out) == (2, "")
        assert err.startswith("agenttop: window: needs step chains: they need BPF: ")
        assert err.count("\n") == 1

    def test_a_bundle_goes_on_without_it(self, shell: Shell) -> None:
        with loop("--interval-us", 2000, "--for", 60) as one:
            one.go()
            code, out, err = self.run(
                shell, "apply", "agent-window", "--for", "0.5", "--agent", f"pid:{one.pid}"
            )
        assert code == 0
        assert err.startswith("agenttop: left out window: needs step chains: ")
        assert "home on: " in out
        assert "window" not in out

    def test_the_list_says_why(self, shell: Shell) -> None:
        code, out, _ = self.run(shell, "list")
        assert code == 0
        (line,) = (line for line in out.splitlines() if line.startswith("window "))
        assert "n/a: needs step chains: they need BPF" in line


@needs_root
def test_a_window_is_not_kept(shell: Shell) -> None:
    code, out, err = shell.run("policy", "apply", "window", "--keep")
    assert (code, out) == (2, "")
    assert err.startswith("agenttop: window: cannot be kept")
    assert err.count("\n") == 1


def test_budgets_of_agents_that_have_ended_are_told_too() -> None:
    class Manager:
        def __init__(self) -> None:
            throttled = Budget(0.4, 10, 7, 3, True, 2, 1_500_000_000)
            self.budgets = {"1": Budget(tokens=5, capacity=10, grants=1), "2": throttled}

        def is_on(self, name: str) -> bool:
            return True

        def status(self) -> list[PolicyStatus]:
            return [PolicyStatus("window", "w", "", "on", budgets=self.budgets)]

    manager, budgets = Manager(), Budgets()
    budgets.take(manager, Targets(0, (Agent(1, "one"), Agent(2, "t\x1bwo"))))  # type: ignore[arg-type]
    manager.budgets = {"1": Budget(tokens=4, capacity=10, grants=2)}
    budgets.take(manager, Targets(0, (Agent(1, "one"),)))  # type: ignore[arg-type]
    two, one = budgets.lines()
    assert one == "  window: one: 4 of 10 tokens, 2 grants, 0 refusals"
    assert two.endswith(
        ": 0 of 10 tokens, 7 grants, 3 refusals, throttled 2 times for 1.50s together"
    )
    assert "\x1b" not in two


# --------------------------------------------------------------------------- --readonly


@pytest.mark.parametrize(
    "arguments",
    [
        ["policy", "--readonly", "apply", "guard", "--for", "1"],
        ["policy", "apply", "guard", "--for", "1", "--readonly"],
        ["policy", "apply", "vfs", "--keep", "--readonly"],
        ["policy", "--readonly", "trial", "guard"],
        ["policy", "--readonly", "revert"],
        ["policy", "revert", "guard", "--readonly"],
        ["restore", "--readonly"],
    ],
)
def test_readonly_refuses_what_writes(shell: Shell, arguments: list[str]) -> None:
    code, out, err = shell.run(*arguments)
    assert (code, out) == (2, "")
    assert "refused, --readonly writes nothing" in err
    assert err.count("\n") == 1
    assert not Path(shell.env["AGENTTOP_STATE"]).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["policy", "--readonly", "list"],
        ["policy", "status", "--readonly"],
        pytest.param(["policy", "--readonly", "plan", "vfs"], marks=needs_root),
        pytest.param(["policy", "show", "vfs", "--readonly"], marks=needs_root),
    ],
)
def test_readonly_lets_look(shell: Shell, arguments: list[str]) -> None:
    code, out, _ = shell.run(*arguments)
    assert code == 0
    assert out
    assert not Path(shell.env["AGENTTOP_STATE"]).exists()

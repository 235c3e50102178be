"""What the checks inside the lab share: results, waiting, the loop that is the agent, policies.

Time here is an emulator's: checks wait for things to happen and never measure
how long they take.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agenttop.errors import UserError  # noqa: E402
from agenttop.linux.cgroup_mounts import cgroup2_mount  # noqa: E402
from agenttop.model.sample import AgentCounters, PolicyStatus, Sample  # noqa: E402
from agenttop.policies.base import Agent, Cpu, Targets, Thread  # noqa: E402
from agenttop.policies.manager import PolicyManager  # noqa: E402

CPUS: Final = Path("/sys/devices/system/cpu")
#: The CPU that the agent lives on.
CPU: Final = 1
QOS: Final = CPUS / f"cpu{CPU}/power/pm_qos_resume_latency_us"
FREQ: Final = CPUS / f"cpufreq/policy{CPU}"
NVME: Final = Path("/sys/block/nvme0n1/queue")
LIMIT_US: Final = 50
#: An emulated CPU that gets a part of a busy one may need this for what takes a second elsewhere.
PATIENCE_S: Final = 120.0

_out = open(sys.argv[1], "a", buffering=1)  # noqa: SIM115
#: When the last line was written; CLOCK_MONOTONIC begins with the guest.
_last = 0.0
#: The process that is the agent: ``agenttop loop``.
Loop = subprocess.Popen[bytes]
Check = Callable[[Loop], None]
checks: list[Check] = []


class Skip(Exception):  # noqa: N818
    """The check cannot run on this kernel."""


def report(word: str, name: str, text: str) -> None:
    """A line of the results, with the time since the last one."""
    global _last
    now = time.monotonic()
    _out.write(f"{word:<4} {name}: {text} ({now - _last:.0f} s)\n")
    _last = now


def end() -> None:
    """All checks were run."""
    _out.write("end\n")


def check(function: Check) -> None:
    """Register a check; the first word of its name is what ``--only`` calls it."""
    checks.append(function)


def attempt(name: str, run: Callable[[], None]) -> None:
    """Run a check, or a part of one, and report what ends it."""
    try:
        run()
    except Skip as reason:
        report("skip", name, str(reason))
    except (AssertionError, OSError, UserError, StopIteration) as error:
        report("FAIL", name, " ".join(str(error).split()) or repr(error))


def text(path: Path) -> str:
    return path.read_text().strip()


def wait(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.2)


def deep(on: bool) -> None:
    """C2 and C3 are entered by a port read that returns at once: open, they slow the guest."""
    for file in CPUS.glob("cpu[0-9]*/cpuidle/state[23]/disable"):
        file.write_text("0" if on else "1")


def entries() -> int:
    """Entries into C2 and C3 of the agent's CPU."""
    return sum(int(text(CPUS / f"cpu{CPU}/cpuidle/state{n}/usage")) for n in (2, 3))


def deep_entries(seconds: float = 2.0, meanwhile: Callable[[], object] = lambda: None) -> int:
    """Entries within some seconds; ``meanwhile`` is called again and again (to renew a lease)."""

    def pause(length: float) -> None:
        end = time.monotonic() + length
        while time.monotonic() < end:
            meanwhile()
            time.sleep(0.1)

    deep(True)
    pause(0.3)  # an entry that was decided before
    before = entries()
    pause(seconds)
    after = entries()
    deep(False)
    return after - before


def first_entries(what: str) -> int:
    """Entries, looked for until there are some: a busy machine leaves the guest no idle time."""
    found = 0

    def some() -> bool:
        nonlocal found
        found = deep_entries()
        return found > 0

    wait(some, what)
    return found


def targets(loop: Loop, steps: int = 1000) -> Targets:
    agent = Agent(
        1, "labloop", (loop.pid,), (Thread(loop.pid, loop.pid, CPU, steps),), {CPU: steps}
    )
    return Targets(time.monotonic_ns(), (agent,), tuple(Cpu(n) for n in range(2)))


class Held:
    """A policy switched on for a block, renewed meanwhile."""

    def __init__(self, loop: Loop, name: str, **params: object) -> None:
        self._state = tempfile.TemporaryDirectory()
        self._manager = PolicyManager(Path(self._state.name) / "s", settings={name: params})
        self._loop, self._name = loop, name

    def __enter__(self) -> Held:
        if reason := self._manager.reason(self._name):
            raise Skip(reason)
        wait(self._on, "a guardian that starts")
        return self

    def _on(self) -> bool:
        """Switch it on; on a busy machine the emulator may not start a guardian in its time."""
        events = self._manager.set(self._name, True, targets(self._loop))
        wrong = [event.text for event in events if event.kind == "error"]
        late = any("guardian process did not start" in text for text in wrong)
        assert late or not wrong, wrong[0]
        return not late

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        def renewed() -> bool:
            self.renew()
            return condition()

        wait(renewed, what)

    def renew(self) -> None:
        self._manager.tick(targets(self._loop))

    def __exit__(self, *_: object) -> None:
        events = self._manager.close()
        self._state.cleanup()
        wrong = [event.text for event in events if event.kind in ("warning", "error")]
        assert not wrong, "; ".join(wrong)


@contextmanager
def cgroup(name: str, *command: str) -> Iterator[tuple[Path, Loop]]:
    """A cgroup (v2) below the root, with one process in it, and all controllers."""
    mount = cgroup2_mount()
    if mount is None:
        mount = "/run/lab-cgroup"
        os.makedirs(mount, exist_ok=True)
        subprocess.run(["mount", "-t", "cgroup2", "none", mount], check=True)
    there = text(Path(mount) / "cgroup.controllers").split()
    for controller in ("cpu", "cpuset", "memory", "io"):
        if controller not in there:
            raise Skip(f"cgroup v2 has no {controller} controller here")
        (Path(mount) / "cgroup.subtree_control").write_text(f"+{controller}")
    folder = Path(mount) / name
    folder.mkdir()
    enter = f"echo $$ > {folder}/cgroup.procs && exec {shlex.join(command)}"
    child = subprocess.Popen(["sh", "-c", enter])
    try:
        wait(lambda: text(folder / "cgroup.procs") == str(child.pid), "the process in its cgroup")
        yield folder, child
    finally:
        child.kill()
        child.wait()
        wait(lambda: text(folder / "cgroup.procs") == "", "the end of the process")
        folder.rmdir()


def agent_of(sample: Sample, loop: Loop) -> AgentCounters | None:
    """The agent that the loop is."""
    return next((one for one in sample.agents if loop.pid == one.pid), None)


def status(sample: Sample, policy: str) -> PolicyStatus:
    return next(one for one in sample.policies if one.name == policy)

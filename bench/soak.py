"""Under churn: does a view's memory stay flat, and is what it shows new.

Fifty short agents a second, with threads and named steps that come and go, for 12 minutes
(AGENTTOP_SOAK_S: seconds). Meanwhile the machine is starved of CPU for a time, and the views are
stopped for a time. What a view shows is as old as its newest Sample was when it was printed, and
the time since; ages are those of ``agenttop -b``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from bench.processes import agenttop, peak_mb, rss_mb
from bench.report import Report
from bench.terminal import Terminal

SECONDS: Final = float(os.environ.get("AGENTTOP_SOAK_S", "720"))
RATE: Final = 50
DELAY_S: Final = 1.0
#: Memory of a view, MB, and how it may grow, MB a minute.
MOST_MB: Final = 150.0
FLAT: Final = 1.0
#: What is shown two delays after a disturbance is at most so old, s.
MOST_AGE_S: Final = 2 * DELAY_S
#: Each for so long, or for a sixth of a short run, s.
STARVED_S: Final = 60.0
STOPPED_S: Final = 20.0
#: Busy processes for each CPU while the machine is starved.
HOGS: Final = 8
EVERY_S: Final = 2.0
PATTERN: Final = "comm:^churnagent$"
_AGE: Final = re.compile(rb"sample age ~?([\d.,]+)(ns|\xc2\xb5s|us|ms|s)\b")
_UNITS: Final = {b"ns": 1e-9, b"\xc2\xb5s": 1e-6, b"us": 1e-6, b"ms": 1e-3, b"s": 1.0}


class Batch:
    """``agenttop -b``, and how old what it prints is."""

    def __init__(self) -> None:
        command = agenttop("-b", "-d", DELAY_S, "--agent", PATTERN)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.pid = self._process.pid
        #: When the newest block came, and how old its Sample was then.
        self._newest: tuple[float, float] | None = None
        self.blocks = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := _AGE.search(line):
                age = float(found[1].replace(b",", b"")) * _UNITS[found[2]]
                self._newest = (time.monotonic(), age)
                self.blocks += 1

    @property
    def age_s(self) -> float | None:
        """Of what is shown now; None before the first block."""
        newest = self._newest
        return None if newest is None else time.monotonic() - newest[0] + newest[1]

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """SIGTERM, so that its engine ends first."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()


@dataclass
class Found:
    """Memory over time, by process, and ages by phase."""

    #: Name -> (seconds since the start, MB).
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    #: Name -> the most that it had at any moment, MB.
    peak: dict[str, float] = field(default_factory=dict)
    #: Phase -> the greatest age while it lasted; and what was shown two delays after it.
    during: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)

    def slope(self, name: str) -> float:
        """Growth over the last two thirds, MB a minute."""
        points = self.memory[name]
        late = np.array([p for p in points if p[0] >= points[-1][0] / 3])
        return float(np.polyfit(late[:, 0] / 60, late[:, 1], 1)[0])


def run(report: Report, rounds: int) -> None:
    """One run, whatever ``rounds``: it is long."""
    found = soak(SECONDS, screen=True)
    for name in found.memory:
        view = "engine" not in name
        values = [mb for _, mb in found.memory[name]]
        report.add(f"{name}: peak", "MB", [found.peak[name]], MOST_MB if view else None)
        report.add(f"{name}: resident", "MB", values)
        report.add(f"{name}: growth", "MB/min", [found.slope(name)], FLAT if view else None)
    for phase in found.during:
        report.add(f"{phase}: oldest shown", "s", [found.during[phase]])
        report.add(f"{phase}: shown two delays later", "s", [found.after[phase]], MOST_AGE_S)


def soak(seconds: float, screen: bool) -> Found:
    """Churn for so long, with both disturbances in its second half."""
    found = Found()
    starved, stopped = min(STARVED_S, seconds / 6), min(STOPPED_S, seconds / 6)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        program = _compiled(folder)
        views: dict[str, int] = {}
        batch = Batch()
        stack.callback(batch.close)
        views["headless"] = batch.pid
        terminal = None
        if screen:
            terminal = Terminal(agenttop("-d", DELAY_S, "--agent", PATTERN), emulate=False)
            stack.callback(terminal.close)
            views["screen"] = terminal.pid
        while batch.blocks < 2:
            _pass(1.0, terminal)
            if not batch.alive:
                raise RuntimeError("agenttop -b ended")
        churn = subprocess.Popen([str(program), str(RATE), str(int(seconds + 60))])
        stack.callback(_end, churn)
        watch = _Watch(found, views, batch, terminal)
        quiet = (seconds - starved - stopped) / 3
        watch.for_(quiet, "churn")
        with _hogs():
            watch.for_(starved, "starved")
        watch.after("starved")
        watch.for_(quiet, "churn")
        with _stopped(views.values()):
            watch.for_(stopped, "stopped")
        watch.after("stopped")
        watch.for_(quiet, "churn")
        watch.after("churn")
    return found


class _Watch:
    """Takes figures while time passes."""

    def __init__(
        self, found: Found, views: dict[str, int], batch: Batch, terminal: Terminal | None
    ) -> None:
        self._found, self._batch, self._terminal = found, batch, terminal
        self._started = time.monotonic()
        self._pids = dict(views)
        for name, pid in views.items():
            if (engine := _child(pid)) is not None:
                self._pids[f"engine of {name}"] = engine

    def for_(self, seconds: float, phase: str) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._look(phase)
            _pass(min(left, EVERY_S), self._terminal)
        self._look(phase)

    def after(self, phase: str) -> None:
        """Of what is shown two delays later."""
        _pass(2 * DELAY_S, self._terminal)
        self._found.after[phase] = self._batch.age_s or 0.0

    def _look(self, phase: str) -> None:
        if not self._batch.alive:
            raise RuntimeError("agenttop -b ended")
        now = time.monotonic() - self._started
        for name, pid in self._pids.items():
            self._found.memory.setdefault(name, []).append((now, rss_mb(pid)))
            self._found.peak[name] = peak_mb(pid)
        age = self._batch.age_s or 0.0
        self._found.during[phase] = max(self._found.during.get(phase, 0.0), age)


def _pass(seconds: float, terminal: Terminal | None) -> None:
    if terminal is None:
        time.sleep(seconds)
        return
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        terminal.read(left)


def _child(pid: int) -> int | None:
    """The engine: a view's only child."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return None
    return int(children[0]) if children else None


@contextlib.contextmanager
def _hogs() -> Iterator[None]:
    """So many busy processes that everything else waits."""
    count = HOGS * len(os.sched_getaffinity(0))
    hogs = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in hogs:
            _end(hog)


@contextlib.contextmanager
def _stopped(pids: Iterable[int]) -> Iterator[None]:
    chosen = list(pids)
    for pid in chosen:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in chosen:
            os.kill(pid, signal.SIGCONT)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _compiled(folder: Path) -> Path:
    import agenttop

    source, target = Path(__file__).with_name("churn.c"), folder / "churn"
    include = Path(agenttop.__file__).parent
    command = ["cc", "-O2", "-Wall", "-pthread", "-I", str(include), "-o", str(target)]
    subprocess.run([*command, str(source)], check=True)
    return target

"""What a step marker costs its caller, from Python, watched and unwatched in turns."""

from __future__ import annotations

import subprocess
import sys

from bench import observers
from bench.pingpong import Observer
from bench.report import Report

CALLS = 5_000
#: The best of so many runs of CALLS counts.
CHUNKS = 20

#: Prints ns of a bare marker, of one with a name, and of a whole ``with`` block.
_PROGRAM = f"""
import ctypes, time
from agenttop import step

named = ctypes.byref(step._context("retrieve", 0))
block = step.step("retrieve")

def bare(call=step._prctl, marker=step.MARKER):
    for i in range(1, {CALLS}): call(marker, i, 1, 0, 0)

def with_name(call=step._prctl, marker=step.MARKER):
    for i in range(1, {CALLS}): call(marker, i, 1, 0, named)

def whole():
    for _ in range({CALLS}):
        with block: pass

input("ready\\n")
for function in (bare, with_name, whole):
    function()  # the name has its place, the caches are warm
    times = []
    for _ in range({CHUNKS}):
        start = time.thread_time_ns()
        function()
        times.append(time.thread_time_ns() - start)
    # Neighbours of a virtual CPU only ever add.
    print(min(times) / {CALLS})
"""


def run(report: Report, rounds: int) -> None:
    """ns per call; the untouched call is the same one while nobody watches."""
    found: dict[tuple[str, str], list[float]] = {}
    watchers: dict[str, Observer] = {
        "nobody watches": lambda: observers.nobody(),
        "lite": lambda: observers.agenttop("lite", True),
        "full": lambda: observers.agenttop("full", True),
    }
    for _ in range(rounds):
        for watcher, observer in watchers.items():
            for what, ns in zip(
                ("marker", "named marker", "with block"), _time(observer), strict=True
            ):
                found.setdefault((what, watcher), []).append(ns)
    for (what, watcher), values in found.items():
        report.add(f"{what}, {watcher}", "ns", values, None if what == "with block" else 1000)


def _time(observer: Observer) -> list[float]:
    with observer() as adopt:
        child = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        child.stdout.readline()
        adopt(child.pid)
        out, _ = child.communicate("\n")
        return [float(line) for line in out.split()]

"""What observing each cause costs: the loop's own time of it, with the cause off and on in turns.

Both times the chain's programs run and the loop is the agent. Causes of the stages before compute
are no work of the loop's own: of those, what their programs take in a step. And what all of them
together cost a ping-pong, which does nothing but wake and be woken.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from agenttop.collectors.bpf.load.loader import Loading
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.model.vocabulary import CAUSE_NAMES, CAUSES
from bench.observers import Adopt
from bench.pingpong import compile_c, ping_pong
from bench.processes import agenttop
from bench.report import Report

SLOT, STEPS = 1, 400
#: Compaction and a quota take so long that nothing can be told from them.
MADE = (
    *("minor_fault", "major_fault", "page_cache_miss", "lock", "reclaim", "file_metadata"),
    *("cold_metadata", "block_in_compute"),
)
#: Causes that are what a gate waits for: the loop's own median of the gate stands for them.
AWAITED = {"block": ("--gate", "read", "--source", "block")}
#: Causes of how a completion was delivered and the thread came to run, and the loop that has them.
DELIVERED = {
    "interrupt": ("--gate", "sleep"),
    "timer": ("--gate", "sleep"),
    "softirq": ("--source", "tcp"),
    "network": ("--source", "tcp"),
    "socket": ("--source", "tcp"),
    "workqueue": ("--source", "kworker"),
    "io_uring": ("--gate", "io_uring", "--source", "timer"),
    "idle": ("--gate", "sleep"),
    "placement": ("--cause", "placement", "--interval-us", "4000"),
    "ran_meanwhile": ("--cause", "ran_meanwhile", "--interval-us", "4000"),
    "avoidable_wait": ("--cause", "avoidable_wait", "--interval-us", "4000"),
}


def run(report: Report, rounds: int) -> None:
    """Medians in us of the cause itself, and ns of one run of its programs."""
    tracer = Tracer(Loading("lite").result())
    try:
        tracer.causes.want(CAUSE_NAMES)
        tracer.causes.finish()
        found: dict[tuple[str, bool], list[float]] = {}
        for _ in range(rounds):
            for cause in (*MADE, *AWAITED):
                for on in (False, True):
                    tracer.causes.want((cause,) if on else ())
                    found.setdefault((cause, on), []).append(_own_us(tracer, cause))
        for cause in (*MADE, *AWAITED):
            off, on = found[cause, False], found[cause, True]
            report.add(f"{cause}, off", "us", off)
            report.add(f"{cause}, observed", "us", on)
            report.add(
                f"{cause}, observed to off", "", [b / a for a, b in zip(off, on, strict=True)]
            )
            ran = _ran(tracer, cause, AWAITED.get(cause, ("--cause", cause)))
            report.add(f"{cause}, a run of its programs", "ns", [ran.run_ns])
        for cause, options in DELIVERED.items():
            found_in = [_ran(tracer, cause, options) for _ in range(rounds)]
            report.add(f"{cause}, a run of its programs", "ns", [one.run_ns for one in found_in])
            report.add(f"{cause}, its programs in a step", "ns", [one.step_ns for one in found_in])
        for name, ratios in _ping_pongs(tracer, rounds).items():
            report.add(f"ping-pong as an agent, causes {name} to off", "x", ratios)
    finally:
        tracer.close()


def _ping_pongs(tracer: Tracer, rounds: int) -> dict[str, list[float]]:
    """All causes of a level to none, each between two runs without."""
    choices = {
        "lite": [cause.name for cause in CAUSES if cause.level == "lite"],
        "full": CAUSE_NAMES,
    }
    ratios: dict[str, list[float]] = {name: [] for name in choices}

    @contextmanager
    def observing(names: Sequence[str]) -> Iterator[Adopt]:
        tracer.causes.want(names)
        tracer.clear(SLOT)
        yield lambda pid: tracer.assign({pid: SLOT}, {})

    with tempfile.TemporaryDirectory() as folder:
        program = compile_c(Path(__file__).with_name("pingpong.c"), Path(folder))
        for _ in range(rounds):
            for name, names in choices.items():
                before, seen, after = (
                    ping_pong(program, lambda wanted=wanted: observing(wanted))
                    for wanted in ((), names, ())
                )
                ratios[name].append(2 * seen / (before + after))
    return ratios


def _own_us(tracer: Tracer, cause: str) -> float:
    """The loop's own median of the cause."""
    result = _loop(tracer, *AWAITED.get(cause, ("--cause", cause)))
    return float((result["caused"] or result["gate_ns"])["p50_ns"] / 1000)


def _loop(tracer: Tracer, *options: str) -> dict[str, Any]:
    """A loop that is the agent; its own figures."""
    tracer.clear(SLOT)
    loop = subprocess.Popen(
        agenttop("loop", *options, "--steps", STEPS, "--wait", "--json"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert loop.stdout is not None
    pid = int(loop.stdout.readline().partition("=")[2])
    tracer.assign({pid: SLOT}, {})
    told, _ = loop.communicate("\n")
    return dict(json.loads(told))


class Ran(NamedTuple):
    """Time of a cause's programs, as the kernel takes it, which adds some 30 ns to each run."""

    run_ns: float
    step_ns: float


def _ran(tracer: Tracer, cause: str, options: tuple[str, ...]) -> Ran:
    """On all CPUs, whoever made them run: with nothing else to do, that is the loop."""
    tracer.causes.want((cause,))
    before = {s.name: (s.runs, s.run_ns) for s in tracer.causes.states(cost=True)}
    tracer.measure_cost(True)
    _loop(tracer, *options)
    tracer.measure_cost(False)
    after = {s.name: (s.runs, s.run_ns) for s in tracer.causes.states(cost=True)}
    runs, ns = (b - a for a, b in zip(before[cause], after[cause], strict=True))
    return Ran(ns / runs if runs else 0.0, ns / STEPS)

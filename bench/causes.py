"""What observing each cause costs: the loop's own time of it, with the cause off and on in turns.

Both times the chain's programs run and the loop is the agent.
"""

from __future__ import annotations

import json
import subprocess

from agenttop.collectors.bpf.loader import Loading
from agenttop.collectors.bpf.tracer import Tracer
from agenttop.words import CAUSE_NAMES
from bench.processes import agenttop
from bench.report import Report

SLOT, STEPS = 1, 400
#: Compaction and a quota take so long that nothing can be told from them.
MADE = (
    *("minor_fault", "major_fault", "page_cache_miss", "lock", "reclaim", "file_metadata"),
    "block_in_compute",
)
#: Causes that are what a gate waits for: the loop's own median of the gate stands for them.
AWAITED = {"block": ("--gate", "read", "--source", "block")}


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
            report.add(f"{cause}, a run of its programs", "ns", [_run_ns(tracer, cause)])
    finally:
        tracer.close()


def _own_us(tracer: Tracer, cause: str) -> float:
    """The loop's own median of the cause."""
    tracer.clear(SLOT)
    options = AWAITED.get(cause, ("--cause", cause))
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
    result = json.loads(told)
    return float((result["caused"] or result["gate_ns"])["p50_ns"] / 1000)


def _run_ns(tracer: Tracer, cause: str) -> float:
    """The mean run as the kernel times it, which adds some 30 ns to each."""
    tracer.causes.want((cause,))
    before = {s.name: (s.runs, s.run_ns) for s in tracer.causes.states(cost=True)}
    tracer.measure_cost(True)
    _own_us(tracer, cause)
    tracer.measure_cost(False)
    after = {s.name: (s.runs, s.run_ns) for s in tracer.causes.states(cost=True)}
    runs, ns = (b - a for a, b in zip(before[cause], after[cause], strict=True))
    return ns / runs if runs else 0.0

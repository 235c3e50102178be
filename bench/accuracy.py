"""agenttop's percentiles of a step against what the loop itself timed, for every source."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import numpy as np

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.load.loader import Loading
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.model.histogram_layout import BUCKETS
from agenttop.stats.histogram import percentiles
from bench.processes import agenttop
from bench.report import Report

#: Options of the loop by source.
LOOPS = {
    "timer": ["--gate", "epoll", "--source", "timer", "--interval-us", "500"],
    "ipc": ["--gate", "epoll", "--source", "ipc", "--interval-us", "500"],
    "net": ["--gate", "epoll", "--source", "tcp", "--interval-us", "500"],
    "block": ["--gate", "read", "--source", "block"],
    "io_uring": ["--gate", "io_uring", "--source", "io_worker"],
    "child": ["--gate", "wait", "--source", "child"],
    "kworker": ["--gate", "read", "--source", "kworker", "--interval-us", "500"],
    "signal": ["--gate", "poll", "--source", "signal", "--interval-us", "500"],
}
#: p99.9 is the tenth slowest: a step that only one side has moves it by one rank, not far.
STEPS = 10_000
RATIOS = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
#: A deviation of 3 % or 1 us, whichever is larger, is 1.
ALLOWED_RATIO, ALLOWED_NS = 0.03, 1000


def run(report: Report, rounds: int) -> None:
    """Deviation in units of what is allowed, per level, source and percentile."""
    for level in ("full", "lite"):
        tracer = Tracer(Loading(level).result())
        slot = 0
        for source, options in LOOPS.items():
            off: dict[str, list[float]] = {name: [] for name in RATIOS}
            for _ in range(rounds):
                slot = slot % (layout.SLOTS - 1) + 1
                # Only a loop gate ends a step without sleeping, and only full sees that.
                looping = level == "full" and options[1] in ("epoll", "io_uring", "poll")
                truth = "step" if looping else "slept_step"
                for name, value in deviations(tracer, slot, options, truth).items():
                    off[name].append(value)
            for name, values in off.items():
                report.add(f"{level}, {source}, step {name}", "allowed", values, 1.0)
        tracer.close()


def deviations(tracer: Tracer, slot: int, options: list[str], measure: str) -> dict[str, float]:
    """Percentile name -> deviation over what is allowed."""
    tracer.clear(slot)
    child = subprocess.Popen(
        agenttop("loop", "--wait", "--json", "--compute-us", 50, "--steps", STEPS, *options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    pid = int(child.stdout.readline().partition("pid=")[2])
    tracer.assign({pid: slot}, {})
    out, _ = child.communicate("\n")
    truth: dict[str, Any] = json.loads(out)[measure]
    counts = np.zeros(BUCKETS, dtype=np.uint64)
    histogram = tracer.histograms(slot, full=True)["step"]
    counts[np.frombuffer(histogram.buckets, dtype="<u2")] = np.frombuffer(
        histogram.counts, dtype="<u8"
    )
    found = percentiles(counts, list(RATIOS.values()))
    out_of = {}
    for name, value in zip(RATIOS, found, strict=True):
        true = truth[f"{name}_ns"]
        allowed = max(ALLOWED_RATIO * true, ALLOWED_NS)
        out_of[name] = abs((value or 0) - true) / allowed
    return out_of

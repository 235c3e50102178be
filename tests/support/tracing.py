"""The kernel side in tests: loaded once per variant, one slot per measured loop."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.load.loader import LoadError, Loading
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.model.histogram_layout import BUCKETS
from agenttop.model.sample import CauseCounters, DetailCounters
from agenttop.model.vocabulary import GATES, MEASURES, STAGES
from agenttop.stats.histogram import percentiles
from tests.support.loops import loop

_slots = itertools.count(1)
#: Of tracers whose tests see the same at both: the default each time, "full" in the long tier.
LEVELS = ["lite", pytest.param("full", marks=pytest.mark.long)]
#: Of tracers that differ: the one without fentry in the long tier.
VARIANTS = ["lite", "full", pytest.param("raw", marks=pytest.mark.long)]


def load(level: str, raw: bool = False) -> Tracer:
    """The programs, or a skip that says why they can't be had."""
    if os.geteuid() != 0:
        pytest.skip("needs root for BPF")
    try:
        return Tracer(Loading(level, raw=raw).result())
    except LoadError as error:
        if "BCC is missing" in str(error):
            pytest.skip(str(error))
        raise


def load_variant(name: str) -> Tracer:
    """One of VARIANTS."""
    return load("lite" if name == "lite" else "full", raw=name == "raw")


class Measured(NamedTuple):
    """One slot's counters in the words of the project."""

    steps: int
    ready: int
    step_ns: int
    stage_ns: dict[str, int]
    sources: dict[str, int]
    gates: dict[str, int]
    counts: dict[str, Any]

    def at(self, measure: str, *ratios: float) -> list[int]:
        """Percentiles of a measure; zeros of stages are not counted in the kernel."""
        counts = self.counts[measure].copy()
        counts[0] += max(0, self.steps - int(counts.sum()))
        return [value or 0 for value in percentiles(counts, ratios)]


def free_slot() -> int:
    return next(_slots) % (layout.SLOTS - 1) + 1


def measured(tracer: Tracer, slot: int) -> Measured:
    """What the kernel has counted for a slot so far."""
    rows = tracer.rows([slot])
    total = {name: rows[name][0] for name, _ in layout.ROW_FIELDS}
    histograms = tracer.histograms(slot, full=True)
    counts = {name: np.zeros(BUCKETS, dtype=np.uint64) for name in MEASURES}
    for name, histogram in histograms.items():
        where = np.frombuffer(histogram.buckets, dtype="<u2")
        counts[name][where] = np.frombuffer(histogram.counts, dtype="<u8")
    return Measured(
        int(total["steps"]),
        int(total["ready"]),
        int(total["step_ns"]),
        dict(zip(STAGES, total["stage_ns"].tolist(), strict=True)),
        dict(zip(layout.SOURCE_NAMES, total["sources"].tolist(), strict=True)),
        {name: n for name, n in zip(GATES, total["gates"].tolist(), strict=True) if n},
        counts,
    )


def watch_loop(tracer: Tracer, *options: object) -> tuple[Measured, dict[str, Any]]:
    """Run ``agenttop loop`` as an agent: what the kernel counted, and what the loop timed."""
    slot, truth = run_loop(tracer, *options)
    return measured(tracer, slot), truth


def run_loop(
    tracer: Tracer, *options: object, first: Callable[[], None] = lambda: None
) -> tuple[int, dict[str, Any]]:
    """Run ``agenttop loop`` as an agent: its slot, and its own figures.

    ``first`` is done right before it begins.
    """
    slot = free_slot()
    tracer.clear(slot)
    with loop(*options) as running:
        tracer.assign({running.pid: slot}, {})
        first()
        return slot, running.run()


class Caused(NamedTuple):
    """What stages of one slot's steps were spent on."""

    found: Measured
    causes: dict[str, CauseCounters]
    explained_ns: dict[str, int]
    labels: dict[str, list[DetailCounters]]


def caused(tracer: Tracer, slot: int) -> Caused:
    """So far."""
    causes, explained = tracer.cause_counters(slot, full=True)
    labels = tracer.details.read(full=True).get(slot, {})
    explained_ns = dict(zip(STAGES, explained, strict=True))
    return Caused(measured(tracer, slot), causes, explained_ns, labels)

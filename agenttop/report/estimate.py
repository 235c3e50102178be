"""Figures with intervals: a bootstrap over blocks of time, as before_after.py makes for changes.

What is drawn anew are whole blocks, with everything that their steps have in
common. The interval is the bootstrap's standard error (corrected for as few
blocks as there are) times Student's quantile; that of a percentile has the
whole bucket in it that the percentile lies in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agenttop.model.histogram_layout import LAST_NS
from agenttop.report.model import Figure, Unit
from agenttop.stats.before_after import (
    MIN_BLOCKS,
    PERCENTILES,
    Floats,
    Merged,
    logs,
    point,
    resamples,
    student,
)
from agenttop.stats.histogram import EDGES, bucket_of
from agenttop.store.windows import Ints, estimated

Numbers = Sequence[float] | Floats | Ints


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error (None: too few blocks)."""

    value: float
    error: float | None
    blocks: int

    @property
    def half(self) -> float | None:
        """Half of the 95 % interval; None where nothing varied: no width would promise too much."""
        return student(self.blocks - 1) * self.error if self.error else None


def ratio_of_sums(tops: Numbers, bottoms: Numbers) -> Estimate | None:
    """Sum over sum; None when there is nothing below."""
    top, bottom = np.asarray(tops, dtype=float), np.asarray(bottoms, dtype=float)
    used = bottom > 0
    top, bottom = top[used], bottom[used]
    blocks = len(top)
    if not blocks:
        return None
    value = float(top.sum() / bottom.sum())
    if blocks < MIN_BLOCKS:
        return Estimate(value, None, blocks)
    weights = resamples(blocks)
    drawn = (weights @ top) / (weights @ bottom)
    # A bootstrap of n blocks sees (n - 1) / n of the variance.
    error = float(drawn.std()) * float(np.sqrt(blocks / (blocks - 1)))
    return Estimate(value, error, blocks)


def quotient(
    key: str,
    name: str,
    tops: Numbers,
    bottoms: Numbers,
    *,
    unit: Unit = "ratio",
    n: int,
    of: str = "steps",
    missing: str | None = None,
) -> Figure:
    """A share (unit ratio), or so much for each: sums over sums."""
    found = ratio_of_sums(tops, bottoms)
    figure = Figure(key=key, name=name, unit=unit, value=None, n=n, of=of)
    if found is None:
        figure.missing = missing or f"no {of}"
        return figure
    figure.value, figure.blocks = found.value, found.blocks
    if found.half is not None:
        figure.low = max(found.value - found.half, 0.0)
        figure.high = found.value + found.half
        if unit == "ratio":
            figure.high = min(figure.high, 1.0)
    return figure


def percentile(
    key: str, name: str, counts: Ints, which: str, *, of: str = "steps", missing: str | None = None
) -> Figure:
    """A percentile ("p50", "p99", "p999") of counts, shape (blocks, BUCKETS)."""
    total = int(counts.sum())
    figure = Figure(key=key, name=name, unit="ns", value=None, n=total, of=of)
    value = point(counts, which) if total else None
    if value is None:
        figure.missing = missing or (f"too few {of}" if total else f"no {of}")
        return figure
    figure.value = float(value)
    figure.over_range = value >= LAST_NS
    figure.estimated = estimated(total)[list(PERCENTILES).index(which)]
    blocks = counts[counts.sum(axis=1) > 0]
    figure.blocks = len(blocks)
    if len(blocks) >= MIN_BLOCKS and not figure.estimated and not figure.over_range:
        merged = Merged.of(blocks, PERCENTILES[which])
        drawn = logs(merged.values(resamples(len(blocks))))
        error = float(np.nanstd(drawn)) * float(np.sqrt(len(blocks) / (len(blocks) - 1)))
        half = student(len(blocks) - 1) * error
        bucket = bucket_of(value)
        figure.low = float(EDGES[bucket] * np.exp(-half))
        # Of a percentile of 0 that was more in some resamples, the second.
        top = float(EDGES[bucket + 1] - 1)
        figure.high = float(max(top * np.exp(half), np.expm1(half)))
    return figure


def number(key: str, name: str, value: int, *, of: str, unit: Unit = "count") -> Figure:
    """A plain count: nothing was drawn, so it has no interval."""
    return Figure(key=key, name=name, unit=unit, value=float(value), n=value, of=of)


def nothing(key: str, name: str, unit: Unit, missing: str, of: str = "steps") -> Figure:
    """What cannot be had."""
    return Figure(key=key, name=name, unit=unit, value=None, of=of, missing=missing)

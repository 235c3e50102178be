"""Did it help? Percentiles before and after, their ratio, and how sure it is.

Pure arithmetic on blocks of histogram counts, shape (blocks, BUCKETS): a block
is a tick of about a second, or a block of a trial. Percentiles always come
from merged counts, never from averages of percentiles. What is resampled are
whole blocks: the steps within a second depend on each other, and thousands of
them taken as independent would make any difference look certain.

A percentile has a change once there are enough steps on both sides (ENOUGH)
in at least MIN_BLOCKS blocks each. The interval is a studentised one on the
logarithm of the ratio: the standard error is that of the bootstrap, times
Student's quantile for as few blocks as there are, and to it comes what the
buckets leave open: a change that is smaller than they tell apart is never
certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agenttop.model.histogram_layout import LAST_NS
from agenttop.model.sample import Change
from agenttop.stats.histogram import EDGES

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Percentile -> its ratio as an exact fraction.
PERCENTILES: Final = {"p50": (1, 2), "p99": (99, 100), "p999": (999, 1000)}
#: Percentile -> steps that each side must have.
ENOUGH: Final = {"p50": 20, "p99": 500, "p999": 5_000}
#: Blocks that each side must have: from fewer no spread can be told.
MIN_BLOCKS: Final = 4
#: Resamples of a bootstrap.
RESAMPLES: Final = 1_000
#: Standard error of the logarithm at least: blocks that happen to be alike promise too much.
LEAST_ERROR: Final = 0.004
#: Width of each bucket, in logarithms: within one, where a percentile lies is a guess.
_WIDTHS: Final = np.diff(np.log(np.maximum(EDGES, 1)))

#: Student's t at 0.975 for 1..30 degrees of freedom.
_T975: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Merged:
    """A side's blocks, made ready to be merged with many weights for one percentile.

    Whatever the weights, the percentile of the merged blocks lies between the
    lowest and the highest percentile of a single one: only the buckets from
    the one to the other are kept.
    """

    #: Steps of each block.
    totals: Floats
    #: Cumulated counts, shape (blocks, kept buckets + 1): the first column lies below them.
    cumulative: Floats
    #: Lower edges of the kept buckets and the end of the last, ns.
    edges: Floats
    ratio: tuple[int, int]

    @classmethod
    def of(cls, counts: Counts, ratio: tuple[int, int]) -> Merged:
        """The blocks that have steps; raises ValueError when none has."""
        return cls.both(counts, None, ratio)[0]

    @classmethod
    def both(
        cls, one: Counts, other: Counts | None, ratio: tuple[int, int]
    ) -> tuple[Merged, Merged]:
        """Two sides over the same buckets, so that their blocks may change sides."""
        part, whole = ratio
        counts = one if other is None else np.concatenate([one, other])
        cumulative = counts.cumsum(axis=1)
        totals = cumulative[:, -1]
        used = totals > 0
        if not used.any():
            raise ValueError("no steps")
        ranks = -(-totals[used] * part // whole)
        places = (cumulative[used] < ranks[:, None]).sum(axis=1)
        low, high = int(places.min()), int(places.max())
        below = cumulative[:, low - 1 : low] if low else np.zeros((len(counts), 1), np.int64)
        kept = np.concatenate([below, cumulative[:, low : high + 1]], axis=1).astype(float)
        edges = EDGES[low : high + 2].astype(float)
        made = [
            cls(totals[rows].astype(float), kept[rows], edges, ratio)
            for rows in (slice(len(one)), slice(len(one), None))
        ]
        return made[0], made[1]

    def values(self, weights: Floats) -> Floats:
        """The percentile in ns for each row of weights (rows, blocks); NaN where nothing weighs.

        As histogram.percentiles: nearest rank, interpolated within the bucket.
        """
        part, whole = self.ratio
        return quantile(weights @ self.cumulative, weights @ self.totals, self.edges, part, whole)


def quantile(cumulative: Floats, totals: Floats, edges: Floats, part: int, whole: int) -> Floats:
    """Values in ns at part/whole of rows of cumulated counts (see Merged)."""
    ranks = np.maximum(np.ceil(totals * part / whole - 1e-9), 1)
    place = (cumulative[:, 1:] < ranks[:, None]).sum(axis=1)
    place = np.minimum(place, len(edges) - 2)
    line = np.arange(len(cumulative))
    below = cumulative[line, place]
    inside = np.maximum(cumulative[line, place + 1] - below, 1e-9)
    width = edges[place + 1] - edges[place]
    value = edges[place] + width * np.clip((ranks - below - 0.5) / inside, 0, 1)
    return np.asarray(np.where(totals > 0, value, np.nan))


def logs(values: Floats) -> Floats:
    """Logarithms of values in ns; that of 0 is 1 ns's."""
    return np.asarray(np.log(np.maximum(values, 1.0)))


def steep(counts: Counts) -> Floats:
    """For each bucket how little of it lies as the buckets beside it have it: 0 to 1.

    Where both hold as much, steps lie evenly in it, and interpolation tells where a percentile
    is; where one holds nothing, all may lie at the other end.
    """
    held = counts.sum(axis=0).astype(float)
    around = np.pad(held, 1)
    least = np.minimum(around[:-2], around[2:])
    return np.asarray(1 - np.minimum(least / np.maximum(held, 1), 1))


def unsure(before: Floats, after: Floats, steeps: tuple[Floats, Floats]) -> Floats:
    """How far the logarithm of the ratio of percentiles (ns) may be off, due to their buckets.

    At worst all steps of a side lie at one end of their bucket, and the other side's at the other
    end of theirs. Both are told as if they lay alike in them: that is wrong by a bucket's width,
    as far as the side's distribution is ``steep`` there.
    """
    found = []
    for values, slopes in zip((before, after), steeps, strict=True):
        place = np.clip(EDGES.searchsorted(values, "right") - 1, 0, len(_WIDTHS) - 1)
        found.append(_WIDTHS[place] * slopes[place])
    return np.asarray(np.maximum(*found))


@lru_cache(maxsize=16)
def resamples(blocks: int, times: int = RESAMPLES) -> Floats:
    """How often each block is drawn in each resample: shape (times, blocks).

    The same for the same number of blocks, so that the same data give the same interval.
    """
    drawn = np.random.default_rng(blocks).integers(blocks, size=(times, blocks))
    drawn += np.arange(times)[:, None] * blocks
    return np.bincount(drawn.ravel(), minlength=times * blocks).reshape(times, -1).astype(float)


def change(before: Counts, after: Counts, percentile: str) -> Change:
    """One percentile before and after, from independent blocks on each side.

    ``percentile`` is a key of PERCENTILES. Without enough steps the values
    that can be told are there, and ratio and interval are None.
    """
    steps = [int(side.sum()) for side in (before, after)]
    out = Change(
        before_ns=point(before, percentile),
        after_ns=point(after, percentile),
        missing_steps=max(ENOUGH[percentile] - min(steps), 0),
    )
    blocks = [side[side.sum(axis=1) > 0] for side in (before, after)]
    if out.missing_steps or min(map(len, blocks)) < MIN_BLOCKS or beyond(out):
        return out
    points, errors = [], []
    for side in blocks:
        merged = Merged.of(side, PERCENTILES[percentile])
        points.append(merged.values(np.ones((1, len(side)))))
        # A bootstrap of n blocks sees (n - 1) / n of the variance.
        drawn = float(logs(merged.values(resamples(len(side)))).var())
        errors.append(drawn * len(side) / (len(side) - 1))
    error = max(float(np.sqrt(sum(errors))), LEAST_ERROR)
    half = student(freedom(errors, list(map(len, blocks)))) * error
    half += float(unsure(points[0], points[1], (steep(blocks[0]), steep(blocks[1])))[0])
    return settle(out, float((logs(points[1]) - logs(points[0]))[0]), half)


def settle(found: Change, log_ratio: float, half: float) -> Change:
    """Give a change its ratio and interval, from their logarithms."""
    found.ratio = float(np.exp(log_ratio))
    found.low, found.high = float(np.exp(log_ratio - half)), float(np.exp(log_ratio + half))
    return found


def point(counts: Counts, percentile: str) -> int | None:
    """From all blocks merged, LAST_NS at most; None without a step, or with none beyond it."""
    part, whole = PERCENTILES[percentile]
    total = int(counts.sum())
    if total * (whole - part) < whole:
        return None
    merged = counts.sum(axis=0, keepdims=True)
    return min(int(Merged.of(merged, (part, whole)).values(np.ones((1, 1)))[0]), LAST_NS)


def beyond(found: Change) -> bool:
    """Is a side so long that no more is known of it (LAST_NS)? Then there is no ratio."""
    return max(found.before_ns or 0, found.after_ns or 0) >= LAST_NS


def freedom(variances: Sequence[float], blocks: Sequence[int]) -> float:
    """Degrees of freedom of a difference, by Welch and Satterthwaite."""
    bottom = sum(v * v / (n - 1) for v, n in zip(variances, blocks, strict=True))
    if bottom <= 0:
        return float(min(blocks) - 1)
    return sum(variances) ** 2 / bottom


def student(degrees: float) -> float:
    """Student's t at 0.975; of the next smaller whole number of degrees of freedom up to 30."""
    if degrees < len(_T975):
        return _T975[max(int(degrees), 1) - 1]
    # Cornish and Fisher's expansion: right to three digits from here on.
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)

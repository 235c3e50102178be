"""Was it the policy? Rounds of on and off blocks in random order, compared honestly.

In each round chance alone decided which of its blocks was on. If the policy
changes nothing, any other outcome of those coin tosses was as likely as the
one that came: so the labels on and off are exchanged in every way (or in
MOST of them), each time the same statistic is taken (log ratio, as far as it
is more than the histograms' buckets leave open, over its bootstrap error),
and what the real labels give is held against what all of them give. That is
exact for any kind of noise, however the blocks are correlated, and it holds
for all figures of a trial together: in at most 5 % of trials in which nothing
differs any of them is called better or worse.

The interval of a ratio is its bootstrap error (whole rounds are drawn) times
the critical value from that exchange, and what the buckets leave open: it
excludes 1 just when the verdict is "better" or "worse".
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import numpy as np

from agenttop.model.sample import Change
from agenttop.stats.before_after import (
    ENOUGH,
    LEAST_ERROR,
    PERCENTILES,
    Counts,
    Floats,
    Merged,
    beyond,
    logs,
    point,
    quantile,
    resamples,
    settle,
    steep,
    unsure,
)
from agenttop.stats.rounds import MIN_ROUNDS

Verdict = Literal["better", "worse", "no difference", "not enough"]
Key = TypeVar("Key", bound=Hashable)

#: Share of trials without a difference that may be called better or worse: promised are 5 %.
ERROR_RATE: Final = 0.04
#: Ways to exchange the labels that are looked at, and resamples for each.
MOST: Final = 256
RESAMPLES: Final = 200
#: Cells of one step of the work, so that it stays in the cache.
_CHUNK: Final = 1 << 18


class Compared(Change):
    """A percentile with the policy off (before) and on (after)."""

    verdict: Verdict = "not enough"
    #: Chance of such a difference in any of the trial's figures if the policy did nothing.
    p: float | None = None


@dataclass(frozen=True)
class Sides:
    """One measure of one agent: a block per round on each side, shape (rounds, BUCKETS)."""

    off: Counts
    on: Counts


@dataclass(frozen=True)
class Statistics:
    """Of one percentile, for each exchange of the labels; logarithms."""

    #: On over off, its bootstrap error, and what the two values' buckets leave open.
    ratios: Floats
    errors: Floats
    buckets: Floats


def compare(measures: Mapping[Key, Sides]) -> dict[Key, dict[str, Compared]]:
    """Each measure's percentiles, judged together. All have the same number of rounds."""
    out: dict[Key, dict[str, Compared]] = {}
    judged: list[tuple[Compared, Statistics]] = []
    rounds = len(next(iter(measures.values())).off) if measures else 0
    flips = exchanges(rounds)
    for key, sides in measures.items():
        out[key] = {}
        for percentile, ratio in PERCENTILES.items():
            steps = min(int(sides.off.sum()), int(sides.on.sum()))
            found = out[key][percentile] = Compared(
                before_ns=point(sides.off, percentile),
                after_ns=point(sides.on, percentile),
                missing_steps=max(ENOUGH[percentile] - steps, 0),
            )
            if not found.missing_steps and rounds >= MIN_ROUNDS and not beyond(found):
                judged.append((found, statistics(sides, ratio, flips)))
    if judged:
        _judge(judged)
    return out


def _judge(judged: list[tuple[Compared, Statistics]]) -> None:
    sizes = [np.maximum(np.abs(s.ratios) - s.buckets, 0) / s.errors for _, s in judged]
    largest = np.max(sizes, axis=0)
    allowed = int(ERROR_RATE * len(largest))
    critical = float(np.sort(largest)[::-1][allowed])
    for (found, of), size in zip(judged, sizes, strict=True):
        settle(found, float(of.ratios[0]), float(critical * of.errors[0] + of.buckets[0]))
        found.p = float((largest >= size[0]).mean())
        if size[0] > critical:
            found.verdict = "better" if of.ratios[0] < 0 else "worse"
        else:
            found.verdict = "no difference"


def exchanges(rounds: int) -> Floats:
    """Ways to exchange the labels: shape (ways, rounds), 1 where a round's are; the first is none.

    A way and its opposite differ in the sign only: the first round keeps its labels.
    """
    free = max(rounds - 1, 0)
    if 2**free <= MOST:
        ways = (np.arange(2**free)[:, None] >> np.arange(free)) & 1
    else:
        ways = np.random.default_rng(rounds).integers(2, size=(MOST, free))
        ways[0] = 0
    return np.concatenate([np.zeros((len(ways), rounds - free)), ways], axis=1)


def statistics(sides: Sides, ratio: tuple[int, int], flips: Floats) -> Statistics:
    """For each exchange, the first of which is none."""
    off, on = Merged.both(sides.off, sides.on, ratio)
    rounds = len(sides.off)
    weights = np.concatenate([np.ones((1, rounds)), resamples(rounds, RESAMPLES)])
    wide = off.cumulative.shape[1]
    step = max(1, _CHUNK // (len(weights) * wide))
    ratios, errors, buckets = [], [], []
    slopes = steep(np.concatenate([sides.off, sides.on]))
    for start in range(0, len(flips), step):
        flip = flips[start : start + step, :, None]
        values = []
        for one, other in ((on, off), (off, on)):
            # Counts cumulate and merge by sums: the order of the two does not matter.
            mixed = one.cumulative + flip * (other.cumulative - one.cumulative)
            totals = one.totals + flip[:, :, 0] * (other.totals - one.totals)
            merged = (weights @ mixed).reshape(-1, wide)
            found = quantile(merged, (totals @ weights.T).reshape(-1), one.edges, *ratio)
            values.append(found.reshape(len(flip), -1))
        drawn = logs(values[0]) - logs(values[1])
        ratios.append(drawn[:, 0])
        errors.append(np.nanstd(drawn[:, 1:], axis=1))
        buckets.append(unsure(values[0][:, 0], values[1][:, 0], (slopes, slopes)))
    # A bootstrap of n rounds sees (n - 1) / n of the variance.
    error = np.concatenate(errors) * np.sqrt(rounds / (rounds - 1))
    return Statistics(
        ratios=np.nan_to_num(np.concatenate(ratios)),
        errors=np.maximum(error, LEAST_ERROR),
        buckets=np.concatenate(buckets),
    )

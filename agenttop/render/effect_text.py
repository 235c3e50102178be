"""Changes, trials and their cost as text; the screen and the commands share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agenttop.model.sample import Change, Cost
from agenttop.stats.before_after import beyond
from agenttop.text.figures import NA, measured, percent

#: Measure and percentile -> how they are called.
MEASURES: Final = {"slowpath": "slow", "step": "step"}
PERCENTILES: Final = {"p50": "p50", "p99": "p99", "p999": "p99.9"}
#: Which figure speaks for all, best first: the tail, unless only the median tells a difference.
_HEADLINES: Final = (("slowpath", "p99"), ("slowpath", "p50"), ("step", "p99"), ("step", "p50"))

Measures = Mapping[str, Mapping[str, Change]]


class Headline(NamedTuple):
    """The figure that stands for an effect."""

    measure: str
    percentile: str
    change: Change

    @property
    def name(self) -> str:
        """``slow p99``."""
        return f"{MEASURES[self.measure]} {PERCENTILES[self.percentile]}"


def headline(measures: Measures) -> Headline | None:
    """The first of the known figures that differs, else the first one; None without any."""
    known = [
        Headline(measure, percentile, change)
        for measure, percentile in _HEADLINES
        if (change := measures.get(measure, {}).get(percentile)) is not None
        and change.ratio is not None
    ]
    return next((one for one in known if direction(one.change)), known[0] if known else None)


def direction(change: Change) -> int:
    """-1 lower for certain, 1 higher for certain, 0 neither (the interval has 1 in it)."""
    if change.high is not None and change.high < 1:
        return -1
    return 1 if change.low is not None and change.low > 1 else 0


def times(change: Change) -> str:
    """``×0.41 ±.05``; N/A without a ratio."""
    ratio, low, high = change.ratio, change.low, change.high
    if ratio is None or low is None or high is None:
        return NA
    half = (high - low) / 2
    if ratio < 9.995:
        spread = f"{max(half, 0.01):.2f}"
        return f"×{ratio:.2f} ±{spread.removeprefix('0')}"
    return f"×{min(ratio, 9999):.0f} ±{max(min(half, 9999), 1):.0f}"


def interval(change: Change) -> str:
    """``0.36-0.46``."""
    if change.low is None or change.high is None:
        return ""
    digits = 2 if change.high < 9.995 else 0
    return f"{change.low:.{digits}f}-{min(change.high, 9999):.{digits}f}"


def lacking(change: Change) -> str:
    """Why there is no ratio, or none yet."""
    if beyond(change):
        return "too long to be compared"
    if change.missing_steps:
        return f"not enough steps yet ({change.missing_steps:,} to go)"
    return "not enough seconds yet"


def span(change: Change) -> str:
    """``412µs -> 170µs``."""
    return f"{measured(change.before_ns)} → {measured(change.after_ns)}"


def costs(cost: Cost) -> list[tuple[str, str]]:
    """What it cost: name and text each."""
    idle = [
        f"cpu{cpu} {percent(before)} → {percent(cost.idle_after[cpu])}"
        for cpu, before in cost.idle_before.items()
        if cpu in cost.idle_after
    ]
    lines = [("deeper idle", ", ".join(idle[:8]) or f"{NA}, no idle states besides the shallowest")]
    before, after = cost.watts_before, cost.watts_after
    if before is None or after is None:
        lines.append(("power", f"{NA}, {cost.watts_missing or 'no energy counters here'}"))
    else:
        mark = "~" if cost.watts_estimated else ""
        lines.append(
            ("power", f"{mark}{before:.2f} W → {mark}{after:.2f} W ({mark}{after - before:+.2f} W)")
        )
    if cost.tokens is not None:
        lines.append(("tokens", f"{cost.tokens:,} spent"))
    return lines

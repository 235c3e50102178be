"""Lines over time in braille (or ASCII) on a logarithmic scale; no widgets here.

Time is cut into cells of fixed length counted from the start of the clock, so
that a picture moves by whole cells and between two moves only its last cell
changes: that is what keeps a plot cheap on a slow line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Dots of a braille cell, from the top, left and right column.
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE: Final = 0x2800


@dataclass(frozen=True)
class Scale:
    """A logarithmic scale of whole and half decades."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Scale:
        """The scale that holds all values: its ends lie at 1, 2 or 5 times a power of ten."""
        seen = [value for value in values if value > 0]
        if not seen:
            return cls(1e3, 1e6)
        low, high = _step_down(min(seen)), _step_up(max(seen))
        if high / low < 10:
            low, high = _step_down(low / 2), _step_up(high * 1.5)
        return cls(low, high)

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one, cut at both."""
        if value <= self.low:
            return 0.0
        return min(math.log(value / self.low) / math.log(self.high / self.low), 1.0)

    def ticks(self, rows: int) -> dict[int, float]:
        """Row (0 at the top) -> value of its label: both ends and the powers of ten between."""
        out = {0: self.high, rows - 1: self.low}
        value = 10.0 ** math.ceil(math.log10(self.low * 1.001))
        while value < self.high * 0.999:
            row = round((1 - self.place(value)) * (rows - 1))
            if all(abs(row - other) > 1 for other in out):
                out[row] = value
            value *= 10
        return out


def _step_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (5, 2, 1) if m * power <= value * 1.0001)


def _step_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * 0.9999)


class Timeline:
    """Which cell and dot a moment falls into; the newest moment lies in the last cell."""

    def __init__(self, end_ns: int, span_ns: int, columns: int) -> None:
        self.columns = columns
        self.dot_ns = max(span_ns // (2 * columns), 1)
        self.first_dot = (end_ns // (2 * self.dot_ns) - columns + 1) * 2

    def dot(self, t_ns: int) -> int:
        """Dot column of a moment; outside 0..2*columns it cannot be seen."""
        return t_ns // self.dot_ns - self.first_dot

    def column(self, t_ns: int) -> int | None:
        """Cell column of a moment, None if it cannot be seen."""
        dot = self.dot(t_ns)
        return dot // 2 if 0 <= dot < 2 * self.columns else None

    @property
    def start_ns(self) -> int:
        """The moment at the left edge."""
        return self.first_dot * self.dot_ns


def binned(points: Sequence[tuple[int, int]], line: Timeline) -> list[int | None]:
    """The highest value in each dot column; gaps of a few dots keep the value before."""
    bins: list[int | None] = [None] * (2 * line.columns)
    last, gap = None, 0
    for t_ns, value in points:
        dot = line.dot(t_ns)
        if 0 <= dot < len(bins):
            before = bins[dot]
            bins[dot] = value if before is None else max(before, value)
    # One Sample a second may fall into every third dot only: that is one line, not dots.
    reach = max(2, int(3e9 / line.dot_ns))
    for dot, value_ in enumerate(bins):
        if value_ is not None:
            if last is not None and 0 < gap <= reach:
                for between in range(dot - gap, dot):
                    bins[between] = last
            last, gap = value_, 0
        else:
            gap += 1
    return bins


def braille(values: Sequence[int | None], scale: Scale, rows: int) -> list[list[int]]:
    """Braille patterns (0..255) by row and column of a connected line."""
    columns = len(values) // 2
    grid = [[0] * columns for _ in range(rows)]
    height = rows * 4
    before: int | None = None
    for x, value in enumerate(values):
        if value is None:
            before = None
            continue
        y = round((1 - scale.place(value)) * (height - 1))
        # A jump is drawn in this column, half way, so that the line does not break.
        start, end = (y, y) if before is None else sorted((y, before))
        if before is not None and end - start > 1:
            start, end = (start, end - 1) if y < before else (start + 1, end)
        for at in range(start, end + 1):
            grid[at // 4][x // 2] |= _DOTS[at % 4][x % 2]
        before = y
    return grid


def glyph(pattern: int, ascii_only: bool = False) -> str:
    """The character of a pattern."""
    if not pattern:
        return " "
    if not ascii_only:
        return chr(_BRAILLE | pattern)
    top = pattern & (0x01 | 0x08 | 0x02 | 0x10)
    bottom = pattern & (0x04 | 0x20 | 0x40 | 0x80)
    if top and bottom:
        return "|" if bin(pattern).count("1") > 4 else "-"
    return "'" if top else "."

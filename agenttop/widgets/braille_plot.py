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
#: Powers of ten as floats are off by less.
_ROUNDING: Final = 1e-12


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
        # Less than a decade would make noise look like news.
        while high / low < 9.99:
            low, high = _step_down(low / 1.5), _step_up(high * 1.5)
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
    return next(m * power for m in (5, 2, 1) if m * power <= value * (1 + _ROUNDING))


def _step_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - _ROUNDING))


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
    dots, first, dot_ns = len(bins), line.first_dot, line.dot_ns
    for t_ns, value in points:
        dot = t_ns // dot_ns - first
        if 0 <= dot < dots:
            before = bins[dot]
            bins[dot] = value if before is None or value > before else before
    # One Sample a second may fall into every third dot only: that is one line, not dots.
    reach = max(2, int(3e9 / dot_ns))
    last, gap = None, 0
    for dot, seen in enumerate(bins):
        if seen is None:
            gap += 1
            continue
        if last is not None and 0 < gap <= reach:
            bins[dot - gap : dot] = [last] * gap
        last, gap = seen, 0
    return bins


#: One row of a picture: column -> (character, role).
Cells = dict[int, tuple[str, str]]


class Canvas:
    """A picture of ``rows`` by ``columns`` cells on a scale, drawn from back to front."""

    def __init__(self, columns: int, rows: int, scale: Scale, ascii_only: bool = False) -> None:
        self.columns = columns
        self.rows = rows
        self.scale = scale
        self.ascii_only = ascii_only
        self.cells: list[Cells] = [{} for _ in range(rows)]
        self._patterns: list[dict[int, int]] = [{} for _ in range(rows)]

    def level(self, value: int, text: str, role: str) -> None:
        """A dotted horizontal line, if the value lies within the scale."""
        if self.scale.low < value < self.scale.high:
            row = self.cells[round((1 - self.scale.place(value)) * (self.rows - 1))]
            row.update(dict.fromkeys(range(1, self.columns, 2), (text, role)))

    def upright(self, column: int, text: str, role: str) -> None:
        """A vertical line."""
        for row in self.cells:
            row[column] = (text, role)

    def line(self, values: Sequence[int | None], role: str) -> None:
        """A connected line of dots, two values per column.

        A cell has one colour: the line on top gives it, all lines give dots.
        """
        height = self.rows * 4
        before: int | None = None
        known: dict[int, int] = {}
        for x, value in enumerate(values):
            if value is None:
                before = None
                continue
            y = known.get(value)
            if y is None:
                y = known[value] = round((1 - self.scale.place(value)) * (height - 1))
            # A jump is drawn in this column, so that the line does not break.
            start = end = y
            if before is not None and abs(y - before) > 1:
                start, end = (y, before - 1) if y < before else (before + 1, y)
            for at in range(start, end + 1):
                patterns = self._patterns[at >> 2]
                pattern = patterns.get(x >> 1, 0) | _DOTS[at & 3][x & 1]
                patterns[x >> 1] = pattern
                self.cells[at >> 2][x >> 1] = (glyph(pattern, self.ascii_only), role)
            before = y

    def word(self, column: int, text: str, role: str) -> None:
        """Text beside a column, in the highest row in which nothing is drawn there."""
        for row in self.cells:
            for start in (column + 1, column - len(text)):
                place = range(start, start + len(text))
                if start < 0 or place.stop > self.columns:
                    continue
                if all(row.get(x, (" ", ""))[0] in " ·" for x in place):
                    row.update({x: (sign, role) for x, sign in zip(place, text, strict=True)})
                    return

    def spans(self, y: int) -> list[tuple[str, str]]:
        """A row as pieces of one role each; free cells belong to the piece before."""
        out: list[tuple[str, str]] = []
        text, role, at = "", "faint", 0
        row = self.cells[y]
        for x in sorted(row):
            sign, own = row[x]
            if own != role:
                if text:
                    out.append((text, role))
                text, role = "", own
            text += " " * (x - at) + sign
            at = x + 1
        out.append((text + " " * (self.columns - at), role))
        return out


def glyph(pattern: int, ascii_only: bool = False) -> str:
    """The character of a braille pattern (0..255)."""
    if not ascii_only:
        return chr(_BRAILLE | pattern)
    top = pattern & (0x01 | 0x08 | 0x02 | 0x10)
    bottom = pattern & (0x04 | 0x20 | 0x40 | 0x80)
    if top and bottom:
        return "|" if pattern.bit_count() > 4 else "-"
    return "'" if top else "."

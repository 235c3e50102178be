"""Plots of a report as inline SVG; their colours come from report.css by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from agenttop.report.model import Figure, Point, Unit, Whole
from agenttop.text.figures import duration, percent

TREND_CAPTION: Final = (
    "Slowpath p50 and p99 of each block of time (logarithmic), agents in the foreground together;"
    " shaded: a policy was on."
)
_WIDE, _HIGH = 860, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 28
#: A shorter time is no trend.
SHORTEST_S: Final = 1e-3
#: Narrower parts of a bar carry no text.
_TEXT_FROM: Final = 0.07

_Scale = Callable[[float], float]


def scales(figures: Sequence[Figure]) -> dict[Unit, float]:
    """Unit -> the end of the scale of its whiskers, which begins at 0."""
    out: dict[Unit, float] = {}
    for each in figures:
        top = max(each.value or 0.0, each.high or 0.0, 1.0 if each.unit == "ratio" else 0.0)
        out[each.unit] = max(out.get(each.unit, 0.0), top)
    return out


def whisker(figure: Figure, end: float) -> str:
    """A dot with its interval on the scale from 0 to ``end``; nothing without an interval."""
    if figure.value is None or figure.low is None or figure.high is None:
        return ""
    if figure.low < 0 or end <= 0:
        return ""

    def x(number: float) -> str:
        return f"{4 + 132 * min(number / end, 1):.1f}"

    return (
        '<svg class="whisker" viewBox="0 0 140 16" width="140" height="16" role="img"'
        f' aria-label="{escape(figure.name)}">'
        '<line class="axis" x1="4" y1="8" x2="136" y2="8"/>'
        f'<line class="range" x1="{x(figure.low)}" y1="8" x2="{x(figure.high)}" y2="8"/>'
        f'<circle cx="{x(figure.value)}" cy="8" r="3.5"/></svg>'
    )


def shares(whole: Whole) -> str:
    """One bar of its parts, each in its own colour, and a legend."""
    drawn, legend, at = [], [], 0.0
    for number, part in enumerate(whole.parts):
        wide = part.ratio * _WIDE
        name, told = escape(part.name), escape(percent(part.ratio))
        drawn.append(
            f'<rect class="part{number % 6}" x="{at:.1f}" y="0" width="{max(wide, 0):.1f}"'
            f' height="34"><title>{name} {told}</title></rect>'
        )
        if part.ratio >= _TEXT_FROM:
            drawn.append(
                f'<text class="inside" x="{at + wide / 2:.1f}" y="22" text-anchor="middle">'
                f"{told}</text>"
            )
        legend.append(
            f'<span class="key"><svg width="10" height="10" aria-hidden="true">'
            f'<rect class="part{number % 6}" width="10" height="10" rx="2"/></svg>'
            f" {name} {told}</span>"
        )
        at += wide
    return (
        f'<svg class="shares" viewBox="0 0 {_WIDE} 34" role="img"'
        f' aria-label="{escape(whole.title)}">{"".join(drawn)}</svg>'
        f"<figcaption>{escape(whole.title)}: {' '.join(legend)}</figcaption>"
    )


def trend(points: Sequence[Point]) -> str:
    """p50 and p99 over time; empty without two blocks that have steps, or time between them."""
    known = [each for each in points if each.p50_ns]
    end_s = points[-1].start_s + points[-1].length_s if points else 0.0
    # What a recording says may lie within the same moment.
    if len(known) < 2 or end_s < SHORTEST_S:
        return ""
    values = [v for each in known for v in (each.p50_ns, each.p99_ns) if v]
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)

    def x(seconds: float) -> float:
        return _LEFT + (_WIDE - _LEFT - _RIGHT) * seconds / end_s

    def y(ns: float) -> float:
        return _TOP + (_HIGH - _TOP - _BOTTOM) * (high - math.log10(ns)) / (high - low)

    drawn = [
        f'<rect class="on" x="{x(each.start_s):.1f}" y="{_TOP}" height="{_HIGH - _TOP - _BOTTOM}"'
        f' width="{x(each.start_s + each.length_s) - x(each.start_s):.1f}">'
        f"<title>{escape(', '.join(each.policies))}</title></rect>"
        for each in points
        if each.policies
    ]
    for power in range(low, high + 1):
        at = f"{y(10**power):.1f}"
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{at}" y2="{at}"/>')
        drawn.append(
            f'<text class="label" x="{_LEFT - 8}" y="{at}" dy="4" text-anchor="end">'
            f"{_round(10**power)}</text>"
        )
    for seconds in _ticks(end_s):
        drawn.append(
            f'<text class="label" x="{x(seconds):.1f}" y="{_HIGH - 8}" text-anchor="middle">'
            f"{seconds:g} s</text>"
        )
    for name in ("p99", "p50"):
        drawn += _line(name, points, x, y)
    return (
        f'<svg class="trend" viewBox="0 0 {_WIDE} {_HIGH}" role="img"'
        f' aria-label="slowpath p50 and p99 over time">{"".join(drawn)}</svg>'
    )


def _line(name: str, points: Sequence[Point], x: _Scale, y: _Scale) -> list[str]:
    """One line for each run of blocks that have the value: a gap stays a gap."""
    out: list[str] = []
    run: list[str] = []
    for each in [*points, None]:
        ns = None if each is None else getattr(each, f"{name}_ns")
        if each is not None and ns:
            run.append(f"{x(each.start_s + each.length_s / 2):.1f},{y(ns):.1f}")
            continue
        if len(run) == 1:
            cx, cy = run[0].split(",")
            out.append(f'<circle class="{name}" cx="{cx}" cy="{cy}" r="2"/>')
        elif run:
            out.append(f'<polyline class="{name}" points="{" ".join(run)}"/>')
        run = []
    last = next((each for each in reversed(points) if getattr(each, f"{name}_ns")), None)
    if last is not None:
        at = y(getattr(last, f"{name}_ns"))
        out.append(
            f'<text class="{name}" x="{_WIDE - _RIGHT}" y="{at:.1f}" dy="-6"'
            f' text-anchor="end">{name}</text>'
        )
    return out


def _round(ns: int) -> str:
    return duration(ns).replace(".00", "").replace("10.0", "10").replace("100.", "100")


def _ticks(end: float) -> list[float]:
    """Round seconds, about six of them."""
    rough = end / 6
    step = 10 ** math.floor(math.log10(rough))
    step = next(step * m for m in (1, 2, 5, 10) if step * m >= rough)
    return [step * n for n in range(int(end / step) + 1)]

"""Figures as words; all formats share it."""

from __future__ import annotations

from agenttop.report.model import Figure, Unit
from agenttop.text.figures import NA, duration, frequency, percent, rate, significant


def amount(unit: Unit, number: float | None) -> str:
    """A number with its unit; N/A for None."""
    if number is None:
        return NA
    if unit == "ratio":
        return percent(number)
    if unit == "ns":
        return duration(round(number))
    if unit == "points":
        return f"{100 * number:+.1f} points"
    if unit == "per_s":
        return f"{rate(number)}/s"
    if unit == "watts":
        return f"{number:.2f} W"
    if unit == "khz":
        return frequency(round(number))
    if unit == "times":
        return f"×{significant(number)}" if number < 999.5 else f"×{number:,.0f}"
    return f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.2f}"


def value(figure: Figure) -> str:
    """``31%``, ``~1.2ms``, ``>67.6s`` (a lower bound), ``N/A``."""
    if figure.over_range:
        return ">" + amount(figure.unit, figure.value)
    mark = "~" if figure.estimated and figure.value is not None else ""
    return mark + amount(figure.unit, figure.value)


def interval(figure: Figure) -> str:
    """``28%–34%``; empty where none can be told."""
    if figure.low is None or figure.high is None:
        return ""
    if figure.unit == "points":
        return f"{100 * figure.low:+.1f} to {100 * figure.high:+.1f}"
    if figure.low < 0:
        return f"{amount(figure.unit, figure.low)} to {amount(figure.unit, figure.high)}"
    return f"{amount(figure.unit, figure.low)}–{amount(figure.unit, figure.high)}"


def basis(figure: Figure) -> str:
    """``12,000 steps``."""
    return f"{figure.n:,} {figure.of}" if figure.n else ""


def said(figure: Figure) -> str:
    """Within a sentence: ``31% (95% interval 28%–34%)``."""
    told = interval(figure)
    return f"{value(figure)} ({told})" if told else value(figure)


def plural(number: int, one: str, many: str = "") -> str:
    """``1 agent``, ``5 agents``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"

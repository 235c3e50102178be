"""Figures and names as text: three significant digits, one unit, N/A is never 0.

Names of processes, interrupt lines and hosts are hostile input: nothing of
them reaches a terminal that could move its cursor, change its colours, turn
the reading direction or hide.
"""

from __future__ import annotations

import unicodedata
from typing import Any, Final

from agenttop.model.histogram_layout import LAST_NS

NA: Final = "N/A"
#: What a character that must not be printed becomes.
REPLACEMENT: Final = "\ufffd"
#: Combining marks in a row that a character may carry.
_MARKS: Final = 2
_ASCII: Final = str.maketrans(
    {"µ": "u", "…": "+", "–": "-", "→": ">", "≤": "<", "·": ".", "×": "x", "±": "~"}
)


# --------------------------------------------------------------------------- figures


def significant(value: float) -> str:
    """Three significant digits of a value from 0 to 999.5."""
    if value < 9.995:
        return f"{value:.2f}"
    if value < 99.95:
        return f"{value:.1f}"
    return f"{value:.0f}"


def duration(ns: int | None, estimated: bool = False) -> str:
    """``31ns``, ``1.21ms``, ``12.0s``; with a ~ before it when estimated; N/A for None."""
    if ns is None:
        return NA
    mark = "~" if estimated else ""
    if ns < 1_000:
        return f"{mark}{ns}ns"
    value = float(ns)
    for unit in ("µs", "ms", "s"):
        value /= 1_000
        if value < 999.5:
            return f"{mark}{significant(value)}{unit}"
    return f"{mark}{value:,.0f}s"


def measured(ns: int | None, estimated: bool = False) -> str:
    """A percentile or maximum, as duration(); ``>67.6s`` for what histograms tell no more of."""
    if ns is not None and ns >= LAST_NS:
        return f">{duration(LAST_NS)}"
    return duration(ns, estimated)


def rate(per_s: float | None) -> str:
    """Per second: ``3,410``, ``12.5``, ``0.25``, ``1.20M``."""
    if per_s is None:
        return NA
    if per_s == 0:
        return "0"
    if per_s < 0.005:
        return "<0.01"
    if per_s < 99.95:
        return significant(per_s)
    if per_s < 999_500:
        return f"{per_s:,.0f}"
    per_s /= 1e6
    return f"{significant(per_s)}M" if per_s < 999.5 else f"{per_s:,.0f}M"


def percent(ratio: float | None) -> str:
    """``0%``, ``0.02%``, ``6.1%``, ``82%``; what is there but tiny never becomes 0%."""
    if ratio is None:
        return NA
    value = ratio * 100
    if value == 0:
        return "0%"
    if value < 0.005:
        return "<.01%"
    if value < 0.995:
        return f"{value:.2f}%"
    return f"{value:.1f}%" if value < 9.95 else f"{value:.0f}%"


def count(number: int | None) -> str:
    """``126,527``."""
    return NA if number is None else f"{number:,}"


def frequency(khz: int | None) -> str:
    """``2.40GHz``, ``800MHz``."""
    if khz is None:
        return NA
    return f"{khz / 1e6:.2f}GHz" if khz >= 999_500 else f"{khz / 1e3:.0f}MHz"


# --------------------------------------------------------------------------- names


def clean(text: str, limit: int = 256) -> str:
    """One line fit for any terminal: what is no printable character shows as U+FFFD.

    That covers control characters and escape sequences, bidirectional
    overrides, zero-width characters, surrogates and line ends. Variation
    selectors and piled-up combining marks are left out. At most ``limit``
    characters.
    """
    text = text[: limit + 1]
    if not (text.isascii() and text.isprintable()):
        text = _cleaned(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean_all(value: Any, limit: int) -> Any:
    """The same for every text in what JSON is made of: lists and dictionaries, names too."""
    if isinstance(value, str):
        return clean(value, limit)
    if isinstance(value, list):
        return [clean_all(item, limit) for item in value]
    if isinstance(value, dict):
        return {clean_all(key, limit): clean_all(item, limit) for key, item in value.items()}
    return value


def _cleaned(text: str) -> str:
    out: list[str] = []
    marks = 0
    for char in text:
        if not char.isprintable():
            out.append(REPLACEMENT)
            marks = 0
        elif unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
            marks += 1
            selector = 0xFE00 <= ord(char) <= 0xFE0F or 0xE0100 <= ord(char) <= 0xE01EF
            if out and marks <= _MARKS and not selector:
                out.append(char)
        else:
            out.append(char)
            marks = 0
    return "".join(out)


def ascii_only(text: str) -> str:
    """For terminals and files that know nothing else; what has no likeness becomes ``?``."""
    if text.isascii():
        return text
    return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")


def cells(text: str) -> int:
    """Cells of a terminal that the text fills."""
    if text.isascii():
        return len(text)
    return sum(map(_cells_of, text))


def _cells_of(char: str) -> int:
    if char.isascii():
        return 1
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, width: int) -> str:
    """At most ``width`` cells; what is cut off shows as an ellipsis."""
    if cells(text) <= width:
        return text
    if width < 1:
        return ""
    used, out = 0, []
    for char in text:
        used += _cells_of(char)
        if used > width - 1:
            break
        out.append(char)
    return "".join(out) + "…"


def fit(text: str, width: int, right: bool = False) -> str:
    """Exactly ``width`` cells: cut or filled up."""
    text = cut(text, width)
    fill = " " * (width - cells(text))
    return fill + text if right else text + fill

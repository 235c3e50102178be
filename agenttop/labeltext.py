"""The labels of causes in a few words: "irq 36 virtio1-req.0, cpu 0"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from agenttop.procinfo import printable

#: Longest text of a label.
_MOST: Final = 80


def label_text(cause: str, label: Mapping[str, str | int | None]) -> str:
    """Of one label of a cause (words.DETAILS); nothing in it that a terminal would obey."""
    if not label:
        return "others"
    return printable(_WORDS[cause](label), _MOST)


def _interrupt(label: Mapping[str, Any]) -> str:
    what = label["vector"] or f"irq {label['line']} {label['name'] or ''}".strip()
    return f"{what}, cpu {label['cpu']}"


def _softirq(label: Mapping[str, Any]) -> str:
    return f"{label['vector']}, cpu {label['cpu']}"


def _timer(label: Mapping[str, Any]) -> str:
    return f"{label['kind']} {label['function'] or 'of an unknown function'}"


#: Cause -> the words of its label.
_WORDS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "interrupt": _interrupt,
    "softirq": _softirq,
    "timer": _timer,
}

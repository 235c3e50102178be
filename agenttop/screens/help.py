"""The help: keys from the bindings and the policies, and the words of the screen."""

from __future__ import annotations

from agenttop.screens.keys import BINDINGS, RESERVED, shown
from agenttop.text.figures import clean
from agenttop.view.state import View
from agenttop.widgets.detail_rows import blank, fact, title
from agenttop.widgets.paint import Line, Row

_WORDS = (
    ("step", "from one gate entry that blocked to the next of the same thread"),
    ("gate", "the system call in which a thread waits"),
    ("slowpath", "irq + softirq + ipi + idle_exit + queue + return: what the kernel adds"),
    ("~", "an estimate: fewer than 5 samples lie beyond it (with none it is N/A)"),
    ("N/A", "cannot be had here; select it and the frame says why"),
)


def help_rows(view: View, width: int) -> list[Row]:
    """Made from the bindings and from the policies' own keys."""
    rows: list[Row] = []
    groups: dict[str, list[tuple[str, str]]] = {}
    for binding in BINDINGS:
        group = binding.group.description if binding.group else ""
        groups.setdefault(group, []).append((shown(binding.key), binding.tooltip))
    for policy in view.policies:
        if policy.key not in RESERVED:
            text = f"{policy.name}: {policy.title}" + (
                " (readonly)" if view.options.readonly else " on or off"
            )
            groups["Policies"].insert(0, (clean(policy.key, 2), clean(text, 80)))
    for group, keys in groups.items():
        rows.append(title(group, width))
        for key, does in keys:
            row = Line(width).add("  ").fit(key, 13, "key").add(" ").add(does, "text").row()
            rows.append(row)
        rows.append(blank(width))
    rows.append(title("Words", width))
    for word, meaning in _WORDS:
        rows += fact(word, meaning, width)
    return rows

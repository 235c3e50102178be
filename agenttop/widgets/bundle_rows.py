"""Bundles as rows to choose from."""

from __future__ import annotations

from collections.abc import Sequence

from agenttop.policies.bundles import Bundle
from agenttop.text.figures import clean
from agenttop.view.bundles import available, is_on
from agenttop.view.state import View
from agenttop.widgets.paint import Line, Row


def bundle_rows(view: View, bundles: Sequence[Bundle], width: int) -> list[Row]:
    """One row for each: on or off, its name, its policies (those in brackets are N/A)."""
    rows = []
    names = max((len(bundle.name) for bundle in bundles), default=0)
    for bundle in bundles:
        there = {policy.name for policy in available(view, bundle)}
        on = is_on(view, bundle)
        line = Line(width).add(" ● " if on else " ○ ", "good" if on else "dim")
        line.fit(bundle.name, names + 2, "strong" if there else "faint")
        words = " ".join(p if p in there else f"({p})" for p in bundle.policies)
        line.fit(f"{words}: {clean(bundle.title, 200)}", max(width - names - 6, 1), "text")
        rows.append(line.row())
    return rows

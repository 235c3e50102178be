"""Causes as rows: what is observed, to choose from, and what the selected agent's steps had."""

from __future__ import annotations

from typing import Final

from agenttop.model.snapshot import Cause, CauseLabel
from agenttop.model.vocabulary import CAUSES
from agenttop.render.cause_text import rest_of
from agenttop.text.figures import NA, clean, count, duration, measured, percent
from agenttop.view.state import View
from agenttop.widgets.paint import Line, Row

#: The choices: what the engine is asked for, and what it means.
CHOICES: Final = (
    ("off", "no cause is observed: nothing is attached"),
    ("lite", "a probe where each happens"),
    ("full", "file metadata too, which taxes every system call"),
)
#: Labels of a cause that are listed.
_LABELS: Final = 3
#: Columns from which what a cause costs is told in full.
_WIDE: Final = 86


def observed(view: View) -> str:
    """The choice that holds now; empty where it is a choice of single causes."""
    on = {state.name for state in _states(view) if state.state == "on"}
    can = [cause for cause in CAUSES if cause.name not in _missing(view)]
    wanted = {
        "off": set[str](),
        "lite": {cause.name for cause in can if cause.level == "lite"},
        "full": {cause.name for cause in can},
    }
    return next((name for name, names in wanted.items() if names == on), "")


def cause_rows(view: View, width: int) -> list[Row]:
    """The choices first, a row each; then every cause with its figures and its cost."""
    now = observed(view)
    rows = []
    for name, meaning in CHOICES:
        line = Line(width).add(" ● " if name == now else " ○ ", "good" if name == now else "dim")
        rows.append(line.fit(name, 7, "strong").add(meaning, "text").row())
    agent = view.agent
    line = Line(width).add("   ").fit("cause", 17, "head")
    for head in ("steps", "times", "p50", "p99", "of stage"):
        line.fit(head, 9, "head", right=True)
    head = "  a run of its probes" if width >= _WIDE else "  its run"
    rows += [Line(width).row(), line.add(head, "head").row()]
    for state in _states(view):
        line = Line(width).add("   ").fit(state.name, 17, "text")
        stat = agent.causes.get(state.name) if agent is not None else None
        if agent is None or stat is None:
            reason = state.reason or "not observed in this agent"
            rows.append(line.fit(NA, 9, "dim", right=True).add(f"  {clean(reason)}", "dim").row())
            continue
        whole = agent.stages.get(state.stage)
        share = percent(stat.sum_ns / whole.sum_ns) if whole and whole.sum_ns else NA
        unknown = "not measured (b)" if width >= _WIDE else NA
        cost = unknown if state.run_ns is None else f"{state.run_ns:.0f} ns"
        for text in (
            count(stat.count),
            count(stat.events),
            measured(stat.p50_ns, "p50_ns" in stat.estimated) if stat.count else "-",
            measured(stat.p99_ns, "p99_ns" in stat.estimated) if stat.count else "-",
            share,
        ):
            line.fit(text, 9, "text", right=True)
        rows.append(line.add(f"  {cost}", "dim").row())
        rows += [_label(one, width) for one in stat.details[:_LABELS]]
    for stage, left in (agent.unexplained_ns if agent is not None else {}).items():
        whole = agent.stages.get(stage) if agent is not None else None
        share = percent(left / whole.sum_ns) if whole and whole.sum_ns else NA
        line = Line(width).add("   ").fit(f"rest of {stage}: {rest_of(stage)}", 53, "dim")
        rows.append(line.fit(share, 9, "text", right=True).row())
    return rows


def _label(one: CauseLabel, width: int) -> Row:
    line = Line(width).fit("", 11).fit(count(one.steps or one.events), 18, "dim", right=True)
    each = f"{duration(one.sum_ns // one.steps)} each" if one.steps else "no step"
    line.fit(each, 18, "dim", right=True)
    line.add(f"  {clean(one.text, 80)}", "accent")
    return line.add(f"  {clean(one.facts, 80)}", "dim").row()


def _states(view: View) -> list[Cause]:
    return view.snapshot.cause_states if view.snapshot is not None else []


def _missing(view: View) -> set[str]:
    return {state.name for state in _states(view) if state.state == "n/a"}

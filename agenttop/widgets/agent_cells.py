"""The cells of the agents table in colours; columns.py says what the columns are."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from agenttop.model.snapshot import Agent
from agenttop.render.columns import BY_NAME, COLUMNS, GAP, NAME_MOST, Column, chosen, needed
from agenttop.text.figures import NA, clean, percent
from agenttop.view.state import SLOWPATH_TARGET_NS, View
from agenttop.widgets.paint import Span, bar, fitted

#: Cells that a column takes on the screen, where that differs from the text output.
WIDTHS: Final = {"tail": 19, "source": 15}
#: The cursor's mark stands before the first column.
LEAD: Final = 2
_MORE: Final = sum(width - COLUMNS[key].width for key, width in WIDTHS.items())

Cell = Callable[[Agent, int], list[Span]]


@lru_cache(64)
def columns_for(width: int, chains: bool) -> list[Column]:
    """The columns that fit into ``width`` cells."""
    columns = chosen(width - LEAD - _MORE, chains)
    # What the wide cells do not need after all may hold one column more.
    more = chosen(width - LEAD, chains)
    return more if _used(more) <= width - LEAD else columns


def _used(columns: list[Column]) -> int:
    return needed(columns) + sum(WIDTHS.get(c.key, c.width) - c.width for c in columns)


@lru_cache(64)
def widths(width: int, chains: bool) -> list[int]:
    """Cells of each of these columns; name, sources and policies share what is left."""
    columns = columns_for(width, chains)
    spare = max(width - LEAD - _used(columns), 0)
    out = [WIDTHS.get(column.key, column.width) for column in columns]
    for wanted in ("name", "source", "policy"):
        for index, column in enumerate(columns):
            if column.key == wanted:
                most = NAME_MOST - column.width - 6 if wanted == "name" else 14
                more = min(spare, most)
                out[index] += more
                spare -= more
    return out


def cell(column: Column, agent: Agent, width: int) -> list[Span]:
    """The cell's text in roles, at most ``width`` cells."""
    special = _SPECIAL.get(column.key)
    if special is not None:
        return special(agent, width)
    text = column.text(agent)
    role = "dim" if text in (NA, "-") else _ROLES.get(column.key, "text")
    return [(fitted(text, width).rstrip() if len(text) > width else text, role)]


def named_cell(column: Column, row: Agent, width: int) -> list[Span]:
    """The same for the steps of one name: most columns have nothing to tell of them."""
    if column.key not in BY_NAME:
        return []
    if column.key == "name":
        return [(fitted(clean(row.name, 64), width).rstrip(), "text")]
    return cell(column, row, width)


def over_target(agent: Agent) -> bool:
    """Is the slowpath's p99 beyond what its stages may take together?"""
    p99 = agent.slowpath.p99_ns
    return p99 is not None and p99 > SLOWPATH_TARGET_NS


def explain(column: Column, agent: Agent, view: View) -> str:
    """What the column means, or why this agent's cell is N/A or an estimate."""
    text = column.text(agent)
    if text == NA:
        if column.chains and view.reason("chains"):
            return f"N/A, {view.reason('chains')}"
        if column.unit == "ns" and not column.chains:
            return f"N/A, {view.reason('schedstat') or 'no time slice in the window'}"
        if agent.steps:
            return "N/A, too few steps: none lies beyond it (p99 needs 100, p99.9 1,000)"
        return "N/A, no step in the window: the agent waits"
    if text.startswith("~"):
        return f"{column.meaning} (~ estimate: fewer than 5 steps lie beyond it)"
    if text.startswith(">"):
        return f"{column.meaning} (at least: nothing longer is told apart)"
    return column.meaning


def _name(agent: Agent, width: int) -> list[Span]:
    mark = "" if agent.alive else " ended"
    if agent.alive and agent.background:
        mark = " bg"
    shown = fitted(clean(agent.name, 64), width - len(mark)).rstrip()
    return [(shown, "strong" if agent.alive else "dim"), (mark, "dim")]


def _steps(agent: Agent, width: int) -> list[Span]:
    if agent.steps == 0:
        return [("waits", "dim")]
    text = COLUMNS["steps"].text(agent)
    return [(text, "dim" if text == NA else "accent")]


def _slow_p99(agent: Agent, width: int) -> list[Span]:
    text = COLUMNS["slow_p99"].text(agent)
    role = "alarm" if over_target(agent) else "dim" if text == NA else "strong"
    return [(text, role)]


def _tail(agent: Agent, width: int) -> list[Span]:
    stage, ratio = agent.tail.stage, agent.tail.ratio
    if stage is None or ratio is None:
        return [(NA if agent.slowpath.p99_ns is None else "-", "dim")]
    spans: list[Span] = [(f"{stage:<10}", f"stage.{stage}"), (f"{percent(ratio):>4}", "text")]
    if over_target(agent):
        spans.append((" over", "alarm"))
    return spans


def _sources(agent: Agent, width: int) -> list[Span]:
    """The most frequent source, a bar of its share, then the others."""
    total = sum(agent.sources.values())
    if not total:
        return [(NA if agent.steps is None else "-", "dim")]
    ranked = sorted(agent.sources.items(), key=lambda item: (-item[1], item[0]))
    top, number = ranked[0]
    full = bar(number / total, 5)
    spans: list[Span] = [(f"{top:<9}", "text"), (full, "accent"), ("░" * (5 - len(full)), "faint")]
    rest = " ".join(f"{name} {percent(n / total)}" for name, n in ranked[1:3])
    if rest and width >= 24:
        spans.append((" " + fitted(rest, width - 15).rstrip(), "dim"))
    return spans


def _policies(agent: Agent, width: int) -> list[Span]:
    if not agent.policies:
        return [("-", "faint")]
    return [("● ", "good"), (fitted(COLUMNS["policy"].text(agent), width - 2).rstrip(), "text")]


def _threads(agent: Agent, width: int) -> list[Span]:
    lost = agent.threads_tracked is not None and agent.threads_tracked < agent.threads
    return [(COLUMNS["threads"].text(agent), "warn" if lost else "dim")]


_SPECIAL: Final[dict[str, Cell]] = {
    "name": _name,
    "steps": _steps,
    "slow_p99": _slow_p99,
    "tail": _tail,
    "source": _sources,
    "policy": _policies,
    "threads": _threads,
}
_ROLES: Final = {"pid": "dim", "samples": "dim", "rule": "dim", "step_p50": "text"}


__all__ = ["GAP", "LEAD", "cell", "columns_for", "explain", "named_cell", "over_target", "widths"]

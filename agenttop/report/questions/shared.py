"""What several questions need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from agenttop.model.vocabulary import SLOWPATH_STAGES, STAGES
from agenttop.report.model import Answer, Figure, Part, Row, Table, Whole
from agenttop.report.question_data import Data
from agenttop.store.snapshot_builder import Named

#: Agents that get a row of their own.
MOST_ROWS: Final = 12
#: The stages from the wake-up to the switch-in.
RUN: Final = ("ipi", "idle_exit", "queue")


def stage(rows: Sequence[Named], *names: str) -> list[int]:
    """Each block's time in these stages, ns."""
    places = [STAGES.index(name) for name in names]
    return [sum(row.stages_ns[at] for at in places) for row in rows]


def tail(rows: Sequence[Named], *names: str) -> list[int]:
    """The same within the steps above the tail threshold (about the slowest 1 %)."""
    places = [STAGES.index(name) for name in names]
    return [sum(row.tail_ns[at] for at in places) for row in rows]


def steps(rows: Sequence[Named]) -> list[int]:
    """Each block's steps."""
    return [row.steps for row in rows]


def tail_steps(rows: Sequence[Named]) -> int:
    """All steps above the tail threshold."""
    return sum(row.tail_steps for row in rows)


def by_agent(
    data: Data, title: str, figures: Callable[[list[Named], int], list[Figure]]
) -> list[Table]:
    """A table with a row for each agent that made steps; none for a single agent."""
    rows = []
    for agent in data.agents()[:MOST_ROWS]:
        mine = data.rows([agent])
        if sum(steps(mine)):
            rows.append(Row(label(data, agent), figures(mine, agent)))
    return [table(title, "agent", rows)] if len(rows) > 1 else []


def table(title: str, of: str, rows: list[Row]) -> Table:
    """Whose columns are called as the first row's figures."""
    return Table(title, of, [each.name for each in rows[0].figures], rows)


def label(data: Data, agent: int) -> str:
    """``coder (4711)``."""
    known = data.known[agent]
    return f"{known.name} ({known.pid})"


def slowpath(data: Data) -> tuple[str, ...]:
    """The stages of the slowpath that are measured: at level lite there is no return."""
    return tuple(s for s in SLOWPATH_STAGES if s != "return" or data.host.level == "full")


def whole(title: str, rows: Sequence[Named], names: Sequence[str]) -> Whole:
    """How these stages share their time."""
    sums = {name: sum(stage(rows, name)) for name in names}
    total = sum(sums.values())
    return Whole(title, [Part(name, ns / total) for name, ns in sums.items() if total])


def not_measured(
    key: str, question: str, why: str, instead: str, figures: Sequence[Figure] = ()
) -> Answer:
    """Nothing can be said: why, and how it could be."""
    return Answer(
        key=key,
        question=question,
        state="not measured",
        answer=f"Not measured here: {why}.",
        how="",
        figures=list(figures),
        missing=why,
        instead=instead,
    )


def no_steps(data: Data, key: str, question: str) -> Answer | None:
    """The answer when there are no step chains, or no steps in them."""
    if data.no_chains is not None:
        return not_measured(
            key,
            question,
            f"no step chains ({data.no_chains})",
            "Run it as root on a kernel with BTF, with the distribution's BCC (agenttop doctor).",
        )
    if not sum(steps(data.rows(data.agents()))):
        return not_measured(
            key,
            question,
            "no agent made a step",
            "Measure while agents work; --agent pid:N names one.",
        )
    return None


def main_rows(data: Data) -> tuple[list[Named], str]:
    """The blocks of the agents in the foreground (of all, if none is), and who that is."""
    chosen = data.foreground()
    rows = data.rows(chosen)
    if sum(steps(rows)):
        left_out = len(data.agents()) - len(chosen)
        return rows, f" ({left_out} in the background left out)" if left_out else ""
    return data.rows(data.agents()), " (all of them in the background)"

"""What causes cost steps, for the questions that ask for one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from agenttop.model.vocabulary import CAUSES, STAGES
from agenttop.report.estimate import quotient
from agenttop.report.figure_text import said, value
from agenttop.report.model import Answer, Figure, Row, Table
from agenttop.report.question_data import Data, Labelled
from agenttop.report.questions.shared import MOST_ROWS, label, no_steps, not_measured, table
from agenttop.report.time_blocks import CAUSE_FIELDS
from agenttop.store.snapshot_builder import Named
from agenttop.store.windows import Ints

_STEPS, _EVENTS, _NS = range(CAUSE_FIELDS)


def lacking(data: Data, asked: dict[str, str]) -> list[str]:
    """What cannot be told: ``asked`` has a text for each cause, of those not observed."""
    return [text for cause, text in asked.items() if not data.observed(cause)]


@dataclass(frozen=True)
class Gained:
    """What a cause added, in each of the blocks in which it was observed."""

    #: All of the agents' scalars; steps that had the cause, its events and its time.
    rows: list[Named]
    had: list[int]
    events: list[int]
    ns: list[int]

    @property
    def steps(self) -> list[int]:
        """All steps, with the cause and without it."""
        return [row.steps for row in self.rows]

    def stages(self, *names: str) -> list[int]:
        """Time in these stages."""
        places = [STAGES.index(name) for name in names]
        return [sum(row.stages_ns[at] for at in places) for row in self.rows]


def gained(data: Data, name: str, agents: Sequence[int] | None = None) -> Gained | None:
    """Of the agents in the foreground, or of these; None where it was not observed."""
    blocks = data.observed(name)
    if not blocks:
        return None
    chosen = (data.foreground() or data.agents()) if agents is None else agents
    rows = data.rows(chosen)
    sums = [
        [
            sum(
                int(data.blocks[at].causes[agent][name][field])
                for agent in chosen
                if name in data.blocks[at].causes.get(agent, {})
            )
            for at in blocks
        ]
        for field in range(CAUSE_FIELDS)
    ]
    return Gained([rows[at] for at in blocks], sums[_STEPS], sums[_EVENTS], sums[_NS])


def summed(data: Data, cause: str, name: str) -> list[int]:
    """One of a cause's sums (words.DETAILS), over all its labels, in each block."""
    columns = (one.sums(name).tolist() for one in data.labels(cause))
    return added([0] * len(data.observed(cause)), columns)


def added(zeros: Sequence[int], columns: Iterable[Sequence[int]]) -> list[int]:
    """Columns of one value for each block, summed; ``zeros`` where there are none."""
    return [sum(row) for row in zip(zeros, *columns, strict=True)]


def label_table(
    title: str, of: str, labels: Sequence[Labelled], figures: Callable[[Labelled], list[Figure]]
) -> list[Table]:
    """A row for each of them; no table without any."""
    rows = [Row(one.text, figures(one)) for one in labels]
    return [table(title, of, rows)] if rows else []


def share(key: str, one: Labelled, steps: Sequence[int]) -> Figure:
    """How many of these steps had the label."""
    return quotient(key, "of steps", one.steps, steps, n=sum(steps))


def each(key: str, name: str, one: Labelled, ns: Ints) -> Figure:
    """Time in a step that had the label."""
    return quotient(key, name, ns, one.steps, unit="ns", n=int(one.steps.sum()))


def not_observed(data: Data, name: str) -> str:
    """Why a cause was not."""
    known = next((state for state in data.newest.causes if state.name == name), None)
    if known is not None and known.state != "on" and known.reason:
        return f"{name}: {known.reason}"
    return f"the cause {name} was not observed"


def answer(key: str, question: str, data: Data, word: str, instead: str) -> Answer:
    """From the causes that have this word in their name, where they were observed."""
    if (cannot := no_steps(data, key, question)) is not None:
        return cannot
    known = [cause for cause in CAUSES if word in cause.name]
    if not known:
        return not_measured(key, question, "this agenttop observes no such cause", instead)
    seen = [c for c in known if any(c.name in block.observed for block in data.blocks)]
    if not seen:
        states = {state.name: state.reason for state in data.newest.causes}
        why = next((states[c.name] for c in known if states.get(c.name)), "")
        names = " and ".join(cause.name for cause in known)
        told = f"{names}: {why}" if why else f"the causes {names} were not observed"
        return not_measured(key, question, told, instead)
    agents = data.foreground() or data.agents()
    figures: list[Figure] = []
    parts, rows = [], []
    for cause in seen:
        mine = _figures(data, agents, cause.name, cause.stage, f"{cause.name}: ")
        figures += mine
        parts.append(
            f"{said(mine[0])} of steps had {cause.meaning}, {value(mine[1])} in each of those"
            f" on average and {said(mine[3])} of all {cause.stage}"
        )
        rows += [
            Row(f"{label(data, agent)}: {cause.name}", own)
            for agent in data.agents()[:MOST_ROWS]
            if (own := _figures(data, [agent], cause.name, cause.stage, ""))[0].value
        ]
    lacking = [cause.name for cause in known if cause not in seen]
    return Answer(
        key=key,
        question=question,
        state="partly measured" if lacking else "measured",
        answer="; ".join(parts) + ".",
        how="The causes as the kernel side adds them up within each step, in the time in which they"
        " were observed.",
        figures=figures,
        tables=[table("agents that had them", "agent", rows)] if len(rows) > 1 else [],
        missing=f"{' and '.join(lacking)}: not observed" if lacking else None,
        instead=instead if lacking else None,
    )


def _figures(data: Data, agents: Sequence[int], name: str, stage: str, prefix: str) -> list[Figure]:
    found = gained(data, name, agents) or Gained([], [], [], [])
    made, had = sum(found.steps), sum(found.had)
    return [
        quotient(f"{name}_ratio", f"{prefix}steps that had it", found.had, found.steps, n=made),
        quotient(f"{name}_mean_ns", f"{prefix}time in such a step", found.ns, found.had,
                 unit="ns", n=had),
        quotient(f"{name}_events", f"{prefix}events in such a step", found.events, found.had,
                 unit="count", n=had),
        quotient(f"{name}_stage_ratio", f"{prefix}of the time of {stage}", found.ns,
                 found.stages(stage), n=made),
    ]  # fmt: skip

"""What agents' steps were spent on, as the Store keeps it: the causes of their stages.

An agent's causes are summed in slots beside its own (annexes, as step_names.py has
them for names), from when it has had any: the histograms of words.CAUSES in
their order, and a row of scalars with their sums. What their labels gained
stands beside the scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from agenttop.model import snapshot as shot
from agenttop.model.row_layout import BLOCK, CAUSE_ANNEXES
from agenttop.model.sample import (
    AgentCounters,
    CauseCounters,
    CauseState,
    DetailCounters,
    Histogram,
)
from agenttop.model.vocabulary import CAUSE_NAMES, CAUSES, DETAILS, STAGES
from agenttop.store.windows import Ints, Label
from agenttop.text.cause_labels import label_facts, label_text

#: Sums of a cause: steps, events, ns.
_SUMS: Final = 3
#: Behind those of an annex's causes stands, in the first, the time that is explained by stage.
_EXPLAINED: Final = slice(_SUMS * BLOCK, _SUMS * BLOCK + len(STAGES))
_LARGEST: Final = (1 << 63) - 1
#: Labels of a cause that are kept of an agent: those of the kernel side and one for the rest.
_MOST_LABELS: Final = 65
#: Sums of a label before those of its own: steps, events, ns.
_LABEL_SUMS: Final = 3


@dataclass(slots=True)
class Caused:
    """An agent's causes, and the annexes in which they are summed (none until there was one)."""

    annexes: list[int] = field(default_factory=list)
    #: The sums at the newest Sample, a row for each annex.
    before: Ints | None = None
    #: Label -> what was told of it last, by cause.
    labels: dict[str, dict[tuple[int, ...], DetailCounters]] = field(default_factory=dict)

    def take(
        self, counters: AgentCounters, width: int, first: bool, slot: Callable[[], int]
    ) -> tuple[list[int], list[Ints]]:
        """What the sums gained: the annexes, and a row of ``width`` scalars for each.

        ``first``: it is the first Sample, what came before it does not count.
        ``slot`` gives a fresh slot.
        """
        if not counters.causes:
            return [], []
        if not self.annexes:
            self.annexes += [slot() for _ in range(CAUSE_ANNEXES)]
        now = _sums(counters, width)
        before = np.zeros_like(now) if self.before is None else self.before
        gained = np.zeros_like(now) if first else np.maximum(now - before, 0)
        self.before = now
        return self.annexes, list(gained)

    def take_labels(
        self, causes: Mapping[str, CauseCounters], first: bool
    ) -> dict[Label, list[int]]:
        """What the sums of each label gained: steps, events, ns, and what words.DETAILS has."""
        gained: dict[Label, list[int]] = {}
        for name in DETAILS.keys() & causes.keys():
            known = self.labels.setdefault(name, {})
            for one in causes[name].details:
                words = tuple(one.words)
                old = known.get(words)
                if old is None and len(known) >= _MOST_LABELS:
                    continue
                known[words] = one
                if first:
                    continue
                now, before = _label_sums(name, one), _label_sums(name, old)
                more = [max(a - b, 0) for a, b in zip(now, before, strict=True)]
                if any(more):
                    gained[name, words] = more
        return gained

    def histograms(self, given: Mapping[str, CauseCounters]) -> Iterator[tuple[int, Histogram]]:
        """Rows of the histograms that a Sample brought, and these."""
        for place, name in enumerate(CAUSE_NAMES):
            if self.annexes and name in given:
                yield self.row(place), given[name].histogram

    def rows(self) -> Iterator[int]:
        """All rows that belong to a cause."""
        if self.annexes:
            yield from (self.row(place) for place in range(len(CAUSES)))

    def row(self, place: int) -> int:
        """The row of a cause's histogram in Sums.counts."""
        return self.annexes[place // BLOCK] * BLOCK + place % BLOCK

    def sums(self, place: int, scalars: Sequence[Sequence[int]]) -> Sequence[int]:
        """Steps, events and ns of a cause, out of all slots' scalars."""
        if not self.annexes:
            return (0,) * _SUMS
        start = place % BLOCK * _SUMS
        return scalars[self.annexes[place // BLOCK]][start : start + _SUMS]


def _sums(counters: AgentCounters, width: int) -> Ints:
    rows = [[0] * width for _ in range(CAUSE_ANNEXES)]
    for place, name in enumerate(CAUSE_NAMES):
        one = counters.causes.get(name)
        if one is not None:
            start = place % BLOCK * _SUMS
            rows[place // BLOCK][start : start + _SUMS] = one.steps, one.events, one.sum_ns
    stages = counters.explained_stage_ns[: len(STAGES)]
    rows[0][_EXPLAINED] = stages + [0] * (len(STAGES) - len(stages))
    return np.array([[min(value, _LARGEST) for value in row] for row in rows], dtype=np.int64)


def _label_sums(cause: str, one: DetailCounters | None) -> list[int]:
    sums = DETAILS[cause].sums
    if one is None:
        return [0] * (_LABEL_SUMS + len(sums))
    return [one.steps, one.events, one.sum_ns, *(one.sums.get(name, 0) for name in sums)]


def by_cause(
    caused: Caused,
    states: Sequence[CauseState],
    scalars: Sequence[Sequence[int]],
    stat: Callable[[int, int, int], shot.Stat],
    labels: Mapping[Label, Sequence[int]],
) -> dict[str, shot.CauseStat | None]:
    """Figures of each cause that is observed, or was for a part of the interval; None else.

    ``stat`` makes a Stat of a row, steps and their sum. ``labels`` has what those of this agent
    gained.
    """
    on = {state.name for state in states if state.state == "on"}
    out: dict[str, shot.CauseStat | None] = {}
    for place, cause in enumerate(CAUSES):
        steps, events, ns = caused.sums(place, scalars)
        if not steps:
            # What happened aside, without a step that waited for it, has labels all the same.
            none = shot.CauseStat(stage=cause.stage, details=_by_label(caused, cause.name, labels))
            out[cause.name] = none if cause.name in on else None
            continue
        known = stat(caused.row(place), steps, ns)
        out[cause.name] = shot.CauseStat(
            known.count,
            known.sum_ns,
            known.p50_ns,
            known.p99_ns,
            known.p999_ns,
            known.max_ns,
            known.estimated,
            known.hdr,
            known.over_range,
            stage=cause.stage,
            events=events,
            details=_by_label(caused, cause.name, labels),
        )
    return out


def _by_label(
    caused: Caused, cause: str, labels: Mapping[Label, Sequence[int]]
) -> list[shot.CauseLabel]:
    found = []
    for (name, words), (steps, events, ns, *sums) in labels.items():
        one = caused.labels.get(cause, {}).get(words) if name == cause else None
        if one is None or not (steps or events):
            continue
        gained = dict(zip(DETAILS[cause].sums, sums, strict=True))
        found.append(
            shot.CauseLabel(
                label=(label := known_fields(cause, one.label)),
                text=label_text(cause, label),
                steps=steps,
                events=events,
                sum_ns=ns,
                max_ns=one.max_ns,
                sums={name: n if name in one.sums else None for name, n in gained.items()},
                facts=label_facts(cause, steps, events, gained),
            )
        )
    return sorted(found, key=lambda one: (-one.sum_ns, -one.steps, -one.events, one.text))


def known_fields(cause: str, label: Mapping[str, str | int | None]) -> dict[str, str | int | None]:
    """What words.DETAILS names, and it alone: a recording may come from anywhere."""
    if not label:
        return {}
    return {name: label.get(name) for name in DETAILS[cause].label}


def unexplained(
    caused: Caused,
    states: Sequence[CauseState],
    scalars: Sequence[Sequence[int]],
    stages_ns: Sequence[int],
) -> dict[str, int]:
    """What is left of each stage that observed causes explain, ns."""
    stages = {state.stage for state in states if state.state == "on"}
    explained = scalars[caused.annexes[0]][_EXPLAINED] if caused.annexes else [0] * len(STAGES)
    return {
        name: max(sum_ns - known, 0)
        for name, sum_ns, known in zip(STAGES, stages_ns, explained, strict=True)
        if name in stages
    }


def told(state: CauseState) -> shot.Cause:
    """A cause's state with the cost of its programs."""
    return shot.Cause(
        name=state.name,
        stage=state.stage,
        level=state.level,
        state=state.state,
        reason=state.reason or None,
        run_ns=state.run_ns / state.runs if state.runs else None,
    )

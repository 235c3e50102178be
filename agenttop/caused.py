"""What agents' steps were spent on, as the Store keeps it: the causes of their stages.

An agent's causes are summed in a slot beside its own (an annex, as named.py
has them for names), from when it has had any: the histograms of words.CAUSES
in their order, and a row of scalars with their sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from agenttop import snapshot as shot
from agenttop.model import AgentCounters, CauseCounters, CauseState, Histogram
from agenttop.rolling import BLOCK, Ints
from agenttop.words import CAUSE_NAMES, CAUSES, STAGES

#: Sums of a cause: steps, events, ns. Behind those of all causes stands the explained time.
_SUMS: Final = 3
_EXPLAINED: Final = _SUMS * len(CAUSES)
_NONE: Final = (0,) * (_EXPLAINED + 1)
_LARGEST: Final = (1 << 63) - 1


@dataclass(slots=True)
class Caused:
    """An agent's causes, and the annex in which they are summed (none until there was one)."""

    annexes: list[int] = field(default_factory=list)
    #: The sums at the newest Sample.
    before: tuple[int, ...] = _NONE

    def take(
        self, counters: AgentCounters, width: int, first: bool, slot: Callable[[], int]
    ) -> tuple[list[int], list[Ints]]:
        """What the sums gained: the annex, and a row of ``width`` scalars for it.

        ``first``: it is the first Sample, what came before it does not count.
        ``slot`` gives a fresh slot.
        """
        if not counters.causes:
            return [], []
        if not self.annexes:
            self.annexes.append(slot())
        now = _sums(counters)
        row = np.zeros(width, dtype=np.int64)
        if not first:
            row[: len(now)] = [max(a - b, 0) for a, b in zip(now, self.before, strict=True)]
        self.before = now
        return self.annexes, [row]

    def histograms(self, given: Mapping[str, CauseCounters]) -> Iterator[tuple[int, Histogram]]:
        """Rows of the histograms that a Sample brought, and these."""
        for place, name in enumerate(CAUSE_NAMES):
            if self.annexes and name in given:
                yield self.annexes[0] * BLOCK + place, given[name].histogram

    def rows(self) -> Iterator[int]:
        """All rows that belong to a cause."""
        for annex in self.annexes:
            yield from range(annex * BLOCK, annex * BLOCK + len(CAUSES))


def _sums(counters: AgentCounters) -> tuple[int, ...]:
    sums: list[int] = []
    for name in CAUSE_NAMES:
        one = counters.causes.get(name)
        sums += (one.steps, one.events, one.sum_ns) if one else (0,) * _SUMS
    return tuple(min(value, _LARGEST) for value in (*sums, counters.explained_ns))


def by_cause(
    caused: Caused,
    states: Sequence[CauseState],
    scalars: Sequence[Sequence[int]],
    stat: Callable[[int, int, int], shot.Stat],
) -> dict[str, shot.CauseStat | None]:
    """Figures of each cause that is observed, or was for a part of the interval; None else.

    ``stat`` makes a Stat of a row, steps and their sum.
    """
    on = {state.name for state in states if state.state == "on"}
    sums = scalars[caused.annexes[0]] if caused.annexes else _NONE
    out: dict[str, shot.CauseStat | None] = {}
    for place, cause in enumerate(CAUSES):
        steps, events, ns = sums[_SUMS * place : _SUMS * (place + 1)]
        if not steps:
            none = shot.CauseStat(stage=cause.stage)
            out[cause.name] = none if cause.name in on else None
            continue
        known = stat(caused.annexes[0] * BLOCK + place, steps, ns)
        out[cause.name] = shot.CauseStat(
            known.count,
            known.sum_ns,
            known.p50_ns,
            known.p99_ns,
            known.p999_ns,
            known.max_ns,
            known.estimated,
            known.hdr,
            stage=cause.stage,
            events=events,
        )
    return out


def unexplained(
    caused: Caused,
    states: Sequence[CauseState],
    scalars: Sequence[Sequence[int]],
    stages_ns: Sequence[int],
) -> dict[str, int]:
    """What is left of each stage that observed causes explain, ns."""
    stages = {state.stage for state in states if state.state == "on"}
    explained = scalars[caused.annexes[0]][_EXPLAINED] if caused.annexes else 0
    return {
        name: max(sum_ns - explained, 0)
        for name, sum_ns in zip(STAGES, stages_ns, strict=True)
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

"""What step markers told, as the Store keeps it: steps by name, contexts by class.

Names are summed in slots beside the agent's own. A slot of rolling.Sums has
room for the histograms of one agent; names need two each, so several share a
slot (an annex). Their sums stand in the annex's row of scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from agenttop.model import snapshot as shot
from agenttop.model.row_layout import BLOCK, MOST_NAMES, NAMES_PER_ANNEX
from agenttop.model.sample import Histogram, MarkCounters, NamedCounters
from agenttop.model.vocabulary import STEP_MEASURES
from agenttop.step import CLASSES
from agenttop.store.windows import Ints

#: Shown for the names beyond the limit.
OTHER: Final = "(other names)"
#: Sums of a name: steps, step_sum_ns, slowpath_sum_ns.
_SUMS: Final = 3
_NO_MARKS: Final = MarkCounters()
#: Numbers of a marks_row: met, missed and overrun of each class; four facts about the markers.
MARKS: Final = 3 * len(CLASSES) + 6
_LARGEST: Final = (1 << 63) - 1


@dataclass(slots=True)
class Lane:
    """The steps of one name."""

    place: int
    last: NamedCounters
    #: Its sums at the newest Sample.
    before: tuple[int, ...]


@dataclass(slots=True)
class Names:
    """An agent's names, and the annexes in which they are summed."""

    annexes: list[int] = field(default_factory=list)
    lanes: dict[int, Lane] = field(default_factory=dict)

    def take(
        self, given: Sequence[NamedCounters], width: int, first: bool, slot: Callable[[], int]
    ) -> tuple[list[int], list[Ints]]:
        """What the sums gained: annexes, and a row of ``width`` scalars for each.

        ``first``: it is the first Sample, what came before it does not count.
        ``slot`` gives a fresh slot.
        """
        rows: dict[int, Ints] = {}
        for counters in given:
            now = tuple(
                min(value, _LARGEST)
                for value in (counters.steps, counters.step_sum_ns, counters.slowpath_sum_ns)
            )
            lane = self.lanes.get(counters.lane)
            if lane is None:
                if len(self.lanes) >= MOST_NAMES:
                    continue
                place = len(self.lanes)
                if place // NAMES_PER_ANNEX >= len(self.annexes):
                    self.annexes.append(slot())
                lane = Lane(place, counters, now if first else (0,) * _SUMS)
                self.lanes[counters.lane] = lane
            annex = self.annexes[lane.place // NAMES_PER_ANNEX]
            row = rows.setdefault(annex, np.zeros(width, dtype=np.int64))
            row[_sums(lane)] = [max(a - b, 0) for a, b in zip(now, lane.before, strict=True)]
            lane.before, lane.last = now, counters
        return list(rows), list(rows.values())

    def histograms(self, given: Sequence[NamedCounters]) -> Iterator[tuple[int, Histogram]]:
        """Rows of the histograms that a Sample brought, and these."""
        for counters in given:
            lane = self.lanes.get(counters.lane)
            for measure, histogram in counters.histograms.items():
                if lane is not None and measure in STEP_MEASURES:
                    yield self.row(lane, measure), histogram

    def rows(self) -> Iterator[int]:
        """All rows that belong to a name."""
        for lane in self.lanes.values():
            yield from (self.row(lane, measure) for measure in STEP_MEASURES)

    def row(self, lane: Lane, measure: str) -> int:
        """The row of a measure's histogram in Sums.counts."""
        annex = self.annexes[lane.place // NAMES_PER_ANNEX]
        inside = lane.place % NAMES_PER_ANNEX * len(STEP_MEASURES)
        return annex * BLOCK + inside + STEP_MEASURES.index(measure)

    def sums(self, lane: Lane, scalars: Sequence[Sequence[int]]) -> list[int]:
        """Steps, and the sums of step and slowpath, out of all slots' scalars."""
        return list(scalars[self.annexes[lane.place // NAMES_PER_ANNEX]][_sums(lane)])


def by_name(
    names: Names,
    scalars: Sequence[Sequence[int]],
    present_ns: int,
    stat: Callable[[int, int, int], shot.Stat],
) -> dict[str, shot.NamedSteps]:
    """Figures of each name, those with most steps first.

    ``present_ns``: for how long the agent was there; ``stat`` makes a Stat of a row, steps
    and their sum.
    """
    out: dict[str, shot.NamedSteps] = {}
    lanes = [(lane, names.sums(lane, scalars)) for lane in names.lanes.values()]
    for lane, (steps, step_ns, slow_ns) in sorted(lanes, key=lambda one: -one[1][0]):
        name = told = lane.last.name or OTHER
        number = 2
        # What differs only in characters that are not shown.
        while told in out:
            told, number = f"{name} ({number})", number + 1
        out[told] = shot.NamedSteps(
            steps=steps,
            steps_per_s=steps * 1e9 / present_ns if present_ns else 0.0,
            step=stat(names.row(lane, "step"), steps, step_ns),
            slowpath=stat(names.row(lane, "slowpath"), steps, slow_ns),
        )
    return out


def _sums(lane: Lane) -> slice:
    start = lane.place % NAMES_PER_ANNEX * _SUMS
    return slice(start, start + _SUMS)


# --------------------------------------------------------------------------- contexts


def marks_row(marks: MarkCounters | None) -> list[int]:
    """What the markers told, as MARKS numbers that only grow."""
    marks = marks or _NO_MARKS
    classes = len(CLASSES)
    row = []
    for counts in (marks.met, marks.missed, marks.overrun):
        row += (counts + [0] * classes)[:classes]  # another version may know other classes
    own = (marks.contexts, marks.crowded, marks.unread, marks.invalid)
    return [*row, *own, marks.forgotten, marks.strays]


def deadlines(row: Sequence[int]) -> dict[str, shot.Deadlines]:
    """Class -> deadlines, of what a marks_row gained; only classes that had any."""
    classes = len(CLASSES)
    judged = (row[i::classes] for i in range(classes))
    return {
        name: shot.Deadlines(*counts[:3])
        for name, counts in zip(CLASSES, judged, strict=True)
        if any(counts[:3])
    }


def markers(row: Sequence[int]) -> shot.Markers:
    """The markers themselves, of what a marks_row gained."""
    return shot.Markers(*row[3 * len(CLASSES) :])

"""Steps by name and contexts by class, from Samples to the Snapshot, the text and the JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from agenttop.model.row_layout import MOST_NAMES as MOST
from agenttop.model.sample import Histogram, MarkCounters, NamedCounters, Sample
from agenttop.model.snapshot import Agent, Snapshot
from agenttop.render import snapshot_text
from agenttop.render.snapshot_json import encode
from agenttop.stats.histogram import BUCKETS, EDGES
from agenttop.store.step_names import OTHER
from agenttop.store.store import Store
from tests.support.synth import Synth


class Marked:
    """A Synth whose first agent has steps by name, all of a name equally long."""

    def __init__(self) -> None:
        self.synth = Synth(agents=2)
        self.store = Store(clock=lambda: self.synth.t_ns)
        #: lane -> (name, steps so far, ns of each)
        self.lanes: dict[int, tuple[str, int, int]] = {}
        self.marks: MarkCounters | None = None

    def name(self, lane: int, name: str, ns: int) -> None:
        self.lanes[lane] = (name, 0, ns)

    def steps(self, lane: int, more: int) -> None:
        name, steps, ns = self.lanes[lane]
        self.lanes[lane] = (name, steps + more, ns)

    def tick(self) -> Snapshot:
        sample = self.synth.sample()
        self._put(sample)
        self.store.feed(sample)
        snapshot = self.store.snapshot()
        assert snapshot is not None
        return snapshot

    def _put(self, sample: Sample) -> None:
        mine = sample.agents[0]
        mine.named = [
            NamedCounters(
                lane, name, steps, steps * ns, steps * ns // 10,
                {"step": _all_at(ns, steps), "slowpath": _all_at(ns // 10, steps)},
            )
            for lane, (name, steps, ns) in self.lanes.items()
        ]  # fmt: skip
        mine.marks = self.marks


def _all_at(ns: int, count: int) -> Histogram:
    bucket = int(np.searchsorted(EDGES, ns, side="right")) - 1
    assert 0 <= bucket < BUCKETS
    return (
        Histogram(np.uint16(bucket).tobytes(), np.uint64(count).tobytes()) if count else Histogram()
    )


def first(snapshot: Snapshot) -> Agent:
    return snapshot.agents[0]


def test_names_have_their_own_percentiles() -> None:
    marked = Marked()
    marked.name(5, "retrieve", 1_000_000)
    marked.name(9, "llm", 50_000_000)
    marked.steps(5, 1000)
    marked.tick()
    for _ in range(3):
        marked.steps(5, 200)
        marked.steps(9, 10)
        snapshot = marked.tick()
    named = first(snapshot).steps_by_name
    # What came before the first Sample does not count.
    assert [(name, one.steps) for name, one in named.items()] == [("retrieve", 600), ("llm", 30)]
    assert named["retrieve"].steps_per_s == pytest.approx(200)
    assert named["retrieve"].step.count == 600
    assert named["retrieve"].step.sum_ns == 600_000_000
    assert named["retrieve"].step.p99_ns == pytest.approx(1_000_000, rel=0.04)
    assert named["retrieve"].slowpath.p50_ns == pytest.approx(100_000, rel=0.04)
    assert named["llm"].step.p50_ns == pytest.approx(50_000_000, rel=0.04)
    # Of 30 steps none lies beyond it.
    assert named["llm"].step.p99_ns is None
    assert snapshot.agents[1].steps_by_name == {}


def test_more_names_than_fit_beside_each_other() -> None:
    marked = Marked()
    marked.tick()
    for lane in range(1, MOST + 10):
        marked.name(lane, f"n{lane}", lane * 100_000)
        marked.steps(lane, lane)
    named = first(marked.tick()).steps_by_name
    assert len(named) == MOST
    for lane in range(1, MOST + 1):
        one = named[f"n{lane}"]
        assert one.steps == lane
        if lane > 1:
            assert one.step.p50_ns == pytest.approx(lane * 100_000, rel=0.04)


def test_names_that_look_alike_stay_apart() -> None:
    marked = Marked()
    marked.tick()
    for lane, name in enumerate(("", "a\ufffd", "a\ufffd", OTHER), start=1):
        marked.name(lane, name, 1000)
        marked.steps(lane, 10 - lane)
    named = first(marked.tick()).steps_by_name
    assert list(named) == [OTHER, "a\ufffd", "a\ufffd (2)", f"{OTHER} (2)"]
    assert [one.steps for one in named.values()] == [9, 8, 7, 6]


def test_an_agents_names_end_with_it() -> None:
    marked = Marked()
    marked.name(1, "old", 1_000_000)
    marked.tick()
    marked.steps(1, 50)
    marked.tick()
    gone = marked.synth.agents[0].counters.id
    marked.synth.remove(gone)
    marked.lanes.clear()
    for _ in range(40):
        marked.tick()
    # Its slots have another owner now, which begins at 0.
    marked.synth.add()
    marked.synth.agents.reverse()
    marked.name(1, "new", 2_000_000)
    marked.steps(1, 7)
    snapshot = marked.tick()
    named = next(a for a in snapshot.agents if a.steps_by_name).steps_by_name
    assert {name: one.step.count for name, one in named.items()} == {"new": 7}
    assert named["new"].step.max_ns == pytest.approx(2_000_000, rel=0.04)


def test_deadlines_are_told_by_class() -> None:
    marked = Marked()
    marked.marks = MarkCounters(10, [0, 5, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], 1, 2, 3)
    assert first(marked.tick()).deadlines == {}
    marked.marks = MarkCounters(30, [0, 15, 0, 1], [0, 4, 0, 0], [0, 0, 0, 2], 1, 3, 5)
    agent = first(marked.tick())
    told = {name: (d.met, d.missed, d.overrun) for name, d in agent.deadlines.items()}
    assert told == {"interactive": (10, 3, 0), "batch": (0, 0, 2)}
    assert agent.markers is not None
    assert (agent.markers.contexts, agent.markers.crowded) == (20, 0)
    assert (agent.markers.unread, agent.markers.invalid) == (1, 2)


def test_another_versions_classes_do_no_harm() -> None:
    marked = Marked()
    marked.marks = MarkCounters(1, [1], [2] * 9, [])
    marked.tick()
    marked.marks = MarkCounters(2, [4], [3] * 9, [])
    told = first(marked.tick()).deadlines
    assert {name: (d.met, d.missed) for name, d in told.items()} == {
        "none": (3, 1),
        "interactive": (0, 1),
        "normal": (0, 1),
        "batch": (0, 1),
    }


def test_the_text_tells_names_and_deadlines() -> None:
    marked = Marked()
    marked.name(1, "tool:git", 3_000_000)
    marked.name(2, "llm\x1b[2J", 9_000_000)
    marked.tick()
    marked.steps(1, 400)
    marked.steps(2, 30)
    marked.marks = MarkCounters(500, [0, 390, 0, 0], [0, 10, 0, 0], [0, 0, 0, 0], crowded=3)
    snapshot = marked.tick()
    for width in (60, 120, 200):
        out = snapshot_text.report(snapshot, snapshot_text.Layout(width=width))
        assert max(map(len, out.splitlines())) <= width
        assert "\x1b" not in out
        lines = out.splitlines()
        row = next(i for i, line in enumerate(lines) if line.strip().startswith("tool:git"))
        assert lines[row - 1].startswith(first(snapshot).name[:8])
        assert "3.0" in lines[row] or width == 60
        assert lines[row + 1].strip().startswith("llm")
        assert "deadlines interactive: 10 of 400 missed" in " ".join(out.split())


def test_the_json_has_them() -> None:
    marked = Marked()
    marked.name(1, "tool:git", 3_000_000)
    marked.tick()
    marked.steps(1, 400)
    marked.marks = MarkCounters(400, [0, 390, 0, 0], [0, 10, 0, 0])
    agent, other = json.loads(encode(marked.tick()))["agents"]
    assert agent["steps_by_name"]["tool:git"]["step"]["count"] == 400
    assert agent["deadlines"] == {"interactive": {"met": 390, "missed": 10, "overrun": 0}}
    assert other["markers"] is None
    assert other["deadlines"] == {}

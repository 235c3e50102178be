"""Rows that are read while somebody writes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.read.counter_rows import Rows

SLOTS = np.array([3, 1], dtype=np.intp)


@pytest.fixture
def rows() -> Rows:
    live = np.zeros((2, 4), dtype=layout.dtype(layout.ROW_FIELDS))
    live["seq"], live["steps"], live["step_ns"] = 2, 10, 1000
    return Rows(live)


def test_a_row_that_stays_half_written_is_told_as_it_was_last(rows: Rows) -> None:
    assert rows.read(SLOTS)["steps"].tolist() == [20, 20]
    rows.live["steps"], rows.live["step_ns"] = 11, 1100
    rows.live["seq"] = 4
    rows.live["seq"][1, 3] = 3  # the writer does not get on
    rows.live["step_ns"][1, 3] = 1000
    read = rows.read(SLOTS)
    assert read["steps"].tolist() == [21, 22]
    assert read["step_ns"].tolist() == [2100, 2200]
    assert rows.steps(3) == {0: 11, 1: 10}
    assert rows.torn == 1
    rows.live["step_ns"][1, 3], rows.live["seq"][1, 3] = 1100, 4
    assert rows.read(SLOTS)["steps"].tolist() == [22, 22]
    assert rows.steps(3) == {0: 11, 1: 11}
    assert rows.torn == 1


def test_what_was_never_read_whole_is_nothing_yet(rows: Rows) -> None:
    rows.read(SLOTS)
    rows.clear(3)
    rows.live["steps"], rows.live["seq"] = 5, 1
    assert rows.read(SLOTS)["steps"].tolist() == [0, 20]
    assert rows.steps(3) == {}
    assert rows.torn == 4


CPUS, SLOT_COUNT = 70, 4
#: (CPU, slot, steps more), or a slot that gets another owner.
events = st.one_of(
    st.tuples(st.integers(0, CPUS - 1), st.integers(0, SLOT_COUNT - 1), st.integers(1, 2**40)),
    st.integers(0, SLOT_COUNT - 1),
)


@given(st.lists(st.lists(events, max_size=40), max_size=6))
def test_sums_are_those_of_all_rows_whatever_changes_between_two_reads(
    rounds: list[list[tuple[int, int, int] | int]],
) -> None:
    live = np.zeros((CPUS, SLOT_COUNT), dtype=layout.dtype(layout.ROW_FIELDS))
    rows = Rows(live)
    for each in rounds:
        for event in each:
            if isinstance(event, int):
                rows.clear(event)
                continue
            cpu, slot, more = event
            row = live[cpu, slot]
            row["seq"] += 2
            row["steps"] += more
            row["stage_ns"][:] += np.uint64(more) * np.arange(len(row["stage_ns"]), dtype=np.uint64)
        wanted = np.array([2, 0, 3], dtype=np.intp)
        read = rows.read(wanted)
        for at, slot in enumerate(wanted.tolist()):
            for field in ("steps", "stage_ns", "gates"):
                assert read[field][at].tolist() == live[field][:, slot].sum(axis=0).tolist()
            steps = live["steps"][:, slot]
            assert rows.steps(slot) == {int(c): int(steps[c]) for c in steps.nonzero()[0]}

"""Rows that are read while somebody writes them."""

from __future__ import annotations

import numpy as np
import pytest

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.rows import Rows

SLOTS = np.array([3, 1], dtype=np.intp)


@pytest.fixture
def rows() -> Rows:
    live = np.zeros((2, 4), dtype=layout.dtype(layout.ROW_FIELDS))
    live["seq"], live["steps"], live["step_ns"] = 2, 10, 1000
    return Rows(live)


def test_a_row_that_stays_half_written_is_told_as_it_was_last(rows: Rows) -> None:
    assert rows.read(SLOTS)["steps"].tolist() == [[10, 10], [10, 10]]
    rows.live["steps"], rows.live["step_ns"] = 11, 1100
    rows.live["seq"][1, 3] = 3  # the writer does not get on
    rows.live["step_ns"][1, 3] = 1000
    read = rows.read(SLOTS)
    assert read["steps"].tolist() == [[11, 11], [10, 11]]
    assert read["step_ns"].tolist() == [[1100, 1100], [1000, 1100]]
    assert rows.torn == 1
    rows.live["step_ns"][1, 3], rows.live["seq"][1, 3] = 1100, 4
    assert rows.read(SLOTS)["steps"].tolist() == [[11, 11], [11, 11]]
    assert rows.torn == 1


def test_what_was_never_read_whole_is_nothing_yet(rows: Rows) -> None:
    rows.read(SLOTS)
    rows.clear(3)
    rows.live["steps"], rows.live["seq"] = 5, 1
    assert rows.read(SLOTS)["steps"].tolist() == [[0, 10], [0, 10]]
    assert rows.torn == 4

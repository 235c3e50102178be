"""Many histograms at once agree with one at a time, and packed ones survive damage."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.model.row_layout import BLOCK
from agenttop.model.sample import Histogram
from agenttop.stats import histogram
from agenttop.stats.sparse_counts import Cells
from agenttop.store.windows import Cumulative, Figures, Ints, estimated, unpack
from agenttop.store.windows import figures as of_cells

VALUES = st.lists(
    st.one_of(st.integers(0, 200), st.integers(0, histogram.MAX_VALUE_NS)), max_size=60
)


def counted(values: list[int]) -> np.ndarray:
    counts = histogram.empty()
    for value in values:
        histogram.record(counts, value)
    return counts.astype(np.int64)


def packed(counts: dict[int, int]) -> Histogram:
    return Histogram(
        np.array(list(counts), dtype="<u2").tobytes(),
        np.array(list(counts.values()), dtype="<u8").tobytes(),
    )


def figures(counts: Ints, lacking: Callable[[Ints], Ints] | None = None) -> Figures:
    """Of a whole table."""
    return of_cells(Cells.of(counts), len(counts), lacking)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_figures_are_those_of_each_histogram_alone(rows: list[list[int]]) -> None:
    counts = np.array([counted(values) for values in rows])
    found = figures(counts)
    for i in range(len(rows)):
        alone = histogram.percentiles(counts[i].astype(np.uint64), (0.5, 0.99, 0.999))
        assert [None if v < 0 else v for v in found.values[i].tolist()] == alone
        most = histogram.maximum(counts[i].astype(np.uint64))
        assert found.maximum[i] == (-1 if most is None else most)
        assert found.total[i] == len(rows[i])


@given(st.lists(st.integers(0, histogram.MAX_VALUE_NS), min_size=1, max_size=200))
def test_percentiles_lie_within_a_bucket_of_the_exact_ones(values: list[int]) -> None:
    found = figures(counted(values)[None, :]).values[0].tolist()
    exact = sorted(values)
    for (part, whole), value in zip(((1, 2), (99, 100), (999, 1000)), found, strict=True):
        true = exact[math.ceil(len(exact) * part / whole) - 1]
        assert abs(value - true) <= true / 32 + 1


@given(VALUES, st.integers(0, 500))
def test_zeros_that_are_told_apart_count_as_if_they_had_been_counted(
    values: list[int], zeros: int
) -> None:
    told = figures(counted(values)[None, :], lambda totals: np.array([zeros]))
    given_ = figures(counted([0] * zeros + values)[None, :])
    assert told.values.tolist() == given_.values.tolist()
    assert told.total.tolist() == given_.total.tolist()
    assert told.maximum.tolist() == given_.maximum.tolist()


@pytest.mark.parametrize(
    ("total", "marks"),
    [
        (1, [True, True, True]),
        (9, [True, True, True]),
        (10, [False, True, True]),
        (499, [False, True, True]),
        (500, [False, False, True]),
        (4999, [False, False, True]),
        (5000, [False, False, False]),
    ],
)
def test_fewer_than_five_samples_beyond_make_an_estimate(total: int, marks: list[bool]) -> None:
    assert estimated(total) == marks


def test_only_what_is_new_is_added() -> None:
    table = Cumulative()
    table.update([(0, packed({3: 5, 9: 1}))], set())
    cells, added = table.update([(0, packed({3: 7}))], set())
    assert (cells.tolist(), added.tolist()) == ([3], [2])


def test_a_full_histogram_zeroes_what_it_does_not_name() -> None:
    table = Cumulative()
    table.update([(1, packed({3: 5, 9: 1}))], set())
    cells, added = table.update([(1, packed({3: 6}))], {1})
    assert (cells.tolist(), added.tolist()) == ([histogram.BUCKETS + 3], [1])
    assert table.counts.row(1)[9] == 0
    # ... and counting goes on from there.
    _, added = table.update([(1, packed({9: 2}))], set())
    assert added.tolist() == [2]


def test_a_count_that_goes_back_adds_nothing() -> None:
    table = Cumulative()
    table.update([(0, packed({3: 5}))], set())
    assert table.update([(0, packed({3: 2}))], set())[1].tolist() == []
    assert table.update([(0, packed({3: 3}))], set())[1].tolist() == [1]


@given(st.binary(max_size=64), st.binary(max_size=256))
def test_foreign_bytes_never_reach_beyond_the_table(buckets: bytes, counts: bytes) -> None:
    table = Cumulative()
    cells, added = table.update([(BLOCK - 1, Histogram(buckets, counts))], set())
    assert len(set(cells.tolist())) == len(cells) == len(added)
    assert all(
        (BLOCK - 1) * histogram.BUCKETS <= c < BLOCK * histogram.BUCKETS for c in cells.tolist()
    )
    assert (added > 0).all()


def test_a_bucket_named_twice_counts_once() -> None:
    twice = Histogram(np.array([4, 4], "<u2").tobytes(), np.array([1, 2], "<u8").tobytes())
    cells, counts = unpack([(0, twice)])
    assert (cells.tolist(), counts.tolist()) == ([4], [2])

"""Tables of which only what is in use takes memory: the same as whole ones."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agenttop.stats.histogram import BUCKETS
from agenttop.stats.sparse_counts import Cells, summed

CELLS = st.dictionaries(st.integers(0, 3 * BUCKETS - 1), st.integers(1, 1000), max_size=30)


@given(st.lists(st.tuples(CELLS, st.booleans()), max_size=8))
def test_it_counts_as_a_whole_table_does(changes: list[tuple[dict[int, int], bool]]) -> None:
    cells, whole = Cells(), np.zeros((3, BUCKETS), dtype=np.int64)
    flat = whole.reshape(-1)
    for change, add in changes:
        keys = np.array(sorted(change), dtype=np.int64)
        counts = np.array([change[key] for key in sorted(change)], dtype=np.int64)
        if add:
            cells.add(keys, counts)
            flat[keys] += counts
        else:
            cells.put(keys, counts)
            flat[keys] = counts
        assert cells.get(np.arange(len(flat))).tolist() == flat.tolist()
        assert [cells.row(row).tolist() for row in range(3)] == whole.tolist()
    assert Cells.of(whole).keys.tolist() == cells.keys.tolist()


@given(CELLS, CELLS)
def test_what_is_taken_off_again_takes_no_room(
    first: dict[int, int], second: dict[int, int]
) -> None:
    cells = Cells()
    for change, sign in ((first, 1), (second, 1), (first, -1), (second, -1)):
        keys = np.array(sorted(change), dtype=np.int64)
        cells.add(keys, np.array([change[key] for key in sorted(change)], dtype=np.int64), sign)
    assert len(cells) == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=40))
def test_cells_in_any_order_are_summed(pairs: list[tuple[int, int]]) -> None:
    keys = np.array([key for key, _ in pairs], dtype=np.int64)
    cells = summed(keys, np.array([count for _, count in pairs], dtype=np.int64))
    expected: dict[int, int] = {}
    for key, count in pairs:
        expected[key] = expected.get(key, 0) + count
    assert dict(zip(cells.keys.tolist(), cells.counts.tolist(), strict=True)) == expected
    assert cells.keys.tolist() == sorted(expected)

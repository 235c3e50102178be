"""The arithmetic behind the screen: plots, bars, layout, heat."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from agenttop.model.sample import Activity, CpuCounters, Sample
from agenttop.store.cpu_heat import KEPT, HeatHistory
from agenttop.view.layout import LEAST, PANELS, plan
from agenttop.widgets.braille_plot import Canvas, Scale, Timeline, binned
from agenttop.widgets.paint import Line, bar, blocks, fitted, heat, to_ascii
from agenttop.widgets.panel import window

SECOND = 10**9

# --------------------------------------------------------------------------- plots


@given(st.lists(st.integers(1, 10**11), min_size=1, max_size=50))
@example([10**10 + 1])
def test_a_scale_holds_all_values(values: list[int]) -> None:
    scale = Scale.over(values)
    assert scale.low <= min(values)
    assert scale.high >= max(values)
    assert scale.high / scale.low >= 9.99
    assert 0 <= scale.place(min(values)) <= scale.place(max(values)) <= 1


@given(st.lists(st.integers(1, 10**11), min_size=1, max_size=9), st.integers(2, 40))
def test_ticks_lie_on_rows_from_high_to_low(values: list[int], rows: int) -> None:
    ticks = sorted(Scale.over(values).ticks(rows).items())
    assert all(0 <= row < rows for row, _ in ticks)
    assert [v for _, v in ticks] == sorted((v for _, v in ticks), reverse=True)


def test_no_values_have_a_scale_too() -> None:
    assert Scale.over([]).high > Scale.over([0]).low > 0


@given(st.integers(0, 10**15), st.integers(60, 600), st.integers(1, 200))
def test_the_newest_moment_lies_in_the_last_column(end: int, span: int, columns: int) -> None:
    line = Timeline(end, span * SECOND, columns)
    assert line.column(end) == columns - 1
    assert line.column(line.start_ns) == 0
    assert line.column(line.start_ns - 1) is None


def test_a_picture_moves_by_whole_cells() -> None:
    starts = {Timeline(t * SECOND // 10, 300 * SECOND, 90).first_dot for t in range(1000)}
    assert len(starts) <= 31  # 100 s, a cell each 3.3 s
    assert all(start % 2 == min(starts) % 2 for start in starts)


def test_a_bin_has_the_worst_and_small_gaps_are_bridged() -> None:
    line = Timeline(100 * SECOND, 40 * SECOND, 20)  # a dot a second
    first = line.start_ns
    bins = binned([(first, 5), (first, 9), (first + 3 * SECOND, 7), (first + 20 * SECOND, 3)], line)
    assert bins[:4] == [9, 9, 9, 7]
    assert bins[4:20] == [None] * 16


@given(
    st.lists(st.none() | st.integers(1, 10**9), max_size=60).filter(lambda v: len(v) % 2 == 0),
    st.integers(2, 12),
    st.booleans(),
)
def test_every_row_of_a_canvas_has_its_width(
    values: list[int | None], rows: int, ascii_only: bool
) -> None:
    known = [v for v in values if v is not None]
    canvas = Canvas(len(values) // 2, rows, Scale.over(known), ascii_only)
    canvas.level(1000, "·", "warn")
    if values:
        canvas.upright(0, "┊", "marker")
    canvas.line(values, "series.0")
    canvas.word(0, "guard on", "marker")
    for y in range(rows):
        text = "".join(piece for piece, _ in canvas.spans(y))
        assert len(text) == canvas.columns
    drawn = {x for row in canvas.cells for x, (_, role) in row.items() if role == "series.0"}
    assert drawn >= {x // 2 for x, v in enumerate(values) if v is not None} - set(range(10))


# --------------------------------------------------------------------------- cells


@given(st.floats(0, 1), st.integers(1, 80))
def test_a_bar_fits_and_something_is_never_nothing(ratio: float, width: int) -> None:
    drawn = bar(ratio, width)
    assert len(drawn) <= width
    assert bool(drawn) == (ratio > 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 100))
def test_a_stacked_bar_fits_and_shows_each_part(shares: list[float], width: int) -> None:
    parts = [(share, f"part{i}", f"role{i}") for i, share in enumerate(shares)]
    spans = blocks(parts, width)
    assert sum(cell_len(text) for text, _ in spans) <= width
    seen = {role for _, role in spans}
    wanted = {f"role{i}" for i, share in enumerate(shares) if share > 0}
    assert seen <= wanted
    assert seen == wanted or len(wanted) > width or sum(shares) > 1


@given(st.text(max_size=30), st.integers(0, 20))
def test_a_field_has_its_width(text: str, width: int) -> None:
    shown = "".join(c for c in text if c.isprintable())
    assert cell_len(fitted(shown, width)) == width


@given(st.lists(st.text(st.characters(blacklist_categories=["C"]), max_size=9)), st.integers(0, 40))
def test_a_line_has_its_width(texts: list[str], width: int) -> None:
    line = Line(width)
    for text in texts:
        line.add(text)
    row = line.row()
    assert cell_len(row.text) == width
    assert to_ascii(row.text).isascii()


def test_heat_grows_with_the_share() -> None:
    levels = [heat(share) for share in (None, 0, 0.002, 0.007, 0.02, 0.05, 0.1, 0.3, 1)]
    assert levels == [0, 0, 1, 2, 3, 4, 5, 6, 7]


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 50), st.integers(0, 99))
def test_the_selected_row_is_in_the_window(count: int, at: int, height: int, start: int) -> None:
    at = min(at, max(count - 1, 0))
    top = window(count, at, height, start)
    assert 0 <= top <= max(count - 1, 0)
    if count and height:
        assert top <= at < top + height


# --------------------------------------------------------------------------- layout


@given(
    st.integers(1, 300), st.integers(1, 120), st.integers(1, 3), st.integers(0, 300),
    st.integers(0, 256), st.integers(0, 12), st.sampled_from(PANELS),
)  # fmt: skip
def test_a_layout_fills_the_screen_and_no_more(
    width: int, height: int, header: int, agents: int, cpus: int, policies: int, panel: str
) -> None:
    made = plan(width, height, header, agents, cpus, policies, panel)
    assert made.too_small == (width < LEAST[0] or height < LEAST[1])
    if made.too_small:
        return
    columns = [sum(rows for _, rows in side) for side in (made.left, made.right)]
    bottom = {rows for _, rows in made.bottom}
    assert len(bottom) <= 1
    total = made.header + made.agents + max(columns) + sum(bottom) + 1
    assert total == height
    assert made.agents >= 3
    assert all(rows >= 3 for rows in made.heights.values())
    assert len(set(filter(None, columns))) <= 1
    assert len(made.heights) == 1 or not made.heights or len(made.heights) >= 4


# --------------------------------------------------------------------------- heat


def _sample(second: int, time_ns: int | None) -> Sample:
    cpu = CpuCounters(cpu=0, irqs={"1": Activity(1, time_ns)}, softirqs={"RCU": Activity(1, 0)})
    if time_ns is None:
        cpu.softirqs = {}
    return Sample(t_ns=second * SECOND, wall_s=0, seq=second, full=True, cpus=[cpu])


def test_heat_is_the_share_of_each_interval() -> None:
    history = HeatHistory()
    for second, time_ns in enumerate([0, SECOND // 2, SECOND // 2, 10]):
        history.feed(_sample(second, time_ns))
    assert history.by_cpu[0] == [0.5, 0.0, None]  # the counter began anew at the end


def test_heat_that_cannot_be_had_is_not_zero_and_memory_is_bounded() -> None:
    history = HeatHistory()
    for second in range(3 * KEPT):
        history.feed(_sample(second, None))
    assert history.by_cpu[0] == [None] * KEPT


@pytest.mark.parametrize("text", ["╭─╮│", "▁▂█", "⌂ ● ○", "1.2µs", "e\u0301", "漢"])
def test_ascii_keeps_the_cells(text: str) -> None:
    assert cell_len(to_ascii(text)) == cell_len(text)

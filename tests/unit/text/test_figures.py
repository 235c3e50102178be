"""Figures with three significant digits; names that cannot harm a terminal."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.text.figures import (
    NA,
    ascii_only,
    cells,
    clean,
    cut,
    duration,
    fit,
    frequency,
    percent,
    rate,
)

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b2J",
    "two\nlines\r\t",
    "abc\u202egnp.exe",
    "zero\u200bwidth\u2060",
    "\u2066isolate\u2069",
    "a\ud800b",
    "[bold]markup[/bold]",
    "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033da\u030flgo",
    "日本語のエージェント",
    "👩‍💻",
    "\x00\x7f\x85\u2028\u2029",
]
TEXT = st.one_of(st.text(max_size=80), st.sampled_from(HOSTILE))


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, NA),
        (0, "0ns"),
        (999, "999ns"),
        (1_000, "1.00µs"),
        (1_214_000, "1.21ms"),
        (9_994, "9.99µs"),
        (9_996, "10.0µs"),
        (99_960, "100µs"),
        (999_499, "999µs"),
        (999_500, "1.00ms"),
        (999_500_000, "1.00s"),
        (68_719_476_735, "68.7s"),
        (4_000_000_000_000, "4,000s"),
    ],
)
def test_durations(ns: int | None, text: str) -> None:
    assert duration(ns) == text


@given(st.integers(1, 900_000_000_000))
def test_durations_keep_three_digits(ns: int) -> None:
    match = re.fullmatch(r"([\d.]+)(ns|µs|ms|s)", duration(ns))
    assert match
    number, unit = match.groups()
    scale = {"ns": 1, "µs": 10**3, "ms": 10**6, "s": 10**9}[unit]
    assert float(number) * scale == pytest.approx(ns, rel=0.0051)
    assert len(duration(ns)) <= 6


def test_an_estimate_is_marked_and_what_is_missing_is_not() -> None:
    assert duration(1_500, estimated=True) == "~1.50µs"
    assert duration(None, estimated=True) == NA


@given(st.floats(1e-9, 1))
def test_a_share_that_is_there_never_reads_as_none(ratio: float) -> None:
    text = percent(ratio)
    assert text not in ("0%", "0.0%", "0.00%")
    assert len(text) <= 5


def test_rates_shares_and_frequencies() -> None:
    assert [rate(v) for v in (None, 0, 0.25, 12.34, 999.6, 3410, 1_200_000)] == [
        NA, "0", "0.25", "12.3", "1,000", "3,410", "1.20M",
    ]  # fmt: skip
    assert [percent(v) for v in (None, 0, 0.0002, 0.061, 0.82, 1)] == [
        NA, "0%", "0.02%", "6.1%", "82%", "100%",
    ]  # fmt: skip
    assert [frequency(v) for v in (None, 800_000, 2_400_000)] == [NA, "800MHz", "2.40GHz"]


@given(TEXT)
def test_nothing_that_a_terminal_obeys_gets_through(text: str) -> None:
    shown = clean(text)
    assert "\n" not in shown
    for char in shown:
        assert unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co")
    assert len(shown) <= 256
    shown.encode("utf-8")


def test_what_is_left_out_leaves_a_trace() -> None:
    assert clean("\x1b[31mred") == "\ufffd[31mred"
    assert clean("abc\u202egnp") == "abc\ufffdgnp"
    assert clean("[bold]x[/bold]") == "[bold]x[/bold]"
    assert clean("x" * 1000, 10) == "x" * 9 + "…"
    assert len(clean("Z" + "\u0351" * 50)) == 3


@given(TEXT, st.integers(0, 30), st.booleans())
def test_cells_are_filled_exactly(text: str, width: int, right: bool) -> None:
    text = clean(text)
    assert cells(cut(text, width)) <= width
    assert cells(fit(text, width, right)) == width


def test_wide_characters_are_not_cut_in_half() -> None:
    assert cut("日本語", 5) == "日本…"
    assert cut("日本語", 6) == "日本語"
    assert fit("日本語", 4) == "日… "


@given(TEXT)
def test_ascii_is_ascii(text: str) -> None:
    ascii_only(clean(text)).encode("ascii")


def test_units_stay_readable_in_ascii() -> None:
    assert ascii_only("12.3µs…") == "12.3us+"

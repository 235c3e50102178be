"""What is sent to the terminal shows the same picture as what Textual wrote."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from agenttop.screens.frame_diff import PLAIN, FrameSaver, Sgr, change, parsed

_TOKEN = re.compile(r"\x1b\[(\d+);(\d+)H|\x1b\[([0-9;]*)m|\x1b\[\?[0-9;]+[hl]|(\x1b\[2J)|([^\x1b])")
WIDTH = 12


class Screen:
    """A terminal that knows cursor positions, SGR and text."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], tuple[str, Sgr]] = {}
        self.x = self.y = 0
        self.style = PLAIN

    def write(self, data: str) -> None:
        for row, column, codes, clear, text in _TOKEN.findall(data):
            if row:
                self.y, self.x = int(row) - 1, int(column) - 1
            elif clear:
                self.cells.clear()
            elif text == "\n":
                self.y += 1
            elif text:
                self.cells[self.x, self.y] = (text, self.style)
                self.x += 1
            else:
                self._sgr(codes)

    def _sgr(self, codes: str) -> None:
        color, ground, attributes = self.style
        parts = codes.split(";")
        while parts:
            code = parts.pop(0)
            if code in ("38", "48"):
                size = 4 if parts[0] == "2" else 2
                value = ";".join([code, *parts[:size]])
                del parts[:size]
                color, ground = (value, ground) if code == "38" else (color, value)
            elif code in ("", "0"):
                color, ground, attributes = PLAIN
            elif code in ("39",) or 30 <= int(code) <= 37 or 90 <= int(code) <= 97:
                color = code
            elif code in ("49",) or 40 <= int(code) <= 47 or 100 <= int(code) <= 107:
                ground = code
            elif code not in attributes:
                attributes = (*attributes, code)
        self.style = Sgr(color, ground, tuple(sorted(attributes)))


styles = st.sampled_from(["31", "1;32", "38;2;1;2;3;48;2;9;9;9", "1;4;97;44", "38;5;7;48;5;8", "7"])
pieces = st.tuples(st.text("abc ─", min_size=1, max_size=5), styles)
rows = st.tuples(st.integers(0, 3), st.integers(0, 3), st.lists(pieces, min_size=1, max_size=4))
frames = st.lists(rows, min_size=1, max_size=4)


#: Rows: y, x, pieces of text and style.
Frame = list[tuple[int, int, list[tuple[str, str]]]]


def written(frame: Frame) -> str:
    """A frame as Textual's compositor writes it."""
    out = []
    for y, x, parts in frame:
        out.append(f"\x1b[{y + 1};{x + 1}H")
        out += [f"\x1b[{style}m{text}\x1b[0m" for text, style in parts]
        out.append("\n")
    return "".join(out) + "\x1b[1;1H"


@given(st.lists(frames, min_size=1, max_size=6))
def test_the_picture_is_the_same(
    session: list[list[tuple[int, int, list[tuple[str, str]]]]],
) -> None:
    saver, real, thrifty = FrameSaver(), Screen(), Screen()
    for frame in session:
        data = written(frame)
        real.write(data)
        thrifty.write(saver.saved(data))
        assert thrifty.cells == real.cells


def test_a_frame_that_is_there_already_costs_nothing() -> None:
    saver = FrameSaver()
    data = written([(0, 0, [("hello", "31"), (" world", "1;32")])])
    assert saver.saved(data)
    assert saver.saved(data) == ""


def test_only_the_changed_piece_is_sent_and_styles_as_differences() -> None:
    saver = FrameSaver()
    ground = "48;2;9;9;9"
    saver.saved(written([(0, 0, [("name  ", f"38;2;1;1;1;{ground}"), ("12", f"31;{ground}")])]))
    sent = saver.saved(
        written([(0, 0, [("name  ", f"38;2;1;1;1;{ground}"), ("13", f"31;{ground}")])])
    )
    assert sent == f"\x1b[1;7H\x1b[31;{ground}m13\x1b[0m"


def test_a_cleared_screen_is_drawn_anew() -> None:
    saver = FrameSaver()
    data = written([(0, 0, [("hello", "31")])])
    saver.saved(data)
    assert saver.saved("\x1b[2J") == "\x1b[2J"
    assert "hello" in saver.saved(data)


def test_switching_modes_passes_and_keeps_what_is_known() -> None:
    saver = FrameSaver()
    data = written([(0, 0, [("hello", "31")])])
    saver.saved(data)
    assert saver.saved("\x1b[?2026h") == "\x1b[?2026h"
    assert saver.saved(data) == ""
    assert saver.saved("\x1b[?1049l") == "\x1b[?1049l"
    assert "hello" in saver.saved(data)


def test_wide_characters_keep_their_place() -> None:
    saver = FrameSaver()
    saver.saved(written([(0, 0, [("漢字", "31"), ("ab", "32")])]))
    assert saver.saved(written([(0, 0, [("漢字", "31"), ("ac", "32")])])).startswith("\x1b[1;5H")


def test_other_sequences_pass_as_they_are() -> None:
    saver = FrameSaver()
    for data in ("\x1b]52;c;aGk=\x1b\\", "\x1b]0;title\x07", "\x1b[6n", "\x1b7", "\x1b"):
        assert saver.saved(data) == data


@given(styles, styles)
def test_a_change_of_style_leads_to_the_style(before: str, after: str) -> None:
    screen = Screen()
    screen.write(change(PLAIN, parsed(before)))
    screen.write(change(parsed(before), parsed(after)))
    wanted = parsed(after)
    assert screen.style == wanted._replace(attributes=tuple(sorted(wanted.attributes)))

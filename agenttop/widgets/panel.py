"""The base of every panel: rows in, only changed rows drawn.

A panel gives its rows as plain data (paint.Row); this class frames them,
compares them with those drawn before and asks Textual to redraw just the rows
that differ, each as one region of the panel's whole width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from agenttop.widgets.paint import Line, Row, Span, fitted, palette, size_of

if TYPE_CHECKING:
    from agenttop.view.state import View


class Panel(Widget):
    """Rows with a frame: ``rows`` is what a subclass gives."""

    DEFAULT_CSS = """
    Panel { height: 1fr; width: 1fr; }
    """

    FRAME: ClassVar[bool] = True

    def __init__(self, view: View, *, id: str) -> None:
        super().__init__(id=id)
        self.view = view
        #: Does it have the arrow keys?
        self.active = False
        self._rows: list[Row] = []
        self._strips: dict[int, Strip] = {}
        self._built_for = (-1, -1)
        #: How many rows were given to Textual to draw since the start (for the tests).
        self.rows_drawn = 0

    # ------------------------------------------------------------------ for subclasses

    def rows(self, width: int, height: int) -> list[Row]:
        """The rows inside the frame, at most ``height`` of exactly ``width`` cells."""
        raise NotImplementedError

    def title(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        """What stands in the upper border, left and right."""
        return (), ()

    def foot(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        """What stands in the lower border, left and right."""
        return (), ()

    # ------------------------------------------------------------------ drawing

    def sync(self) -> None:
        """Build the rows anew and have those redrawn that differ."""
        width, height = self.size
        if width < 1 or height < 1 or not self.display:
            return
        before, resized = self._rows, self._built_for != (width, height)
        self._rows = self._build(width, height)
        self._built_for = (width, height)
        if resized or len(before) != len(self._rows):
            self._strips.clear()
            self.rows_drawn += len(self._rows)
            self.refresh()
            return
        dirty = [y for y, row in enumerate(self._rows) if row != before[y]]
        if dirty:
            for y in dirty:
                self._strips.pop(y, None)
            self.rows_drawn += len(dirty)
            self.refresh(*(Region(0, y, width, 1) for y in dirty))

    def repaint(self) -> None:
        """Draw everything anew, for instance in other colours."""
        self._built_for = (-1, -1)
        self.sync()

    def render_line(self, y: int) -> Strip:
        width, height = self.size
        if self._built_for != (width, height):
            # A new size is drawn before its Resize event arrives.
            self._rows = self._build(width, height)
            self._built_for = (width, height)
            self._strips.clear()
        strip = self._strips.get(y)
        if strip is None:
            row = self._rows[y] if y < len(self._rows) else Line(width).row()
            strip = self._strips[y] = palette(self.view.appearance).strip(row, width)
        return strip

    def render_lines(self, crop: Region) -> list[Strip]:
        """The rows as they are: panels have no padding, border or tint of the style sheet's,
        and the palette knows about NO_COLOR.

        Textual's own way over the style sheet costs as much as all the rest of a frame.
        """
        strips = [self.render_line(y) for y in crop.line_range]
        left, right = crop.column_span
        if (left, right) != (0, self.size.width):
            strips = [strip.crop(left, right) for strip in strips]
        return strips

    def on_resize(self) -> None:
        self.sync()

    def row_text(self, y: int) -> str:
        """The text of a row as it was last built (for the tests)."""
        return self._rows[y].text if y < len(self._rows) else ""

    def _build(self, width: int, height: int) -> list[Row]:
        if not self.FRAME:
            return self._filled(self.rows(width, height), width, height)
        if width < 4 or height < 3:
            return self._filled([], width, height)
        inner = self._filled(self.rows(width - 2, height - 2), width - 2, height - 2)
        role = "border_active" if self.active else "border"
        side = ("│", role)
        # After the rows: a title may tell what they hold.
        out = [self._edge("╭", "╮", self.title(width - 4), width, role)]
        out += [Row((side, *row.spans, side), row.ground) for row in inner]
        out.append(self._edge("╰", "╯", self.foot(width - 4), width, role))
        return out

    @staticmethod
    def _filled(rows: list[Row], width: int, height: int) -> list[Row]:
        rows = rows[:height]
        if len(rows) < height:
            rows += [Line(width).row()] * (height - len(rows))
        return rows

    @staticmethod
    def _edge(
        left: str,
        right: str,
        label: tuple[Sequence[Span], Sequence[Span]],
        width: int,
        role: str,
    ) -> Row:
        """A border with text in it; the right text gives way to the left one."""
        start, end = label
        line = Line(width - 1).add(left, role)
        if start:
            room = width - 4
            line.add(" ", role)
            for text, text_role in start:
                line.add(fitted(text, min(size_of([(text, "")]), room - line.used + 2)), text_role)
            line.add(" ", role)
        tail = size_of(end) + 3
        if end and line.used + tail <= width:
            line.to(width - tail, "─", role).add(" ", role).extend(end).add(" ", role)
        line.to(width - 1, "─", role)
        row = line.row()
        return Row((*row.spans, (right, role)))


def window(count: int, selected: int, height: int, start: int) -> int:
    """First visible row of a list so that the selected one is in sight."""
    if height <= 0 or count <= height:
        return 0
    start = min(max(start, 0), count - height)
    if selected < start:
        return selected
    if selected >= start + height:
        return selected - height + 1
    return start

"""The table of agents: who suffers, how much, and in which stage."""

from __future__ import annotations

from collections.abc import Sequence

from textual.events import Click, MouseScrollDown, MouseScrollUp
from textual.message import Message

from agenttop.render.columns import COLUMNS, GAP, Column
from agenttop.text.figures import clean
from agenttop.view.state import TableRow
from agenttop.widgets.agent_cells import LEAD, cell, columns_for, explain, named_cell, widths
from agenttop.widgets.paint import Line, Row, Span, size_of
from agenttop.widgets.panel import Panel, window


class Agents(Panel):
    """One row per agent, the selected one with the cursor's ground."""

    class Picked(Message):
        """A row was clicked."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    class SortBy(Message):
        """A column's head was clicked."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class Scrolled(Message):
        """The wheel was turned over the table."""

        def __init__(self, rows: int) -> None:
            super().__init__()
            self.rows = rows

    _top = 0

    @property
    def page(self) -> int:
        """Rows that fit."""
        return max(self.size.height - 3, 1)

    def title(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        view = self.view
        total = len(view.snapshot.agents) if view.snapshot else 0
        shown = len(view.agents)
        left: list[Span] = [("Agents ", "title")]
        left.append((f"{shown} of {total}" if shown != total else str(total), "accent"))
        if view.filter:
            left += [(" ─ ", "border"), (f"filter {clean(view.filter, 24)}", "marker")]
        column = COLUMNS[view.sort]
        arrow = "▴" if view.inverted == column.descending else "▾"
        right: list[Span] = [("sort ", "dim"), (f"{column.label} {arrow}", "accent")]
        return left, right

    def foot(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        """What the chosen column means, for the selected agent."""
        view = self.view
        agent = view.agent
        if agent is None or view.column not in COLUMNS:
            return (), ()
        column = COLUMNS[view.column]
        told = explain(column, agent, view)
        place: list[Span] = []
        if len(view.agents) > self.page:
            place = [(f"{view.cursor + 1}/{len(view.agents)}", "dim")]
        return [(f"{column.label}: ", "head_active"), (told, "dim")], place

    def rows(self, width: int, height: int) -> list[Row]:
        view = self.view
        columns, sizes = self._columns(width)
        rows = [self._head(columns, sizes, width)]
        room = height - 1
        if not view.agents:
            return rows + self._empty(width, room)
        lines = view.table
        here = next((i for i, line in enumerate(lines) if line.place == view.cursor), 0)
        self._top = window(len(lines), here, room, self._top)
        for line in lines[self._top : self._top + room]:
            selected = line.place == view.cursor and not line.named
            rows.append(self._row(line, columns, sizes, width, selected))
        return rows

    def shown_columns(self) -> list[str]:
        """Keys of the columns that there is room for."""
        return [column.key for column in self._columns(self.size.width - 2)[0]]

    def _columns(self, width: int) -> tuple[list[Column], list[int]]:
        host = self.view.host
        chains = host is None or host.mode != "procfs"
        return columns_for(width, chains), widths(width, chains)

    def _head(self, columns: list[Column], sizes: list[int], width: int) -> Row:
        line = Line(width).add(" " * LEAD)
        for column, size in zip(columns, sizes, strict=True):
            role = "head_active" if column.key == self.view.column else "head"
            if column.group:
                line.add("│", "faint")
            title = column.title
            if column.group and column.family:
                title = f"{column.family} {title}"
            line.fit(title, size, role, right=column.right).add(" " * GAP)
        return line.row()

    def _row(
        self, shown: TableRow, columns: list[Column], sizes: list[int], width: int, here: bool
    ) -> Row:
        line = Line(width).add("▸ " if here else "  ", "accent")
        for column, size in zip(columns, sizes, strict=True):
            if column.group:
                line.add("│", "faint")
            spans = (named_cell if shown.named else cell)(column, shown.agent, size)
            end = line.used + size
            if column.right:
                line.to(end - size_of(spans))
            line.extend(spans).to(end).add(" " * GAP)
        return line.row("cursor" if here else "")

    def _empty(self, width: int, room: int) -> list[Row]:
        view = self.view
        if view.snapshot is None:
            text = ["Starting: the first figures come within a second or two."]
        elif view.reason("chains").startswith("loading"):
            text = ["The kernel side is loading: agents show with the first step chains."]
        elif view.snapshot.agents:
            text = [f"No agent matches '{clean(view.filter, 40)}'.", "Esc clears the filter."]
        else:
            text = [
                "No agents yet.",
                "Name one:  agenttop --agent pid:1234 (comm:RE cmd:RE cgroup:PATH user:NAME)",
                "See some:  agenttop demo             (rules: ~/.config/agenttop/agents.yaml)",
            ]
        lead = max((room - len(text)) // 2, 0)
        rows = [Line(width).row() for _ in range(lead)]
        rows += [Line(width).add("  " + line, "text" if i == 0 else "dim").row()
                 for i, line in enumerate(text)]  # fmt: skip
        return rows[:room]

    # ------------------------------------------------------------------ mouse

    def on_click(self, event: Click) -> None:
        x, y = event.x - 1, event.y - 1
        if y == 0:
            key = self._column_at(x)
            if key:
                self.post_message(self.SortBy(key))
        elif 0 < y < self.size.height - 1:
            lines = self.view.table
            if self._top + y - 1 < len(lines):
                self.post_message(self.Picked(lines[self._top + y - 1].place))

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        event.stop()
        self.post_message(self.Scrolled(3))

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        event.stop()
        self.post_message(self.Scrolled(-3))

    def _column_at(self, x: int) -> str | None:
        start = LEAD
        columns, sizes = self._columns(self.size.width - 2)
        for column, size in zip(columns, sizes, strict=True):
            end = start + size + GAP + column.group
            if start <= x < end:
                return column.key
            start = end
        return None

"""A panel above the screen: help, plans, details, a choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Click, Key, MouseScrollDown, MouseScrollUp, Resize
from textual.screen import ModalScreen

from agenttop.view.state import View
from agenttop.widgets.paint import Line, Row, Span
from agenttop.widgets.panel import Panel, window

#: Gives the rows for a width.
Rows = Callable[[int], list[Row]]


class Sheet(Panel):
    """Rows that can be scrolled, or chosen from."""

    def __init__(self, view: View, title: str, content: Rows, choices: int) -> None:
        super().__init__(view, id="sheet")
        self.active = True
        self._title = title
        self._content = content
        self.choices = choices
        self.at = 0
        self._top = 0
        #: Scrolled beyond where the last choice is in sight, to what follows it.
        self._beyond = 0

    def title(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        return [(self._title, "title")], [("Esc", "key"), (" closes", "dim")]

    def foot(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        total, room = len(self._content(width)), self.size.height - 2
        if total <= room:
            return (), ()
        last = min(self._top + room, total)
        return (), [(f"{self._top + 1}-{last} of {total}", "dim")]

    def rows(self, width: int, height: int) -> list[Row]:
        rows = [Line(width).extend(row.spans).row(row.ground) for row in self._content(width)]
        if self.choices:
            top = window(len(rows), self.at, height, self._top - self._beyond)
            self._beyond = min(self._beyond, max(len(rows) - height - top, 0))
            self._top = top + self._beyond
            rows[self.at] = Row(rows[self.at].spans, "cursor")
        else:
            self._top = min(self._top, max(len(rows) - height, 0))
        return rows[self._top : self._top + height]

    def move(self, rows: int) -> None:
        if self.choices:
            back = min(self._beyond, max(-rows, 0))
            self._beyond, self._top = self._beyond - back, self._top - back
            at = self.at + rows + back
            self.at = min(max(at, 0), self.choices - 1)
            over = max(at - self.at, 0)
            self._beyond, self._top = self._beyond + over, self._top + over
        else:
            self._top = max(self._top + rows, 0)
        self.sync()

    def choose_at(self, y: int) -> bool:
        """Move the choice to a row of the panel; False if there is none."""
        at = self._top + y - 1
        if not self.choices or not 0 <= at < self.choices:
            return False
        self.at = at
        self.sync()
        return True


class Popup(ModalScreen[int | None]):
    """Shows a sheet; its result is the number of the row chosen, or None."""

    CSS = """
    Popup { align: center middle; background: transparent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f10,ctrl+c", "close", "close", id="popup.close", tooltip="Back"),
        Binding("up,k", "move(-1)", "up", id="popup.up", tooltip="One row up"),
        Binding("down,j", "move(1)", "down", id="popup.down", tooltip="One row down"),
        Binding("pageup", "page(-1)", "page up", id="popup.page_up", tooltip="One page up"),
        Binding(
            "pagedown,space", "page(1)", "page down", id="popup.page_down", tooltip="Next page"
        ),
        Binding("home", "move(-100000)", "top", id="popup.home", tooltip="First row"),
        Binding("end", "move(100000)", "end", id="popup.end", tooltip="Last row"),
        Binding("enter", "choose", "choose", id="popup.choose", tooltip="Take it"),
    ]

    def __init__(
        self,
        view: View,
        title: str,
        content: Rows,
        *,
        width: int = 76,
        choices: int = 0,
        at: int = 0,
        also_closes: str = "",
    ) -> None:
        super().__init__()
        self.sheet = Sheet(view, title, content, choices)
        self.sheet.at = min(max(at, 0), max(choices - 1, 0))
        self._content = content
        self._width = width
        self._also_closes = also_closes

    def compose(self) -> ComposeResult:
        yield self.sheet

    def on_mount(self) -> None:
        self._place()

    def on_resize(self, event: Resize) -> None:
        self._place()

    def _place(self) -> None:
        width, height = self.app.size
        width = max(min(self._width, width - 2), 4)
        rows = len(self._content(width - 2))
        self.sheet.styles.width = width
        self.sheet.styles.height = max(min(rows + 2, height - 2), 3)

    def on_key(self, event: Key) -> None:
        if self._also_closes and event.key in self._also_closes.split(","):
            event.stop()
            self.dismiss(None)

    def action_close(self) -> None:
        self.dismiss(None)

    def action_move(self, rows: int) -> None:
        self.sheet.move(rows)

    def action_page(self, pages: int) -> None:
        self.sheet.move(pages * max(self.sheet.size.height - 3, 1))

    def action_choose(self) -> None:
        self.dismiss(self.sheet.at if self.sheet.choices else None)

    def on_click(self, event: Click) -> None:
        if event.widget is not self.sheet:
            self.dismiss(None)
        elif self.sheet.choose_at(event.y):
            self.dismiss(self.sheet.at)

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        self.sheet.move(3)

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        self.sheet.move(-3)

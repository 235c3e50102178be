"""The last line: what can be pressed, a question that is being typed, or what just happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.events import Key, Paste
from textual.message import Message

from agenttop.text.figures import clean
from agenttop.view.state import View
from agenttop.widgets.paint import Line, Row
from agenttop.widgets.panel import Panel

#: A key and what it does.
Hint = tuple[str, str]


class Footer(Panel, can_focus=True):
    """Hints; turns into a prompt while something is asked."""

    DEFAULT_CSS = """
    Footer { height: 1; width: 100%; dock: bottom; }
    """
    FRAME: ClassVar[bool] = False

    class Typed(Message):
        """The text of a prompt has changed, or was accepted or given up (``done``)."""

        def __init__(self, kind: str, text: str, done: bool, accepted: bool) -> None:
            super().__init__()
            self.kind, self.text, self.done, self.accepted = kind, text, done, accepted

    def __init__(self, view: View, *, id: str) -> None:
        super().__init__(view, id=id)
        self.hints: Sequence[Hint] = ()
        self._asking = ""
        self._text = ""
        self._message: tuple[str, str] | None = None

    def ask(self, kind: str, text: str = "") -> None:
        """Begin to ask for ``kind``."""
        self._asking, self._text = kind, text
        self.focus()
        self.sync()

    def tell(self, text: str, role: str) -> None:
        """Show a line instead of the hints; an empty one brings the hints back."""
        self._message = (clean(text, 300), role) if text else None
        self.sync()

    @property
    def asking(self) -> bool:
        return bool(self._asking)

    def rows(self, width: int, height: int) -> list[Row]:
        line = Line(width)
        if self._asking:
            line.add(f" {self._asking} ", "brand").add(f" {clean(self._text, 200)}", "strong")
            line.add("█", "accent")
            keys = "Enter keeps it   Esc gives it up "
            if line.left > len(keys) + 2:
                line.to(width - len(keys)).add(keys, "dim")
            return [line.row()]
        if self._message is not None:
            text, role = self._message
            return [line.add(" ▪ ", role).add(text, role).row()]
        for key, does in self.hints:
            if line.left < len(key) + len(does) + 4:
                continue
            line.add(" ").add(key, "key").add(f" {does} ", "dim")
        return [line.row()]

    def on_key(self, event: Key) -> None:
        if not self._asking:
            return
        event.stop()
        event.prevent_default()
        if event.key in ("enter", "escape", "ctrl+c"):
            self._end(event.key == "enter")
        elif event.key in ("backspace", "ctrl+h"):
            self._typed(self._text[:-1])
        elif event.key == "ctrl+u":
            self._typed("")
        elif event.character and event.character.isprintable():
            self._typed(self._text + event.character)

    def on_paste(self, event: Paste) -> None:
        if self._asking:
            event.stop()
            self._typed(self._text + clean(event.text, 100))

    def _typed(self, text: str) -> None:
        self._text = text[:100]
        self.sync()
        self.post_message(self.Typed(self._asking, self._text, False, True))

    def _end(self, accepted: bool) -> None:
        kind, self._asking = self._asking, ""
        self.screen.set_focus(None)
        self.sync()
        self.post_message(self.Typed(kind, self._text, True, accepted))

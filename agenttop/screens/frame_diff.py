"""What crosses the line to the terminal: only what differs from what stands there.

Textual sends each redrawn row whole, and every piece of it with its full
style and a reset. On a slow line that is most of the bytes. This filter sits
between Textual and the terminal, remembers what stands where (per piece, not
per cell), drops what is already there and sends of a style only what changes.
It knows the few sequences that Textual's compositor writes (cursor position,
SGR, text) and passes on everything else as it is.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from rich.cells import cell_len

_TOKEN: Final = re.compile(
    r"\x1b\[(\d+);(\d+)H"  # cursor position
    r"|\x1b\[([0-9;]*)m"  # style
    r"|(\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(?:\x07|\x1b\\|$)|.?))"  # anything else
    r"|([^\x1b\n]+)"
    r"|(\n)",
    re.DOTALL,
)
#: Modes whose switching leaves the picture alone (synchronized output, cursor, mouse, paste).
_HARMLESS: Final = re.compile(r"\x1b\[\?(?!1049|1047|47)[0-9;]+[hl]|\x1b\[[<>=][0-9;]*u")
#: A cursor movement costs about this much: shorter repetitions are not worth one.
_MOVE_COST: Final = 8


class Sgr(NamedTuple):
    """A style: codes of the foreground, the ground, and the attributes."""

    color: str = "39"
    ground: str = "49"
    attributes: tuple[str, ...] = ()


PLAIN: Final = Sgr()


@lru_cache(4096)
def parsed(codes: str) -> Sgr:
    """The style that SGR codes set, starting from none."""
    color, ground = PLAIN.color, PLAIN.ground
    attributes: list[str] = []
    parts = codes.split(";") if codes else []
    at = 0
    while at < len(parts):
        part = parts[at]
        if part in ("38", "48"):
            size = 5 if parts[at + 1 : at + 2] == ["2"] else 3
            value = ";".join(parts[at : at + size])
            color, ground = (value, ground) if part == "38" else (color, value)
            at += size
            continue
        number = int(part or 0)
        if number == 0:
            color, ground, attributes = PLAIN.color, PLAIN.ground, []
        elif 30 <= number <= 39 or 90 <= number <= 97:
            color = part
        elif 40 <= number <= 49 or 100 <= number <= 107:
            ground = part
        else:
            attributes.append(part)
        at += 1
    return Sgr(color, ground, tuple(attributes))


@lru_cache(4096)
def change(before: Sgr, after: Sgr) -> str:
    """The shortest SGR sequence from one style to the other."""
    if before == after:
        return ""
    if after == PLAIN:
        return "\x1b[0m"
    codes: list[str] = []
    if not set(before.attributes) <= set(after.attributes):
        codes, before = ["0"], PLAIN
    codes += [code for code in after.attributes if code not in before.attributes]
    if after.color != before.color:
        codes.append(after.color)
    if after.ground != before.ground:
        codes.append(after.ground)
    return f"\x1b[{';'.join(codes)}m"


class FrameSaver:
    """Keeps what the terminal shows; ``saved`` gives what must be sent for the next frame."""

    def __init__(self) -> None:
        #: Row -> column -> (text, style, width), all from 0.
        self._shown: dict[int, dict[int, tuple[str, Sgr, int]]] = {}
        #: Where the terminal's cursor is and which style it has, where that is known.
        self._cursor: tuple[int, int] | None = None
        self._style = PLAIN

    def forget(self) -> None:
        """Something else may have written to the terminal."""
        self._shown.clear()
        self._cursor = None

    def saved(self, data: str) -> str:
        """What to send so that the terminal looks as if ``data`` had been sent."""
        out: list[str] = []
        place: tuple[int, int] | None = None
        wanted = PLAIN
        for match in _TOKEN.finditer(data):
            row, column, codes, other, text, newline = match.groups()
            if row is not None:
                place = (int(column) - 1, int(row) - 1)
            elif codes is not None:
                # Textual ends every piece with a reset: each style starts from none.
                wanted = parsed(codes)
            elif text is not None:
                if place is None or not text.isprintable():
                    out.append(change(self._style, wanted) + text)
                    self._style = wanted
                    self.forget()
                else:
                    width = len(text) if text.isascii() else cell_len(text)
                    self._put(out, place, text, wanted, width)
                    place = (place[0] + width, place[1])
            elif newline is not None:
                # Within a frame a new position follows; elsewhere it is text.
                if place is None:
                    out.append("\n")
                    self._cursor = None
            else:
                out.append(other)
                if not _HARMLESS.fullmatch(other):
                    self.forget()
                    place = None
        if place is not None and out:
            out.append(change(self._style, PLAIN))
            self._style = PLAIN
        return "".join(out)

    def _put(
        self, out: list[str], place: tuple[int, int], text: str, style: Sgr, width: int
    ) -> None:
        x, y = place
        row = self._shown.setdefault(y, {})
        before = row.get(x)
        piece = (text, style, width)
        if before == piece:
            return
        start, sent = x, text
        if before is not None and before[1:] == (style, width) and len(text) == width:
            skip, sent = _difference(before[0], text)
            start += skip
        else:
            end = x + width
            for at in [a for a, old in row.items() if a < end and a + old[2] > x]:
                del row[at]
        row[x] = piece
        if self._cursor != (start, y):
            out.append(f"\x1b[{y + 1};{start + 1}H")
        out.append(change(self._style, style))
        out.append(sent)
        self._style = style
        # At the right edge terminals differ in where the cursor is then: say it anew.
        self._cursor = (start + (len(sent) if len(text) == width else width), y)


def _difference(before: str, now: str) -> tuple[int, str]:
    """How much of the text is the same at its start, and what must be sent after that."""
    if len(before) != len(now):
        return 0, now
    end = len(now)
    while end and before[end - 1] == now[end - 1]:
        end -= 1
    start = 0
    while start < end and before[start] == now[start]:
        start += 1
    return (start if start >= _MOVE_COST else 0), now[start if start >= _MOVE_COST else 0 : end]

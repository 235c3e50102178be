"""From roles to cells: rows of (text, role), the styles of a theme, and the glyphs.

Panels build rows of plain text with the name of a role beside each piece and
never parse markup, so that a process name cannot do anything. A row that
compares equal to the one drawn before is not drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from agenttop.view.appearance import Appearance

#: Unicode glyphs and, below each, the ASCII one of the same width.
_GLYPHS: Final = (
    ("╭╮╰╯─│├┤┬┴┼┊▸▾▴●○◌✕✓µ×·…→←↑↓±≤≥Σ", "++++-|++++++>v^*o.xvux..><^v~<>S"),
    ("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉░▒▓⌂◆▪≈⏸Δ", "_.:-=+*#.::|||#.:#^*-~=D"),
)
_TO_ASCII: Final = str.maketrans(
    {u: a for us, plain in _GLYPHS for u, a in zip(us, plain, strict=True)}
)

BLOCKS: Final = "▁▂▃▄▅▆▇█"
EIGHTHS: Final = " ▏▎▍▌▋▊▉█"

#: Shares of the time (lower edges) of the heat levels 1 to 7: what an interrupt
#: costs matters from a thousandth on, so the steps are logarithmic.
HEAT_EDGES: Final = (0.001, 0.005, 0.01, 0.03, 0.08, 0.2, 0.4)

Span = tuple[str, str]


class Row(NamedTuple):
    """One line of a panel, and the role of the ground below it ("" or "cursor")."""

    spans: tuple[Span, ...]
    ground: str = ""

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.spans)


class Line:
    """Builds a row of exactly ``width`` cells; what does not fit is cut."""

    __slots__ = ("_spans", "used", "width")

    def __init__(self, width: int) -> None:
        self.width = max(width, 0)
        self.used = 0
        self._spans: list[Span] = []

    @property
    def left(self) -> int:
        """Cells that are still free."""
        return self.width - self.used

    def add(self, text: str, role: str = "text") -> Line:
        """Append text as it is."""
        size = len(text) if text.isascii() else cell_len(text)
        if size > self.left:
            text, size = set_cell_size(text, self.left), self.left
        if size > 0:
            self.used += size
            if self._spans and self._spans[-1][1] == role:
                self._spans[-1] = (self._spans[-1][0] + text, role)
            else:
                self._spans.append((text, role))
        return self

    def fit(self, text: str, width: int, role: str = "text", right: bool = False) -> Line:
        """Append text in a field of ``width`` cells; longer text ends in an ellipsis."""
        return self.add(fitted(text, width, right), role)

    def to(self, column: int, fill: str = " ", role: str = "text") -> Line:
        """Fill up to the column."""
        if column > self.used:
            self.add(fill * (min(column, self.width) - self.used), role)
        return self

    def extend(self, spans: Sequence[Span]) -> Line:
        for text, role in spans:
            self.add(text, role)
        return self

    def row(self, ground: str = "") -> Row:
        """The row, filled up to the width."""
        self.to(self.width)
        return Row(tuple(self._spans), ground)


def fitted(text: str, width: int, right: bool = False) -> str:
    """The text in exactly ``width`` cells."""
    if width <= 0:
        return ""
    size = len(text) if text.isascii() else cell_len(text)
    if size > width:
        return set_cell_size(text, width - 1) + "…"
    pad = " " * (width - size)
    return pad + text if right else text + pad


def size_of(spans: Sequence[Span]) -> int:
    """Width in cells."""
    return sum(cell_len(text) for text, _ in spans)


def to_ascii(text: str) -> str:
    """The same picture in ASCII, cell for cell (wide characters become two question marks)."""
    if text.isascii():
        return text
    text = text.translate(_TO_ASCII)
    if text.isascii():
        return text
    return "".join(c if c.isascii() else "?" * cell_len(c) for c in text)


def heat(ratio: float | None) -> int:
    """Heat level 0..7 of a share of the time."""
    if ratio is None:
        return 0
    level = 0
    for edge in HEAT_EDGES:
        if ratio < edge:
            break
        level += 1
    return level


def bar(ratio: float, width: int) -> str:
    """A bar of at most ``width`` cells in eighths; something is never drawn as nothing."""
    eighths = round(min(max(ratio, 0.0), 1.0) * width * 8)
    if ratio > 0:
        eighths = max(eighths, 1)
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "")


def blocks(parts: Sequence[tuple[float, str, str]], width: int) -> list[Span]:
    """A stacked bar: parts of (share of the width 0..1, label, role of the block).

    Each part that is not 0 gets a cell at least, as long as there is room; a
    label is written into its part where it fits, its first letter otherwise.
    """
    wanted = [max(share, 0.0) * width for share, _, _ in parts]
    cells = [max(1, int(w)) if w > 0 else 0 for w in wanted]
    total = min(width, max(round(sum(wanted)), sum(1 for w in wanted if w > 0)))
    # The cells that rounding left over go to the largest remainders, those too many
    # are taken from the widest parts.
    order = sorted(range(len(parts)), key=lambda i: wanted[i] - cells[i], reverse=True)
    for i in order:
        if sum(cells) >= total:
            break
        if wanted[i] > 0:
            cells[i] += 1
    while sum(cells) > width:
        widest = max(range(len(cells)), key=cells.__getitem__)
        cells[widest] -= 1
    out: list[Span] = []
    for (_, label, role), size in zip(parts, cells, strict=True):
        if size:
            fits = cell_len(label) <= size - 1 or cell_len(label) == size
            text = label if fits else label[:1]
            out.append((text.center(size) if size > 2 else text.ljust(size), role))
    return out


class Palette:
    """The styles of a theme by role, made once per theme.

    Beside the theme's roles there are ``block.ROLE``: the colour as the ground
    of a bar, with readable text on it.
    """

    def __init__(self, appearance: Appearance) -> None:
        self.theme = theme = appearance.theme
        self.ascii_only = appearance.ascii_only
        self.no_color = appearance.no_color
        self._cursor = theme.looks["cursor"]
        self._background = theme.looks["background"].color or "default"
        self._styles: dict[tuple[str, str], Style] = {}

    def style(self, role: str, ground: str = "") -> Style:
        """The style of a role on the panel's ground or the cursor's."""
        key = (role, ground)
        style = self._styles.get(key)
        if style is None:
            style = self._styles[key] = self._make(role, ground)
        return style

    def strip(self, row: Row, width: int) -> Strip:
        """The row as Textual draws it."""
        ascii_only, ground = self.ascii_only, row.ground
        return Strip(
            [
                Segment(to_ascii(text) if ascii_only else text, self.style(role, ground))
                for text, role in row.spans
            ],
            width,
        )

    def _make(self, role: str, ground: str) -> Style:
        block = role.startswith("block.")
        look = self.theme.looks[role.removeprefix("block.")]
        background = look.ground or self._background
        color = look.color
        attributes = look.attributes
        if block:
            background = color or "default"
            color, attributes = _readable(background), ()
            if self.no_color:
                attributes = ("reverse",)
        elif ground == "cursor":
            attributes = (*attributes, *self._cursor.attributes)
            if "reverse" in self._cursor.attributes:
                # Reversed, a dozen colours would be a dozen grounds.
                color = "default"
            if look.ground is None and self._cursor.color is not None:
                background = self._cursor.color
        if self.no_color:
            color = background = "default"
            if ground == "cursor" or look.ground is not None:
                attributes = (*attributes, "reverse")
        return Style(
            color=_rich(color or "default"),
            bgcolor=_rich(background),
            **dict.fromkeys(attributes, True),  # type: ignore[arg-type]
        )


@lru_cache(maxsize=1)
def palette(appearance: Appearance) -> Palette:
    """The palette of an appearance: the last one is kept."""
    return Palette(appearance)


def _rich(color: str) -> RichColor:
    return RichColor.parse(color)


def _readable(background: str) -> str:
    """Black or white, whichever can be read on the colour."""
    if not background.startswith("#"):
        return "white" if background in ("black", "blue", "bright_black") else "black"
    red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    return "#0b0e13" if red * 299 + green * 587 + blue * 114 > 105_000 else "#f4f6fa"

"""The screen as an SVG, drawn without a terminal from a store that is already fed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from agenttop.model.snapshot import Snapshot
from agenttop.store.store import Store

if TYPE_CHECKING:
    from textual.app import App

_TEXT = re.compile(
    r'(<text [^>]*x=")([0-9.]+)"([^>]*) textLength="([0-9.]+)"([^>]*)>([^<]*)</text>'
)
_BRAILLE = re.compile("[\u2801-\u28ff]")
_SIGN = re.compile(r"&[^;]*;|.")

#: Columns and rows of the picture.
SIZE = (200, 50)


def picture(app: App[Any]) -> str:
    """What an application shows now, as an SVG."""
    svg = app.export_screenshot(title="agenttop", simplify=True)
    # Some renderers (librsvg among them) drop the spaces a piece of text begins with.
    svg = svg.replace("<svg ", '<svg xml:space="preserve" ', 1)
    return _TEXT.sub(_placed, svg)


def _placed(match: re.Match[str]) -> str:
    """Braille comes from another font, of another width: each sign gets its own place."""
    start, x, middle, length, end, text = match.groups()
    if not _BRAILLE.search(text):
        return match[0]
    signs = _SIGN.findall(text)
    step = float(length) / len(signs)
    spans = "".join(
        f'<tspan x="{float(x) + at * step:.1f}">{sign}</tspan>'
        for at, sign in enumerate(signs)
        if sign != "&#160;"
    )
    return f'{start}{x}"{middle}{end}>{spans}</text>'


def render_svg(
    store: Store,
    snapshot: Snapshot | None,
    size: tuple[int, int] = SIZE,
    theme: str = "dark",
) -> str:
    """The main screen for this snapshot, ``size`` in columns and rows.

    Imports Textual only when it is called. Raises UserError for an unknown
    theme, or if there is no snapshot.
    """
    from agenttop.errors import UserError

    if snapshot is None:
        raise UserError("no sample yet: nothing to draw")
    import asyncio

    from agenttop.screens.app import AgentTop
    from agenttop.view.options import ViewOptions

    app = AgentTop(store, None, ViewOptions(theme=theme), snapshot=snapshot, driver_class=None)

    async def draw() -> str:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            return picture(app)

    return asyncio.run(draw())

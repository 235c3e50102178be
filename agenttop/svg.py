"""The screen as an SVG, drawn without a terminal from a store that is already fed."""

from __future__ import annotations

from agenttop.snapshot import Snapshot
from agenttop.store import Store

#: Columns and rows of the picture.
SIZE = (200, 50)


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

    from agenttop.app import AgentTop
    from agenttop.view import ViewOptions

    app = AgentTop(store, None, ViewOptions(theme=theme), snapshot=snapshot, driver_class=None)

    async def draw() -> str:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            return app.export_screenshot(title="agenttop", simplify=True)

    return asyncio.run(draw())

"""The screen on made-up Samples under test control: no terminal, no clock of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from textual.pilot import Pilot

from agenttop.screens.app import AgentTop
from agenttop.screens.main import Main
from agenttop.store.store import Store
from agenttop.view.options import ViewOptions
from agenttop.view.state import View
from tests.support.synth import Synth
from tests.support.synth_screen import SynthSource


class Rig:
    """An application, what feeds it, and what it shows."""

    def __init__(self, synth: Synth, options: ViewOptions) -> None:
        self.synth = synth
        self.source = SynthSource(synth)
        self.age_ns = 0
        self.store = Store(clock=self.clock)
        self.app = AgentTop(self.store, self.source, options, clock=self.clock, driver_class=None)
        self.pilot: Pilot[Any]

    def clock(self) -> int:
        """CLOCK_MONOTONIC, as far as the Samples have come."""
        return self.synth.t_ns + self.age_ns

    @property
    def view(self) -> View:
        return self.app.view

    @property
    def main(self) -> Main:
        return self.app._main

    async def tick(self, times: int = 1) -> None:
        """Samples come, and are drawn."""
        for _ in range(times):
            self.source.tick()
            await self.drawn()

    async def drawn(self) -> None:
        """What has come is read and drawn."""
        for _ in range(200):
            await asyncio.sleep(0.001)
            if not self.source.waiting:
                break
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        """Keys, one after the other."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    def lines(self) -> list[str]:
        """The screen as text."""
        return [strip.text for strip in self.app.screen._compositor.render_strips()]

    def text(self) -> str:
        return "\n".join(self.lines())


@asynccontextmanager
async def rig(
    size: tuple[int, int] = (120, 35),
    *,
    samples: int = 8,
    synth: Synth | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    """A screen that has seen ``samples`` Samples."""
    made = Rig(synth or Synth(), ViewOptions(**options))
    try:
        async with made.app.run_test(size=size) as pilot:
            made.pilot = pilot
            if samples:
                made.source.tick(samples)
                await made.drawn()
                for _ in range(200):
                    await pilot.pause()
                    if not made.source.waiting:
                        break
            await pilot.pause()
            yield made
    finally:
        made.source.close()

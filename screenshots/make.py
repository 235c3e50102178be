"""Makes the pictures in this folder from real runs: ``make screenshots``.

The demo's agents run, the real engine measures them, and the screen is driven
by the keys that a person would press; nothing in the pictures is made up. The
SVG is the screen's own export; rsvg-convert makes the PNG.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from agenttop.model.options import EngineOptions
from agenttop.screens.app import AgentTop
from agenttop.screens.picture import picture
from agenttop.store.store import Store
from agenttop.stream.engine_client import EngineClient
from agenttop.view.options import ViewOptions
from agenttop.workloads.demo import Demo

HERE = Path(__file__).resolve().parent

#: File -> size, theme, and what is pressed after how many seconds.
PICTURES: dict[str, tuple[tuple[int, int], str, list[tuple[float, str]]]] = {
    "main": ((200, 50), "dark", [(25, "g"), (20, "h"), (22, "l"), (1, "escape"), (1, "")]),
    "small": ((80, 24), "dark", [(12, "")]),
    "light": ((120, 35), "light", [(12, "")]),
    "help": ((120, 40), "dark", [(6, "question_mark"), (1, "")]),
}


async def take(name: str, size: tuple[int, int], theme: str, keys: list[tuple[float, str]]) -> None:
    """One picture from a run of its own."""
    with Demo() as demo:
        client = EngineClient(EngineOptions(agents_file=demo.rules_file()))
        try:
            app = AgentTop(Store(), client, ViewOptions(theme=theme), driver_class=None)
            async with app.run_test(size=size) as pilot:
                for seconds, key in keys:
                    until = time.monotonic() + seconds
                    while time.monotonic() < until:
                        await pilot.pause(0.1)
                    if key:
                        await pilot.press(key)
                (HERE / f"{name}.svg").write_text(picture(app))
        finally:
            client.close()


def main() -> int:
    """All pictures, or those named."""
    if os.geteuid() != 0:
        print("screenshots: needs root, as the pictures show step chains", file=sys.stderr)
        return 2
    for name in sys.argv[1:] or PICTURES:
        asyncio.run(take(name, *PICTURES[name]))
        svg, png = HERE / f"{name}.svg", HERE / f"{name}.png"
        if shutil.which("rsvg-convert"):
            subprocess.run(["rsvg-convert", "-w", "1600", "-o", str(png), str(svg)], check=True)
        print(png if png.exists() else svg)
    return 0


if __name__ == "__main__":
    sys.exit(main())

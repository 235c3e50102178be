"""The one line that a terminal gets which is too small for anything else."""

from __future__ import annotations

from typing import ClassVar

from agenttop.widgets.paint import Line, Row, fitted
from agenttop.widgets.panel import Panel


class Notice(Panel):
    """Says how large the terminal must be."""

    DEFAULT_CSS = """
    Notice { height: 1fr; width: 100%; }
    """
    FRAME: ClassVar[bool] = False

    def rows(self, width: int, height: int) -> list[Row]:
        from agenttop.view.layout import LEAST

        wanted = f"{LEAST[0]}x{LEAST[1]}"
        for text in (
            f"terminal too small ({width}x{height}): agenttop needs {wanted}",
            f"too small, min {wanted}",
            wanted,
        ):
            if len(text) <= width:
                break
        return [Line(width).add(fitted(text, width), "warn").row()]

"""How the screen looks: its theme, and what the terminal can show."""

from __future__ import annotations

from dataclasses import dataclass

from agenttop.config.theme_file import Theme


@dataclass(frozen=True, eq=False)
class Appearance:
    """A theme and the terminal's limits; another object is another appearance."""

    theme: Theme
    #: Only ASCII characters.
    ascii_only: bool = False
    #: NO_COLOR: weight, underlines and reversal only.
    no_color: bool = False

    def idle(self, index: int) -> str:
        """Role of the idle state with that index."""
        return f"idle.{min(index, self.theme.idle_levels - 1)}"

    def series(self, index: int) -> str:
        """Role of a plot's line."""
        return f"series.{index % self.theme.series}"

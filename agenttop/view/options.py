"""What the user may say about the screen, apart from what is measured (no Textual here)."""

from __future__ import annotations

from dataclasses import dataclass

from agenttop.flight.breach_watch import Breach


@dataclass(frozen=True)
class ViewOptions:
    """Options of the screen; None means "choose for this terminal"."""

    theme: str | None = None
    ascii_only: bool = False
    mouse: bool = True
    #: Policies can be looked at but not switched.
    readonly: bool = False
    #: Column key to sort by, with a - before it inverted (columns.sort_key).
    sort: str | None = None
    #: Seconds between Samples, as the engine was asked for.
    delay_s: float = 1.0
    #: Percentiles are over this much, s.
    window_s: float = 30.0
    #: Leave by itself after so many seconds, with exit code 0.
    for_s: float | None = None
    #: What is watched, and written when it happens.
    breach: Breach | None = None

"""How long ago something was, as text."""

from __future__ import annotations


def ago(ns: int) -> str:
    """``0.3s``, ``12s``, ``3m``, ``2h``."""
    seconds = max(ns, 0) / 1e9
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    if seconds < 99.5:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 5970 else f"{seconds / 3600:.0f}h"


def roughly(ns: int) -> str:
    """The same in steps, so that what lies back is not redrawn every second."""
    seconds = max(ns, 0) / 1e9
    if seconds < 10:
        return "now"
    if seconds < 60:
        return f"{int(seconds // 10) * 10}s"
    return ago(ns)

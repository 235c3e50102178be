"""What became of a hold, and the words for it. Nothing here raises.

The guardian imports this module, so it stays small.
"""

from __future__ import annotations

from typing import NamedTuple

from agenttop.policies.guardian.journal import Hold
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import UNPINNED


class Outcome(NamedTuple):
    """What became of one hold, or of one thread that inherited its value."""

    policy: str
    kind: str
    target: str
    #: One line for people.
    text: str
    #: False: it could not be restored; the hold stays in the journal.
    settled: bool = True
    #: Another process has set it since, so it was left alone.
    foreign: bool = False


def label(kind: str, target: str) -> str:
    """The knob as a person knows it; its kind and target if even that fails."""
    try:
        return shown(KNOBS[kind].label(target))
    except Exception:
        return shown(f"{kind} {target}")


def words(error: BaseException) -> str:
    """An exception in one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return shown(text or type(error).__name__)


def shown(text: str) -> str:
    """Free of control characters and of bytes that are no text, and bounded."""
    return "".join(c if c.isprintable() else "?" for c in text[:512])


def plain(value: str) -> str:
    """A value for people: without the mark of cpusets.py."""
    return value.removesuffix(UNPINNED)


def restored(hold: Hold, text: str) -> Outcome:
    """A hold that is no longer one."""
    return Outcome(hold.policy, hold.kind, hold.target, f"{label(hold.kind, hold.target)}: {text}")


def failed(hold: Hold, error: BaseException) -> Outcome:
    """A hold that could not be restored."""
    text = f"could not be restored to {shown(plain(hold.original))}: {words(error)}"
    return restored(hold, text)._replace(settled=False)


def left_alone(hold: Hold, now: str) -> Outcome:
    """A knob that another process has set since, to ``now``: it is not written."""
    text = f"changed by another process since (now {shown(now)}): left as it is"
    return restored(hold, text)._replace(foreign=True)

"""Restoring knobs: compare with what we wrote, restore, and say what was done.

Used by the guardian, by an engine whose guardian was killed, and by
``agenttop restore``; so it stays small. Each hold is restored by itself:
whatever one of them meets, the others are restored and the journal keeps
exactly those that are not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from agenttop.policies.guardian import namespaces
from agenttop.policies.guardian.heirs import (
    BOUND_S,
    THREAD_KINDS,
    is_ours,
    release_all,
    release_heirs,
)
from agenttop.policies.guardian.inheritance import Inherited
from agenttop.policies.guardian.journal import NAME, Hold, Journal, Key, aside, load, put_aside
from agenttop.policies.guardian.outcome import Outcome, failed, left_alone, plain, restored, shown
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import UNPINNED
from agenttop.policies.knobs.sched_attr import THREAD_KNOBS

__all__ = ["THREAD_KINDS", "Outcome", "left_alone", "recover", "release_heirs", "undo", "undo_all"]


def undo(hold: Hold, record: Inherited | None = None) -> Outcome:
    """Restore one knob if it still has a value of ours. Never raises.

    ``record``: what the kernel's side knows of threads that chose a value themselves.
    """
    try:
        return _undo(hold, record)
    except Exception as error:  # Whatever it is: the other holds are still to be restored.
        return failed(hold, error)


def _undo(hold: Hold, record: Inherited | None) -> Outcome:
    namespaces.check(hold.kind, hold.place)
    knob = KNOBS[hold.kind]
    current = knob.read(hold.target)
    if current is None:
        namespaces.missing(hold.kind, hold.target)
        return restored(hold, "has ended" if hold.kind in THREAD_KINDS else "is gone")
    ours = is_ours(hold, hold.target, current)
    # A thread may have been asked for other CPUs than it has: that is to be restored as well.
    if knob.same(current, hold.original) and not (ours and hold.kind == "affinity"):
        if hold.kind == "cpu_latency":
            return restored(hold, "dropped by the kernel with its holder")
        return restored(hold, f"is {plain(hold.original)} again")
    if not ours:
        return left_alone(hold, current)
    if record is not None and record.chosen(hold):
        return left_alone(hold, current)
    back = _back(hold, current)
    if not knob.replace(hold.target, current, back):
        return left_alone(hold, knob.read(hold.target) or current)
    now = knob.read(hold.target)
    if back.endswith(UNPINNED):
        return restored(hold, f"{current} -> {now or plain(back)}")
    if now is not None and not knob.same(now, back):
        # A cpuset that has shrunk since; what the kernel grants is all there is.
        return restored(hold, f"{current} -> {now} ({back} is not to be had any more)")
    return restored(hold, f"{current} -> {back}")


def _back(hold: Hold, current: str) -> str:
    """What to write so that the hold is restored."""
    if knob := THREAD_KNOBS.get(hold.kind):
        return knob.back(current, hold.original)
    return hold.original


def undo_all(
    journal: Journal,
    keys: Iterable[Key] | None = None,
    record: Inherited | None = None,
    step: Callable[[], None] = lambda: None,
    bound_s: float = BOUND_S,
) -> list[Outcome]:
    """Undo holds (all of them without ``keys``), newest first, slices last. Never raises.

    Each is noted in the journal as soon as it is undone; one of a thread once
    those that inherited from it have been looked for too, for ``bound_s`` seconds
    at most. ``step`` is called after each: altogether it may take long.
    """
    wanted = set(journal.holds if keys is None else keys)
    holds = [hold for key, hold in reversed(journal.holds.items()) if key in wanted]
    # Under the policy that a thread was given the kernel may refuse it another slice.
    holds.sort(key=lambda hold: hold.kind == "slice")
    held = frozenset(journal.holds)
    outcomes = []
    threads = []
    for hold in holds:
        outcome = undo(hold, record)
        outcomes.append(outcome)
        if outcome.settled and hold.kind in THREAD_KINDS:
            threads.append(hold.key)
        elif outcome.settled:
            journal.undone([hold.key])
        step()
    mine = [hold for hold in holds if hold.kind in THREAD_KINDS]
    released, unfinished = release_all(mine, held, record, step, bound_s)
    journal.undone(key for key in threads if key not in unfinished)
    if journal.stale:
        text = f"{NAME}: nothing that it lists is held any more, but it cannot be removed: "
        text += journal.stale
        released.append(Outcome("", "", "", text, settled=False))
    return outcomes + released


def recover(
    dir_fd: int, record: Inherited | None = None, bound_s: float = BOUND_S
) -> list[Outcome] | None:
    """Undo what a journal holds whose writer has ended; None when there is no journal.

    The caller has the lock. Raises JournalError.
    """
    found = load(dir_fd)
    if found is None:
        return None
    if found.undated:
        return _undated(dir_fd, found.holds)
    journal = Journal(dir_fd, found.holds if found.this_boot else ())
    outcomes = []
    if found.damaged:
        outcomes.append(Outcome("", "", "", f"journal: {found.damaged} unreadable lines left out"))
    if found.holds and not found.this_boot:
        text = "journal: from before the last boot, which has restored everything"
        outcomes.append(Outcome("", "", "", text))
    outcomes += undo_all(journal, record=record, bound_s=bound_s)
    journal.close()
    return outcomes


def _undated(dir_fd: int, holds: Iterable[Hold]) -> list[Outcome]:
    """Put a journal aside that may be of any boot, and name what it holds."""
    text = f"{NAME}: its first line is damaged, so it may be of an earlier boot: "
    try:
        name = put_aside(dir_fd)
        text += f"kept as {name}"
    except OSError as error:
        name = NAME
        text += f"not restored, and it cannot be renamed: {error.strerror}"
    outcomes = [Outcome("", "", "", text, settled=False)]
    for hold in holds:
        text = f"not restored, it was {shown(plain(hold.original))} if {name} is of this boot"
        outcomes.append(restored(hold, text)._replace(settled=False))
    return outcomes


def forget(dir_fd: int) -> list[str]:
    """Drop what is left after ``recover``, and journals that were put aside; a line for each.

    The caller has the lock. Raises JournalError and OSError.
    """
    lines = []
    if (found := load(dir_fd)) is not None:
        for hold in found.holds:
            lines.append(restored(hold, f"forgotten, it was {shown(plain(hold.original))}").text)
        Journal(dir_fd).discard()
    for name in aside(dir_fd):
        os.unlink(name, dir_fd=dir_fd)
        lines.append(f"{name}: removed")
    return lines

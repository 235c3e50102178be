"""Giving knobs back: compare with what we wrote, restore, and say what was done.

Used by the guardian, by an engine whose guardian was killed, and by
``agenttop restore``; so it stays small.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from agenttop.policies.journal import Hold, Journal, Key, load
from agenttop.policies.knobs import (
    KNOBS,
    KnobError,
    cpu_set,
    parse_cpus,
    split_thread,
    thread_stat,
)
from agenttop.policies.knobs_sched import THREAD_KNOBS

#: Kinds whose target is a thread, which passes them on to what it starts.
THREAD_KINDS = ("affinity", *THREAD_KNOBS)


class Outcome(NamedTuple):
    """What became of one hold."""

    policy: str
    kind: str
    target: str
    #: One line for people.
    text: str
    #: False: the knob could not be restored and stays in the journal.
    settled: bool = True
    #: Somebody else has set it since, so it was left alone.
    foreign: bool = False


def undo(hold: Hold) -> Outcome:
    """Restore one knob if it still has a value of ours. Never raises."""
    knob = KNOBS[hold.kind]
    label = knob.label(hold.target)

    def outcome(text: str, settled: bool = True, foreign: bool = False) -> Outcome:
        return Outcome(hold.policy, hold.kind, hold.target, f"{label}: {text}", settled, foreign)

    try:
        current = knob.read(hold.target)
        if current is None:
            return outcome("has ended" if hold.kind in THREAD_KINDS else "is gone")
        if knob.same(current, hold.original):
            if hold.kind == "cpu_latency":
                return outcome("dropped by the kernel with its holder")
            return outcome(f"is {hold.original} again")
        if not any(knob.ours(current, value) for value in hold.ours):
            return outcome(
                f"changed by somebody else since (now {current}): left as it is", foreign=True
            )
        knob.write(hold.target, hold.original)
        now = knob.read(hold.target)
        if now is not None and not knob.same(now, hold.original):
            # A cpuset that has shrunk since; what the kernel grants is all there is.
            return outcome(f"{current} -> {now} ({hold.original} is not to be had any more)")
        return outcome(f"{current} -> {hold.original}")
    except KnobError as error:
        return outcome(f"could not be restored to {hold.original}: {error}", settled=False)


def undo_all(journal: Journal, keys: Iterable[Key] | None = None) -> list[Outcome]:
    """Undo holds (all of them without ``keys``), newest first, and note it in the journal."""
    wanted = set(journal.holds if keys is None else keys)
    holds = [hold for key, hold in reversed(journal.holds.items()) if key in wanted]
    outcomes = [undo(hold) for hold in holds]
    tree = _tree(holds)
    outcomes += release_heirs(holds, tree, journal.holds)
    outcomes += release_attributes(holds, tree, journal.holds)
    journal.undone((o.kind, o.target) for o in outcomes if o.settled)
    return outcomes


def recover(dir_fd: int) -> list[Outcome] | None:
    """Undo what a journal holds whose writer has ended; None when there is no journal.

    The caller has the lock. Raises JournalError.
    """
    found = load(dir_fd)
    if found is None:
        return None
    journal = Journal(dir_fd, found.holds if found.this_boot else ())
    outcomes = []
    if found.damaged:
        outcomes.append(Outcome("", "", "", f"journal: {found.damaged} unreadable lines left out"))
    if found.holds and not found.this_boot:
        text = "journal: from before the last boot, which has restored everything"
        outcomes.append(Outcome("", "", "", text))
    outcomes += undo_all(journal)
    journal.close()
    return outcomes


# --------------------------------------------------------------------------- heirs


def release_heirs(
    holds: Iterable[Hold], pids: Iterable[int], held: Iterable[Key] = ()
) -> list[Outcome]:
    """Give threads that inherited a narrowed affinity the one that they would have had.

    A thread passes its CPUs on to the threads and processes that it starts:
    tool processes of an agent would stay on its home CPU for ever. An heir is
    a thread of ``pids`` that started after a hold began and has exactly the
    CPUs of that hold; held threads themselves are none.
    """
    affinities = [hold for hold in holds if hold.kind == "affinity"]
    if not affinities:
        return []
    holders: dict[int, list[Hold]] = {}
    for hold in affinities:
        holders.setdefault(split_thread(hold.target)[0], []).append(hold)
    # As sched_getaffinity tells it: without the CPUs that are offline.
    online = cpu_set("online")
    values = {value for hold in affinities for value in hold.ours}
    masks = {value: parse_cpus(value) & online for value in values}
    narrowed = set(masks.values())
    known = {split_thread(target)[1] for kind, target in held if kind == "affinity"}
    known.update(split_thread(hold.target)[1] for hold in affinities)
    # An agent's tool may have lost its parent. What was demoted is no agent's: no such guess.
    homes = [hold for hold in affinities if hold.policy != "demote"]
    outcomes = []
    for pid in pids:
        for tid in _threads(pid):
            try:
                if tid in known or (mask := frozenset(os.sched_getaffinity(tid))) not in narrowed:
                    continue
            except OSError:
                continue
            stat = thread_stat(pid, tid)
            if stat is None:
                continue
            for hold in holders.get(_holder(pid, holders), homes):
                if stat.start >= hold.at and mask in (masks[v] for v in hold.ours):
                    outcomes.append(_release(f"{pid}/{tid}/{stat.start}", hold))
                    break
    return outcomes


def release_attributes(
    holds: Iterable[Hold], pids: Iterable[int], held: Iterable[Key] = ()
) -> list[Outcome]:
    """The same for what knobs_sched.py sets: slice, clamp, scheduling policy, I/O priority.

    An heir is a thread of ``pids`` that started after a hold on a thread of
    its process or of an ancestor began, and has exactly the value of that hold.
    """
    by_kind: dict[str, dict[int, list[Hold]]] = {}
    for hold in holds:
        if hold.kind in THREAD_KNOBS:
            by_pid = by_kind.setdefault(hold.kind, {})
            by_pid.setdefault(split_thread(hold.target)[0], []).append(hold)
    known = {(kind, split_thread(target)[1]) for kind, target in held if kind in THREAD_KNOBS}
    known.update(
        (hold.kind, split_thread(hold.target)[1]) for hold in holds if hold.kind in by_kind
    )
    outcomes = []
    for pid in pids if by_kind else ():
        for tid in _threads(pid):
            for kind, holders in by_kind.items():
                if (kind, tid) not in known:
                    outcomes += _release_attribute(kind, pid, tid, holders)
    return outcomes


def _release_attribute(
    kind: str, pid: int, tid: int, holders: dict[int, list[Hold]]
) -> list[Outcome]:
    values = {value for mine in holders.values() for hold in mine for value in hold.ours}
    try:
        now = THREAD_KNOBS[kind].get(tid)
    except OSError:
        return []
    stat = thread_stat(pid, tid) if now in values else None
    if stat is None:
        return []
    for hold in holders.get(_holder(pid, holders), ()):
        if stat.start >= hold.at and now in hold.ours and now != hold.original:
            return [_release(f"{pid}/{tid}/{stat.start}", hold)]
    return []


def _release(target: str, hold: Hold) -> Outcome:
    knob = KNOBS[hold.kind]
    text = f"{knob.label(target)}: inherited, -> {hold.original}"
    try:
        knob.write(target, hold.original)
    except KnobError as error:
        text = f"{text}: {error}"
    return Outcome(hold.policy, hold.kind, target, text)


def _holder(pid: int, holders: dict[int, list[Hold]]) -> int:
    """The process itself or its nearest ancestor that has held threads; 0 for none."""
    for _ in range(64):
        if pid in holders or pid <= 1:
            return pid
        stat = thread_stat(pid, pid)
        pid = stat.ppid if stat else 0
    return 0


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _tree(holds: Iterable[Hold]) -> list[int]:
    """The processes of held threads, and their descendants."""
    roots = {split_thread(hold.target)[0] for hold in holds if hold.kind in THREAD_KINDS}
    if not roots:
        return []
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := thread_stat(int(name), int(name))):
            children.setdefault(stat.ppid, []).append(int(name))
    found: list[int] = []
    queue = list(roots)
    seen = set(roots)
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += (child for child in children.get(pid, ()) if child not in seen)
        seen.update(children.get(pid, ()))
    return found

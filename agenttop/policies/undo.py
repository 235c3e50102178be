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

    def outcome(text: str, settled: bool = True) -> Outcome:
        return Outcome(hold.policy, hold.kind, hold.target, f"{label}: {text}", settled)

    try:
        current = knob.read(hold.target)
        if current is None:
            return outcome("has ended" if hold.kind in THREAD_KINDS else "is gone")
        if knob.same(current, hold.original):
            if hold.kind == "cpu_latency":
                return outcome("dropped by the kernel with its holder")
            return outcome(f"is {hold.original} again")
        if not any(knob.ours(current, value) for value in hold.ours):
            return left_alone(hold, current)
        back = _back(hold, current)
        knob.write(hold.target, back)
        now = knob.read(hold.target)
        if now is not None and not knob.same(now, back):
            # A cpuset that has shrunk since; what the kernel grants is all there is.
            return outcome(f"{current} -> {now} ({back} is not to be had any more)")
        return outcome(f"{current} -> {back}")
    except KnobError as error:
        return outcome(f"could not be restored to {hold.original}: {error}", settled=False)


def _back(hold: Hold, current: str) -> str:
    """What to write so that the hold is given back."""
    if knob := THREAD_KNOBS.get(hold.kind):
        return knob.back(current, hold.original)
    return hold.original


def left_alone(hold: Hold, now: str) -> Outcome:
    """A knob that somebody else has set since, to ``now``: it is not written."""
    label = KNOBS[hold.kind].label(hold.target)
    text = f"{label}: changed by somebody else since (now {now}): left as it is"
    return Outcome(hold.policy, hold.kind, hold.target, text, foreign=True)


def undo_all(journal: Journal, keys: Iterable[Key] | None = None) -> list[Outcome]:
    """Undo holds (all of them without ``keys``), newest first, and note it in the journal."""
    wanted = set(journal.holds if keys is None else keys)
    holds = [hold for key, hold in reversed(journal.holds.items()) if key in wanted]
    outcomes = [undo(hold) for hold in holds]
    outcomes += release_heirs(holds, [_tree(holds)], journal.holds)
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
    holds: Iterable[Hold], groups: Iterable[Iterable[int]], held: Iterable[Key] = ()
) -> list[Outcome]:
    """Give threads that inherited what is held what they would have had.

    A thread passes its CPUs, its scheduling attributes and its I/O priority on
    to the threads and processes that it starts: tool processes of an agent
    would stay on its home CPU for ever. ``groups``: processes of each agent.
    An heir is one of their threads that started after a hold on a thread of
    its process or of an ancestor began, and has exactly the value of that
    hold; ``held`` threads themselves are none.
    """
    holds, known = list(holds), set(held)
    known.update(hold.key for hold in holds)
    tids = {(kind, split_thread(target)[1]) for kind, target in known if kind in THREAD_KINDS}
    affinities = _by_process(holds, "affinity")
    attributes = {kind: _by_process(holds, kind) for kind in THREAD_KNOBS}
    outcomes = []
    for group in map(list, groups):
        outcomes += _release_affinities(affinities, group, tids)
        for pid in group:
            for kind, holders in attributes.items():
                for tid in _threads(pid) if holders else ():
                    if (kind, tid) not in tids:
                        outcomes += _release_attribute(kind, pid, tid, holders)
    return outcomes


def _by_process(holds: Iterable[Hold], kind: str) -> dict[int, list[Hold]]:
    found: dict[int, list[Hold]] = {}
    for hold in holds:
        if hold.kind == kind:
            found.setdefault(split_thread(hold.target)[0], []).append(hold)
    return found


def _release_affinities(
    holders: dict[int, list[Hold]], group: list[int], known: set[tuple[str, int]]
) -> list[Outcome]:
    """Those of one group. A tool that has lost its parent is taken for its agent's other heir."""
    if not holders:
        return []
    # As sched_getaffinity tells it: without the CPUs that are offline.
    online = cpu_set("online")
    values = {value for mine in holders.values() for hold in mine for value in hold.ours}
    masks = {value: parse_cpus(value) & online for value in values}
    narrowed = set(masks.values())
    # What was demoted is no agent's: no such guess.
    homes = [hold for pid in group for hold in holders.get(pid, ()) if hold.policy != "demote"]
    outcomes = []
    for pid in group:
        for tid in _threads(pid):
            try:
                if ("affinity", tid) in known:
                    continue
                if (mask := frozenset(os.sched_getaffinity(tid))) not in narrowed:
                    continue
            except OSError:
                continue
            stat = thread_stat(pid, tid)
            if stat is None:
                continue
            for hold in holders.get(_holder(pid, holders), homes):
                if stat.start >= hold.at and mask in (masks[v] for v in hold.ours):
                    target = f"{pid}/{tid}/{stat.start}"
                    outcomes.append(_release(target, hold, hold.original))
                    break
    return outcomes


def _release_attribute(
    kind: str, pid: int, tid: int, holders: dict[int, list[Hold]]
) -> list[Outcome]:
    knob = THREAD_KNOBS[kind]
    values = {value for mine in holders.values() for hold in mine for value in hold.ours}
    try:
        now = knob.get(tid)
    except OSError:
        return []
    stat = thread_stat(pid, tid) if any(knob.ours(now, value) for value in values) else None
    if stat is None:
        return []
    for hold in holders.get(_holder(pid, holders), ()):
        if (
            stat.start >= hold.at
            and any(knob.ours(now, value) for value in hold.ours)
            and not knob.ours(now, hold.original)
        ):
            return [_release(f"{pid}/{tid}/{stat.start}", hold, knob.back(now, hold.original))]
    return []


def _release(target: str, hold: Hold, back: str) -> Outcome:
    knob = KNOBS[hold.kind]
    text = f"{knob.label(target)}: inherited, -> {back}"
    try:
        knob.write(target, back)
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

"""Giving knobs back: compare with what we wrote, restore, and say what was done.

Used by the guardian, by an engine whose guardian was killed, and by
``agenttop restore``; so it stays small.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from agenttop.policies.journal import Hold, Journal, Key
from agenttop.policies.knobs import (
    AFFINITY,
    KNOBS,
    KnobError,
    cpu_set,
    parse_cpus,
    split_thread,
    thread_stat,
)


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
            return outcome("has ended" if hold.kind == "affinity" else "is gone")
        if knob.same(current, hold.original):
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
    outcomes += release_heirs(holds, _tree(holds), journal.holds)
    journal.undone((o.kind, o.target) for o in outcomes if o.settled)
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
    masks: dict[frozenset[int], Hold] = {}
    for hold in affinities:
        for value in hold.ours:
            masks[_cpus(value)] = hold
    since = min(hold.at for hold in affinities)
    known = {split_thread(target)[1] for kind, target in held if kind == "affinity"}
    known.update(split_thread(hold.target)[1] for hold in affinities)
    outcomes = []
    for pid in pids:
        for tid in _threads(pid):
            if tid in known:
                continue
            try:
                heir_of = masks.get(frozenset(os.sched_getaffinity(tid)))
            except OSError:
                continue
            stat = thread_stat(pid, tid) if heir_of else None
            if heir_of is None or stat is None or stat.start < since:
                continue
            target = f"{pid}/{tid}/{stat.start}"
            text = f"{AFFINITY.label(target)}: inherited, -> {heir_of.original}"
            try:
                AFFINITY.write(target, heir_of.original)
            except KnobError as error:
                text = f"{text}: {error}"
            outcomes.append(Outcome(heir_of.policy, "affinity", target, text))
    return outcomes


def _cpus(value: str) -> frozenset[int]:
    # As sched_getaffinity tells it: without the CPUs that are offline.
    return parse_cpus(value) & cpu_set("online")


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _tree(holds: Iterable[Hold]) -> list[int]:
    """The processes of held threads, and their descendants."""
    roots = {split_thread(hold.target)[0] for hold in holds if hold.kind == "affinity"}
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

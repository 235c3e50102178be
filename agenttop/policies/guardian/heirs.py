"""What held threads passed on: threads that inherited a held value get what they would have had.

A thread passes its CPUs, its scheduling attributes and its I/O priority on to
the threads and processes that it starts: tool processes of an agent would
stay on its home CPU for ever. Heirs are found in the kernel's record
(inheritance.py). Where there is none, an heir is a thread that started after
the hold on a thread of its process or of an ancestor began, and has exactly
the value of that hold; then a child that chose that very value itself cannot
be told from one that inherited it.

Heirs are released one by one: whatever one of them meets, the others are released.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial

from agenttop.policies.guardian.inheritance import FIELDS, Inherited
from agenttop.policies.guardian.journal import Hold, Key
from agenttop.policies.guardian.outcome import Outcome, label, plain, words
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import KnobError, cpu_set, parse_cpus, split_thread, thread_stat
from agenttop.policies.knobs.cpusets import granted
from agenttop.policies.knobs.sched_attr import THREAD_KNOBS

#: Kinds whose target is a thread, which passes them on to what it starts.
THREAD_KINDS = FIELDS
#: How long threads that are born meanwhile are looked for, unless the caller can wait for longer.
BOUND_S = 1.0
#: clone, fork, vfork and clone3, arch/x86/entry/syscalls/syscall_64.tbl and syscall_32.tbl.
_FORKS = frozenset({56, 57, 58, 435, 120, 2, 190})
#: A thread that has got on by so much has left the fork that it was in: the record counts a fork's
#: beginning and its end; user time may rise by one clock tick within one, as the kernel derives it
#: from all of the run time (cputime_adjust).
_SURE = 2
#: Between two passes that find nobody new while a fork may be under way: its child is to be
#: restored before it forks itself, or a chain of forks stays one ahead.
PAUSE_S = 0.0002

_Found = Iterator[tuple[str, Hold]]


def is_ours(hold: Hold, target: str, now: str) -> bool:
    """Whether ``target`` has what became of a value that was written for the hold."""
    return _has_ours(hold, now) or (hold.kind == "affinity" and granted(target, now, hold.ours))


def _has_ours(hold: Hold, now: str) -> bool:
    return any(KNOBS[hold.kind].ours(now, value) for value in hold.ours)


def release_heirs(
    holds: Iterable[Hold],
    groups: Iterable[Iterable[int]],
    held: Collection[Key] = (),
    record: Inherited | None = None,
    step: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Release heirs among ``groups``, the processes of each agent; ``held`` threads are none."""
    pass_ = _Pass(holds, held, record, step)
    pass_.look([list(group) for group in groups])
    return pass_.outcomes


def release_all(
    holds: Iterable[Hold],
    held: Collection[Key] = (),
    record: Inherited | None = None,
    step: Callable[[], None] = lambda: None,
    bound_s: float = BOUND_S,
) -> tuple[list[Outcome], set[Key]]:
    """Release all heirs, also those born meanwhile: until a pass finds nobody new, bound_s at most.

    Returns outcomes and the holds whose heirs are not all released. ``step`` is
    called now and then, as one pass may take long. Never raises.
    """
    pass_ = _Pass(holds, held, record, step, at_last=True)
    if not pass_.holds:
        return [], set()
    end = time.monotonic() + bound_s
    while True:
        forking = pass_.forking()
        pass_.look(None, end)
        if not pass_.fresh and not forking:
            break
        if time.monotonic() > end:
            text = "threads start faster than they can be restored: the newest are not yet"
            pass_.fail([hold for hold in pass_.holds if hold.key in pass_.fresh], text)
            text = "one may be starting a thread just now, which is not restored yet"
            pass_.fail([hold for hold in pass_.holds if hold.key in forking], text)
            break
        if not pass_.fresh:
            time.sleep(PAUSE_S)
    return pass_.outcomes, pass_.unfinished


class _Pass:
    """Passes over those who may have inherited."""

    def __init__(
        self,
        holds: Iterable[Hold],
        held: Collection[Key],
        record: Inherited | None,
        step: Callable[[], None],
        at_last: bool = False,
    ) -> None:
        # Policies before slices, as undo_all has it.
        mine = [hold for hold in holds if hold.kind in THREAD_KINDS]
        self.holds = sorted(mine, key=lambda hold: FIELDS.index(hold.kind))
        self.outcomes: list[Outcome] = []
        #: Holds with an heir that could not be released.
        self.unfinished: set[Key] = set()
        #: Holds of which the last pass found another heir, or had no time to look for all.
        self.fresh: set[Key] = set()
        self._record = record
        self._step = step
        #: Heirs whose cpuset hides what they were asked for as well: later is too late.
        self._at_last = at_last
        known = {*held, *(hold.key for hold in self.holds)}
        self._tids = {
            (kind, split_thread(target)[1]) for kind, target in known if kind in THREAD_KINDS
        }
        #: Dealt with: (kind, ``PID/TID/START``); and of the record (kind, thread id), whose entry
        #: goes with the thread.
        self._seen: set[Key] = set()
        self._dealt: set[tuple[str, int]] = set()
        #: Hold and restored thread that may be in the middle of a fork, with its progress.
        self._forking: dict[tuple[Key, str], int | None] = dict.fromkeys(
            (hold.key, hold.target) for hold in self.holds
        )
        #: Processes of the tree so far with their start: one that loses its parent stays in it.
        self._members: dict[int, int] = {}

    def forking(self) -> set[Key]:
        """Holds of which a thread that was restored may be in the middle of a fork.

        Such a fork has copied the value before and shows its child afterwards
        (kernel/fork.c, copy_process). The record says when it is over; without
        one it is when the thread has got on.
        """
        covered = self._covered()
        for (key, target), before in list(self._forking.items()):
            now = self._forks(target) if key in covered else _progress(target)
            if now is None or (before is not None and now >= before + _SURE):
                del self._forking[key, target]
            elif before is None:
                self._forking[key, target] = now
        return {key for key, _ in self._forking}

    def _forks(self, target: str) -> int | None:
        """The number of the fork that a thread of the record is in; None for none."""
        forks = self._record.forks(split_thread(target)[1]) if self._record else None
        return forks if forks is not None and forks % 2 else None

    def _covered(self) -> set[Key]:
        """The holds whose heirs the record tells."""
        return self._record.covered(self.holds) if self._record else set()

    def look(self, groups: list[list[int]] | None, end: float = float("inf")) -> None:
        """One pass over ``groups``, or over all there are."""
        self.fresh.clear()
        record = self._record
        covered = self._covered()
        recorded = [hold for hold in self.holds if hold.key in covered]
        others = [hold for hold in self.holds if hold.key not in covered]
        if record is not None and recorded:
            among = None if groups is None else {pid for group in groups for pid in group}
            self._each(recorded, partial(_recorded, recorded, record, among, self._dealt), end)
        if others:
            where = groups
            try:
                if where is None:
                    where = [_tree(others, self._members, self._step)]
            except Exception as error:
                self.fail(others, f"what they have started cannot be found: {words(error)}")
                return
            for group in where:
                self._each(others, partial(_by_value, others, group, self._tids, self._step), end)

    def _each(self, holds: list[Hold], find: Callable[[], _Found], end: float) -> None:
        try:
            for target, hold in find():
                key = (hold.kind, target)
                if key not in self._seen and (hold.kind, split_thread(target)[1]) not in self._tids:
                    self._seen.add(key)
                    self._release(target, hold)
                if time.monotonic() > end:
                    self.fresh.update(hold.key for hold in holds)
                    return
        except Exception as error:
            self.fail(holds, f"what they have started cannot be found: {words(error)}")

    def _release(self, target: str, hold: Hold) -> None:
        """Give an heir what it would have had, if it has what it has inherited."""
        try:
            knob = KNOBS[hold.kind]
            now = knob.read(target)
            if now is None:
                return
            if not (is_ours(hold, target, now) if self._at_last else _has_ours(hold, now)):
                return
            own = THREAD_KNOBS.get(hold.kind)
            back = own.back(now, hold.original) if own else hold.original
            if knob.same(now, back):
                return
            name = label(hold.kind, target)
            if not knob.replace(target, now, back):
                return
            self.fresh.add(hold.key)
            self._forking[hold.key, target] = None
            text = f"{name}: inherited, -> {plain(back)}"
            self.outcomes.append(Outcome(hold.policy, hold.kind, target, text))
        except Exception as error:
            text = f"{label(hold.kind, target)}: inherited, could not be restored: {words(error)}"
            self.unfinished.add(hold.key)
            self.outcomes.append(Outcome(hold.policy, hold.kind, target, text, settled=False))

    def fail(self, holds: Iterable[Hold], text: str) -> None:
        """None of these can be taken for finished."""
        failed = [hold for hold in holds if hold.key not in self.unfinished]
        self.unfinished.update(hold.key for hold in failed)
        if failed:
            first = failed[0]
            others = " and others" if len(failed) > 1 else ""
            text = f"{label(first.kind, first.target)}{others}: {text}"
            self.outcomes.append(
                Outcome(first.policy, first.kind, first.target, text, settled=False)
            )


def _progress(target: str) -> int | None:
    """What rises when a thread comes back from a system call; None: it is in no fork.

    Its user time, clock ticks, and how often it has read and written, which counts
    for _SURE: one that copies much has next to no user time.
    """
    pid, tid, start = split_thread(target)
    stat = thread_stat(pid, tid)
    if stat is None or stat.start != start or stat.state not in "RD":
        return None
    folder = f"/proc/{pid}/task/{tid}"
    if stat.state == "D":
        # Waits within a system call: most are none that starts a thread.
        with suppress(OSError, ValueError, IndexError), open(f"{folder}/syscall", "rb") as file:
            if int(file.read(64).split()[0]) not in _FORKS:
                return None
    calls = 0
    with suppress(OSError, ValueError, IndexError), open(f"{folder}/io", "rb") as file:
        fields = file.read(512).split()
        calls = int(fields[fields.index(b"syscr:") + 1]) + int(fields[fields.index(b"syscw:") + 1])
    return stat.utime + _SURE * calls


# --------------------------------------------------------------------------- finding them


def _recorded(
    holds: list[Hold],
    record: Inherited,
    among: set[int] | None,
    dealt: set[tuple[str, int]],
) -> _Found:
    """As the kernel recorded it, without those in ``dealt``, which is updated.

    Passes that read all of them again would never catch up with a chain of forks.
    """
    heirs = record.heirs()
    dealt &= {(kind, tid) for (kind, _), tids in heirs.items() for tid in tids}
    for hold in holds:
        for tid in heirs.get((hold.kind, split_thread(hold.target)[1]), ()):
            if (hold.kind, tid) in dealt:
                continue
            pid = _process(tid)
            stat = thread_stat(pid, tid) if pid else None
            if stat is not None and (among is None or pid in among):
                yield f"{pid}/{tid}/{stat.start}", hold
                dealt.add((hold.kind, tid))


def _process(tid: int) -> int:
    """The process of a thread; 0 when it has ended."""
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            _, _, tail = file.read(4096).partition(b"\nTgid:")
        return int(tail.split(None, 1)[0])
    except (OSError, ValueError, IndexError):
        return 0


def _by_value(
    holds: list[Hold], group: list[int], known: set[tuple[str, int]], step: Callable[[], None]
) -> _Found:
    """By ancestry and value, among the processes of one agent."""
    for kind in THREAD_KINDS:
        holders: dict[int, list[Hold]] = {}
        for hold in holds:
            if hold.kind == kind:
                holders.setdefault(split_thread(hold.target)[0], []).append(hold)
        if not holders:
            continue
        # A tool that has lost its parent is taken for its agent's other heir: only CPUs, and
        # what was demoted is no agent's.
        homes = [
            hold
            for pid in group
            for hold in holders.get(pid, ())
            if kind == "affinity" and hold.policy != "demote"
        ]
        has = _test(kind, [hold for mine in holders.values() for hold in mine])
        for pid in group:
            step()
            for tid in _threads(pid):
                if (kind, tid) in known or not (values := has(tid)):
                    continue
                stat = thread_stat(pid, tid)
                if stat is None:
                    continue
                for hold in holders.get(_holder(pid, holders), homes):
                    if stat.start >= hold.at and values & set(hold.ours):
                        yield f"{pid}/{tid}/{stat.start}", hold
                        break


def _test(kind: str, holds: list[Hold]) -> Callable[[int], set[str]]:
    """Which of the values that were written a thread has, found out with one system call."""
    values = {value for hold in holds for value in hold.ours}
    if kind == "affinity":
        # As sched_getaffinity has it: without the CPUs that are offline.
        online = cpu_set("online")
        masks = {value: parse_cpus(value) & online for value in values}

        def affinity(tid: int) -> set[str]:
            try:
                mask = os.sched_getaffinity(tid)
            except OSError:
                return set()
            return {value for value, cpus in masks.items() if cpus == mask}

        return affinity
    knob = THREAD_KNOBS[kind]

    def attribute(tid: int) -> set[str]:
        try:
            now = knob.get(tid)
        except (OSError, KnobError):
            return set()
        return {value for value in values if knob.ours(now, value)}

    return attribute


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


def _tree(holds: Iterable[Hold], members: dict[int, int], step: Callable[[], None]) -> list[int]:
    """The processes of held threads, and their descendants; ``members`` so far, updated."""
    children: dict[int, list[int]] = {}
    starts: dict[int, int] = {}
    for name in os.listdir("/proc"):
        step()
        if name.isdigit() and (stat := thread_stat(int(name), int(name))):
            children.setdefault(stat.ppid, []).append(int(name))
            starts[int(name)] = stat.start
    queue = [split_thread(hold.target)[0] for hold in holds]
    queue += [pid for pid, start in members.items() if starts.get(pid) == start]
    found = dict.fromkeys(queue)
    while queue:
        fresh = [child for child in children.get(queue.pop(), ()) if child not in found]
        found.update(dict.fromkeys(fresh))
        queue += fresh
    members.update((pid, starts[pid]) for pid in found if pid in starts)
    return list(found)

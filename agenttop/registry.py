"""Which agents there are: finds them, gives each a slot in the kernel, notices their end.

With BPF, threads inherit their slot at fork and edges (exec, rename, cgroup
move, opt-in, exit) come through a ring; without, the process table is read
again every few seconds.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Final

from agenttop import agents, paths, procinfo
from agenttop.agents import ExecFilter, Found, Rules
from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.tracer import Asking, Edge, Thread, Tracer
from agenttop.collectors.schedstat import TreeSchedstat
from agenttop.collectors.treecpu import TreeCpu
from agenttop.procinfo import printable
from agenttop.slices import whole

#: Slots that opted-in threads may take together: anybody can opt in, rules come first.
OPT_IN_SLOTS: Final = 64
#: A thread that was turned away counts as waiting for so long after it asked last; it asks again
#: with its markers (layout.RETELL_NS).
ASKED_S: Final = 5.0
#: Process-table scans without BPF, and after lost edges.
SCAN_EVERY_S: Final = 2.0
#: CPU time that looking at edges may take per call.
EDGE_BUDGET_S: Final = 0.002
#: Processes that wait to be looked at; more are forgotten, and found by the next scan.
EDGE_BACKLOG: Final = 4096
#: With more agents than this their threads are listed at every other refresh.
MANY: Final = 32
#: Refreshes between counts of an agent's threads, while those measured stay the same.
COUNT_EVERY: Final = 10
#: Refreshes in a row that list no thread of an agent, after which it has ended whatever the
#: kernel's count says: a thread's end that no program saw would keep it for ever.
UNLISTED: Final = 3
#: Processes told of in a Sample per agent.
MAX_PIDS: Final = 64
#: Processes whose CPU time is read at each Sample per agent, half a microsecond each.
TIMED_PIDS: Final = 512

AgentKey = tuple[str, str, int, int]


@dataclass
class Agent:
    """An agent that is, or has just been, there."""

    id: int
    key: AgentKey
    name: str
    rule: str
    root: int
    background: bool = False
    #: Its slot in the kernel's maps; layout.NO_SLOT without BPF.
    slot: int = layout.NO_SLOT
    #: The one thread that opted in, None for a tree.
    tid: int | None = None
    #: All its processes, root first.
    pids: list[int] = field(default_factory=list)
    threads: list[Thread] = field(default_factory=list)
    alive: bool = True
    schedstat: TreeSchedstat | None = None
    #: Threads that its processes have, measured or not.
    thread_count: int = 0
    last_tracked: int = -1
    #: Refreshes since one of its threads was listed.
    unlisted: int = 0
    _cpu: TreeCpu = field(default_factory=TreeCpu)

    @property
    def told(self) -> list[int]:
        """Those of its processes that a Sample names."""
        return self.pids[:MAX_PIDS]

    def cpu_ns(self) -> int:
        """CPU time that its processes (the first of very many) used as its own, monotonic."""
        return self._cpu.read(self.pids[:TIMED_PIDS])


class Registry:
    """The agents, by rules and by opt-in."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._filter = ExecFilter(rules)
        self._processes = agents.table(rules)
        self._tracer: Tracer | None = None
        self._agents: dict[AgentKey, Agent] = {}
        self._free = list(range(layout.SLOTS - 1, 0, -1))
        self._next_id = 1
        #: Process -> the slot that it has inherited.
        self._backlog: dict[int, int] = {}
        #: When the last scan began; before the first one there is nobody.
        self._scanned = -math.inf
        self._complete = False
        self._rescan = False
        self._refreshes = 0
        #: Threads that asked to be agents when too many had asked already, and when.
        self._turned_away: dict[int, float] = {}

    def agents(self) -> list[Agent]:
        """All of them, oldest first; ended ones until ``forget``."""
        return list(self._agents.values())

    @property
    def slots_full(self) -> int:
        """Agents that are not measured now, as all slots are taken, and threads turned away."""
        if self._tracer is None:
            return 0
        since = time.monotonic() - ASKED_S
        self._turned_away = {tid: at for tid, at in self._turned_away.items() if at > since}
        return len(self._turned_away) + len(self._waiting())

    @property
    def behind(self) -> bool:
        """Whether there are processes that edges have told of, and nobody has looked at yet."""
        return bool(self._backlog)

    @property
    def scanned(self) -> bool:
        """Whether a scan has come to its end since the kernel measures, or since the start."""
        return self._complete

    def attach(self, tracer: Tracer) -> None:
        """From now on the kernel measures, or measures anew: what was counted before is over.

        The next scan finds the agents again, under new ids. Threads that opted
        in would not be found: they have said so once.
        """
        opted_in = [agent for agent in self._agents.values() if agent.tid is not None]
        self._tracer = tracer
        self._agents.clear()
        self._backlog.clear()
        self._free = list(range(layout.SLOTS - 1, 0, -1))
        for old in opted_in:
            self._opt_in(old.key, old.name, old.rule, old.root, old.tid)
        self._scanned, self._complete = -math.inf, False

    def forget(self) -> None:
        """Drop the ended agents, once a Sample has told of their end."""
        for key, agent in list(self._agents.items()):
            if not agent.alive:
                if agent.schedstat is not None:
                    agent.schedstat.close()
                if agent.slot != layout.NO_SLOT:
                    self._free.append(agent.slot)
                    if self._tracer is not None:
                        self._tracer.release(agent.slot)
                del self._agents[key]

    # ------------------------------------------------------------------ finding

    def scan(self) -> None:
        """Read the process table whole, at once."""
        whole(self.scanning())

    @property
    def scan_due(self) -> bool:
        """Whether it is time for one: without BPF every few seconds, else after lost edges.

        Less often where reading all processes takes long.
        """
        if self._scanned == -math.inf:
            return True
        overdue = time.monotonic() - self._scanned > SCAN_EVERY_S
        return overdue and self._processes.due and (self._tracer is None or self._rescan)

    def scanning(self) -> Generator[None, None, None]:
        """``scan``, with a yield after each process."""
        self._scanned = time.monotonic()
        self._rescan = False
        # With BPF this is the only look at those that were there before: at all of them.
        yield from self._processes.look(anew=self._tracer is not None)
        found = {f.key: f for f in (yield from agents.group(self._processes))}
        for key, one in found.items():
            agent = self._agents.get(key)
            if agent is None:
                self._enter(one)
                yield
                continue
            agent.name = one.name
            if self._tracer is None:
                agent.pids = list(one.pids)
            else:
                known = set(agent.pids)
                self._adopt(agent, [pid for pid in one.pids if pid not in known])
        if self._tracer is None:
            for key, agent in self._agents.items():
                agent.alive = agent.alive and key in found
        self._complete = True

    def edges(self, edges: Iterable[Edge], lost: bool) -> None:
        """Take in what happened to processes; ``lost``: some of it was not told."""
        self._rescan |= lost
        room = self._opt_in_room()
        for edge in edges:
            if edge.kind in ("exec", "rename", "cgroup"):
                if len(self._backlog) < EDGE_BACKLOG:
                    # Only exec tells it; a rename behind it must not hide it.
                    slot = edge.slot or self._backlog.get(edge.tgid, layout.NO_SLOT)
                    self._backlog[edge.tgid] = slot
                else:
                    self._rescan = True
            elif edge.kind in ("marker", "sched_setattr"):
                asks = Asking(edge.kind, edge.tgid, edge.tid, edge.slot, time.monotonic_ns())
                room -= self._opted_in(asks, room)
        until = time.thread_time() + EDGE_BUDGET_S
        while self._backlog and time.thread_time() < until:
            pid = next(iter(self._backlog))
            slot = self._backlog.pop(pid)
            one = self._filter.check(pid)
            if one is None:
                if slot != layout.NO_SLOT:
                    self._part(pid, slot)
                continue
            agent = self._agents.get(one.key)
            if agent is None or not agent.alive:
                self._enter(one)
                continue
            agent.name = one.name
            if pid not in agent.pids:
                self._adopt(agent, [pid])

    def refresh(self) -> None:
        """Before each Sample: who is in each agent now, and who has ended."""
        if self._tracer is None:
            return
        self._refreshes += 1
        if self._refreshes % 2 and len(self._agents) > MANY:
            return
        if self._free:
            self._seat()
        by_slot: dict[int, list[Thread]] = defaultdict(list)
        for thread in self._tracer.threads():
            by_slot[thread.slot].append(thread)
        self._seat_asking()
        for agent in self._agents.values():
            if agent.slot == layout.NO_SLOT:
                agent.alive = agent.alive and any(map(_lives, agent.pids))
                continue
            agent.threads = by_slot.get(agent.slot, [])
            if not agent.threads:
                agent.unlisted += 1
                counted = self._tracer.members(agent.slot) > 0
                agent.alive = agent.alive and counted and agent.unlisted < UNLISTED
                continue
            agent.unlisted = 0
            tgids = {thread.tgid for thread in agent.threads if thread.tgid}
            tgids = tgids or set(agent.pids)  # the hash knows threads only
            rest = sorted(tgids - {agent.root})
            first = [agent.root] if agent.root in tgids else []
            agent.pids = first + rest
            if agent.tid is not None:
                agent.thread_count = 1
            elif self._refreshes % COUNT_EVERY < 2 or len(agent.threads) != agent.last_tracked:
                agent.thread_count = max(len(agent.threads), sum(map(_threads_of, tgids)))
                agent.last_tracked = len(agent.threads)

    # ------------------------------------------------------------------ internals

    def _enter(self, found: Found) -> None:
        old = self._agents.get(found.key)
        if old is not None and not old.alive:
            return  # its end has not been told yet; the next scan or edge finds it
        agent = Agent(
            id=self._next_id,
            key=found.key,
            name=found.name,
            rule=found.rule.name,
            root=found.root,
            background=found.rule.background,
            pids=list(found.pids),
        )
        self._next_id += 1
        self._agents[found.key] = agent
        if self._tracer is None:
            agent.schedstat = TreeSchedstat()
            return
        if self._take_slot(agent):
            # The root and, when an exec edge names one process of a tree that
            # nobody knew, that process.
            self._tracer.assign(dict.fromkeys({found.root, *found.pids}, agent.slot), {})

    def _part(self, pid: int, slot: int) -> None:
        """A process that left its tree (a daemon: its parent is gone) is no part of the agent."""
        assert self._tracer is not None
        agent = next((a for a in self._agents.values() if a.slot == slot), None)
        here = pid
        for _ in range(64):
            if agent is None or here == agent.root:
                return
            info = procinfo.read(here)
            if info is None:
                return
            here = info.ppid
            if here <= 1:
                self._tracer.assign({pid: layout.NO_SLOT}, {})
                return

    def _opt_in_room(self) -> int:
        return OPT_IN_SLOTS - sum(agent.tid is not None for agent in self._agents.values())

    def _seat_asking(self) -> None:
        """Whoever opted in and waits: the ring may have dropped that."""
        assert self._tracer is not None
        since = time.monotonic_ns() - ASKED_S * 1e9
        room = self._opt_in_room()
        for asks in sorted(self._tracer.asking(), key=lambda one: one.asked_ns):
            if asks.asked_ns > since:
                room -= self._opted_in(asks, room)

    def _opted_in(self, edge: Asking, room: int) -> bool:
        """Whether the thread has become one more agent; ``room``: so many may."""
        if not edge.tgid:  # the hash knows threads only
            edge = edge._replace(tgid=procinfo.process_of(edge.tid))
        key = (edge.kind, "", edge.tid, edge.tgid)
        if self._tracer is None or key in self._agents:
            return False
        # Before looking at the process, which costs: anybody can start any number of them.
        if room <= 0:
            if len(self._turned_away) < EDGE_BACKLOG or edge.tid in self._turned_away:
                self._turned_away[edge.tid] = time.monotonic()
            return False
        self._turned_away.pop(edge.tid, None)
        info = procinfo.read(edge.tgid)
        if info is None:
            return False
        comm = procinfo.read_file(f"/proc/{edge.tgid}/task/{edge.tid}/comm", 64)
        name = printable(procinfo.text(comm).strip() if comm else info.comm, 32)
        self._opt_in(key, name, edge.kind, edge.tgid, edge.tid)
        return True

    def _opt_in(self, key: AgentKey, name: str, kind: str, tgid: int, tid: int | None) -> None:
        assert self._tracer is not None
        assert tid is not None
        agent = Agent(self._next_id, key, name, kind, tgid, tid=tid)
        agent.pids = [tgid]
        self._next_id += 1
        self._agents[key] = agent
        if self._take_slot(agent):
            self._tracer.assign({}, {tid: agent.slot})

    def _take_slot(self, agent: Agent) -> bool:
        assert self._tracer is not None
        if not self._free:
            return False
        agent.slot = self._free.pop()
        self._tracer.clear(agent.slot)
        return True

    def _waiting(self) -> list[Agent]:
        return [a for a in self._agents.values() if a.alive and a.slot == layout.NO_SLOT]

    def _seat(self) -> None:
        """Agents that found no slot get those that have become free."""
        assert self._tracer is not None
        for agent in self._waiting():
            if not self._take_slot(agent):
                return
            if agent.tid is not None:
                self._tracer.assign({}, {agent.tid: agent.slot})
            else:
                self._tracer.assign(dict.fromkeys(agent.pids, agent.slot), {})

    def _adopt(self, agent: Agent, pids: list[int]) -> None:
        if self._tracer is not None and agent.slot != layout.NO_SLOT and pids:
            self._tracer.assign(dict.fromkeys(pids, agent.slot), {})


def _threads_of(pid: int) -> int:
    """The folder has one link per thread, and two more."""
    try:
        return os.stat(f"{paths.proc()}/{pid}/task").st_nlink - 2
    except OSError:
        return 0


def _lives(pid: int) -> bool:
    return procinfo.read(pid) is not None

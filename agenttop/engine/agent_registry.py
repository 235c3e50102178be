"""Which agents there are: finds them, gives each a slot in the kernel, notices their end.

With BPF, threads inherit their slot at fork and edges (exec, rename, cgroup
move, opt-in, exit) come through a ring; without, the process table is read
again every few seconds.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from agenttop.agents import rules as agents
from agenttop.agents.patterns import NO_USER
from agenttop.agents.rules import ExecFilter, Found, Rules
from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.read.tracer import Asking, Edge, Thread, Tracer
from agenttop.collectors.procfs.schedstat import TreeSchedstat
from agenttop.collectors.procfs.tree_cpu import TreeCpu
from agenttop.engine import seats
from agenttop.engine.seats import Seat
from agenttop.linux import paths, process
from agenttop.linux.process import printable
from agenttop.linux.slices import whole

#: Slots that opted-in threads may take together: anybody can opt in.
OPT_IN_SLOTS: Final = 64
#: A thread that was turned away counts as waiting for so long after it asked last; it asks again
#: with its markers (layout.RETELL_NS).
ASKED_S: Final = 5.0
#: Agents of a user that wait for a slot with all that is known of them; more are only counted.
WAITING_EACH: Final = 32
#: Users told of in a Sample, of those with agents without a slot.
TOLD_USERS: Final = 8
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
#: Samples after which a slot that is closed has no thread, whatever is counted.
DRAINS: Final = 6
#: Ended agents that wait for a Sample to tell of them at most.
MAX_ENDED: Final = 64
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
    #: Whose it is, and whether root chose it in a way that nobody can fake (seats.py).
    user: int = 0
    chosen: bool = False
    #: Its slot goes to another agent, as soon as no thread of it has it any more.
    leaving: bool = False
    #: Its user's place in the shares of lanes for step names (steps.bpf.c).
    share: int = 0
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
    def seated(self) -> bool:
        """Whether it is measured; only then it is in Samples."""
        return self.slot != layout.NO_SLOT or self.schedstat is not None

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
        #: Threads that opted in and found no room: whose they are, and when they asked, ns.
        self._turned_away: dict[int, tuple[int, int]] = {}
        #: Agents without a slot of whom no more is kept than whose they are.
        self._counted: dict[AgentKey, int] = {}

    def agents(self) -> list[Agent]:
        """All of them, oldest first; ended ones until ``forget``."""
        return list(self._agents.values())

    @property
    def slots_full(self) -> int:
        """Agents that are not measured now, as all slots are taken, and threads turned away."""
        return self._without_slot().total()

    @property
    def slots_full_by_user(self) -> dict[str, int]:
        """Those, of the users with most of them."""
        return seats.most(self._without_slot(), TOLD_USERS)

    def _without_slot(self) -> Counter[int]:
        since = time.monotonic_ns() - int(ASKED_S * 1e9)
        self._turned_away = {tid: who for tid, who in self._turned_away.items() if who[1] > since}
        waiting = Counter(agent.user for agent in self._waiting())
        waiting.update(user for user, _ in self._turned_away.values())
        waiting.update(self._counted.values())
        return waiting

    def _turn_away(self, asks: Asking) -> None:
        if len(self._turned_away) < EDGE_BACKLOG or asks.tid in self._turned_away:
            self._turned_away[asks.tid] = (seats.user_of(asks.uid), asks.asked_ns)

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
        opted_in = [a for a in self._agents.values() if a.tid is not None and a.alive]
        self._tracer = tracer
        self._agents.clear()
        self._backlog.clear()
        self._counted.clear()
        self._free = list(range(layout.SLOTS - 1, 0, -1))
        for old in opted_in:
            self._opt_in(old.key, old.name, old.rule, old.root, old.tid, old.user)
        self._scanned, self._complete = -math.inf, False

    @property
    def surplus(self) -> list[Agent]:
        """Ended agents that are more than a Sample should name, those found first.

        They have slots that others need, and a Sample may be long in coming.
        """
        ended = [a for a in self._agents.values() if not a.alive and not a.leaving]
        return ended[: max(len(ended) - MAX_ENDED, 0)]

    def forget(self, agents: Iterable[Agent] | None = None) -> None:
        """Drop the ended agents (of these), once a Sample has told of their end."""
        for agent in self.agents() if agents is None else agents:
            if not agent.alive and not self._drains(agent):
                if agent.schedstat is not None:
                    agent.schedstat.close()
                if agent.slot != layout.NO_SLOT:
                    self._free.append(agent.slot)
                    if self._tracer is not None:
                        self._tracer.release(agent.slot)
                del self._agents[agent.key]
                if agent.leaving and agent.tid is None and any(map(_lives, agent.pids)):
                    self._wait(replace(agent, schedstat=None, slot=layout.NO_SLOT, _cpu=TreeCpu()))

    def _drains(self, agent: Agent) -> bool:
        """Whether threads of an agent that leaves its slot may have it still."""
        if not agent.leaving or self._tracer is None:
            return False
        agent.unlisted += 1
        return agent.unlisted < DRAINS and self._tracer.members(agent.slot) > 0

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
        # Of agents that are only counted nothing but a scan tells that they have ended.
        asked = self._tracer is None or self._rescan or bool(self._counted)
        return overdue and self._processes.due and asked

    def scanning(self) -> Generator[None, None, None]:
        """``scan``, with a yield after each process."""
        self._scanned = time.monotonic()
        self._rescan = False
        try:
            yield from self._scanning()
        except Exception:
            self._rescan = True  # Else nothing would ask for the next one.
            raise

    def _scanning(self) -> Generator[None, None, None]:
        # With BPF this is the only look at those that were there before: at all of them.
        yield from self._processes.look(anew=self._tracer is not None)
        found = {f.key: f for f in (yield from agents.group(self._processes))}
        self._counted = {key: user for key, user in self._counted.items() if key in found}
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
            self._seat()
        self._complete = True

    def edges(self, edges: Iterable[Edge], lost: bool) -> None:
        """Take in what happened to processes; ``lost``: some of it was not told."""
        self._rescan |= lost
        crowded = bool(self._waiting())
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
                if not crowded and self._free and self._opt_in_room() > 0:
                    self._opted_in(asks)
                else:
                    self._turn_away(asks)
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
        by_slot: dict[int, list[Thread]] = defaultdict(list)
        threads = self._tracer.threads()
        if self._seat():
            threads = self._tracer.threads()
        for thread in threads:
            by_slot[thread.slot].append(thread)
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
            # The root and, when an exec edge names one process of a tree that
            # nobody knew, that process.
            pids=list(dict.fromkeys((found.root, *found.pids))),
            user=_user(found.root),
            chosen=found.rule.chosen,
        )
        if self._room and not self._waiting():
            self._next_id += 1
            self._agents[found.key] = agent
            self._take_seat(agent)
        else:
            self._wait(agent)

    def _wait(self, agent: Agent) -> None:
        """Keep an agent that has no slot until there is one, or count it.

        Those that root chose wait apart: a crowd of the same user must not hide them.
        """
        mine = (agent.chosen, agent.user)
        if sum((a.chosen, a.user) == mine for a in self._waiting()) >= WAITING_EACH:
            self._counted[agent.key] = agent.user
            return
        self._counted.pop(agent.key, None)
        agent.id, agent.alive, agent.leaving, agent.unlisted = self._next_id, True, False, 0
        self._next_id += 1
        self._agents[agent.key] = agent

    def _part(self, pid: int, slot: int) -> None:
        """A process that left its tree (a daemon: its parent is gone) is no part of the agent."""
        assert self._tracer is not None
        agent = next((a for a in self._agents.values() if a.slot == slot), None)
        here = pid
        for _ in range(64):
            if agent is None or here == agent.root:
                return
            info = process.read(here)
            if info is None:
                return
            here = info.ppid
            if here <= 1:
                self._tracer.assign({pid: layout.NO_SLOT}, {})
                return

    def _opt_in_room(self) -> int:
        return OPT_IN_SLOTS - sum(agent.tid is not None for agent in self._agents.values())

    def _asking(self) -> list[Asking]:
        """Threads that opted in and wait: the ring may have dropped that they did."""
        if self._tracer is None:
            return []
        since = time.monotonic_ns() - ASKED_S * 1e9
        asking = (asks for asks in self._tracer.asking() if asks.asked_ns > since)
        return sorted(asking, key=lambda asks: asks.asked_ns)

    def _opted_in(self, asks: Asking) -> None:
        """The thread becomes an agent; there is room."""
        if not asks.tgid:  # the hash knows threads only
            asks = asks._replace(tgid=process.process_of(asks.tid))
        self._turned_away.pop(asks.tid, None)
        key = (asks.kind, "", asks.tid, asks.tgid)
        if key in self._agents:
            return
        info = process.read(asks.tgid)
        if info is None:
            return
        comm = process.read_file(f"/proc/{asks.tgid}/task/{asks.tid}/comm", 64)
        name = printable(process.text(comm).strip() if comm else info.comm, 32)
        user = seats.user_of(asks.uid)
        self._opt_in(key, name, asks.kind, asks.tgid, asks.tid, user)

    def _opt_in(
        self, key: AgentKey, name: str, kind: str, tgid: int, tid: int | None, user: int
    ) -> None:
        assert tid is not None
        agent = Agent(self._next_id, key, name, kind, tgid, tid=tid, user=user)
        agent.pids = [tgid]
        self._next_id += 1
        self._agents[key] = agent
        self._take_seat(agent)

    @property
    def _room(self) -> int:
        """Seats that nobody has."""
        if self._tracer is not None:
            return len(self._free)
        return layout.SLOTS - 1 - sum(agent.seated for agent in self._agents.values())

    def _take_seat(self, agent: Agent) -> None:
        """One of those; from then on it is measured."""
        self._counted.pop(agent.key, None)
        if self._tracer is None:
            agent.schedstat = TreeSchedstat()
            return
        agent.slot = self._free.pop()
        agent.share = self._share(agent)
        self._tracer.clear(agent.slot, agent.share)
        if agent.tid is not None:
            self._tracer.assign({}, {agent.tid: agent.slot})
        else:
            self._tracer.assign(dict.fromkeys(agent.pids, agent.slot), {})

    def _share(self, agent: Agent) -> int:
        """The place of its user among those who share the lanes of step names; 0: no limit."""
        if agent.chosen or agent.user == 0:
            return 0
        places = {a.share: a.user for a in self._agents.values() if a.seated and a.share}
        for place, user in places.items():
            if user == agent.user:
                return place
        return next(place for place in range(1, layout.SLOTS) if place not in places)

    def _waiting(self) -> list[Agent]:
        return [a for a in self._agents.values() if a.alive and not a.seated]

    def _seat(self) -> bool:
        """Seats for those that have none: free ones, or those of users with more (seats.py).

        Whether any seat changed hands.
        """
        waiting, asking = self._waiting(), self._asking()
        if not waiting and not asking:
            return False
        having = [a for a in self._agents.values() if a.alive and a.seated]
        claims = [Seat(a.chosen, a.user, a.id) for a in waiting]
        claims += [
            Seat(False, seats.user_of(asks.uid), self._next_id + i, True)
            for i, asks in enumerate(asking)
        ]
        made = seats.plan(
            claims,
            [Seat(a.chosen, a.user, a.id, a.tid is not None) for a in having],
            self._room,
            sum(a.leaving for a in self._agents.values()),
            OPT_IN_SLOTS,
        )
        for asks in asking:
            self._turn_away(asks)
        for place in made.seated:
            if place < len(waiting):
                self._take_seat(waiting[place])
            else:
                self._opted_in(asking[place - len(waiting)])
        for place in made.evicted:
            agent = having[place]
            agent.alive, agent.leaving, agent.unlisted = False, True, 0
            if self._tracer is not None:
                self._tracer.shut(agent.slot)
        return bool(made.seated or made.evicted)

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
    return process.read(pid) is not None


def _user(pid: int) -> int:
    uid = process.owner_of(pid)
    return NO_USER if uid is None else seats.user_of(uid)

"""Samples in, Snapshots out: windows, trends, markers, the slowest steps.

Everything is told from differences of counters over measured monotonic time.
Memory is bounded: a rolling window of Ticks (neighbours are joined where they
take too much), sums for that window and for the time since the last policy
toggle, a trend of fixed length. What nothing is counted of takes none.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from agenttop.model.row_layout import BLOCK
from agenttop.model.sample import LOADING, Event, Exemplar, Histogram, Host, PolicyStatus, Sample
from agenttop.model.snapshot import Snapshot
from agenttop.model.vocabulary import MEASURES, SLOWPATH_STAGES, SOFTIRQS, STAGES
from agenttop.stats.histogram import BUCKETS
from agenttop.stats.sparse_counts import summed
from agenttop.store.snapshot_builder import SCALARS, SCHEDSTAT, Owner, View, build, scalars_of
from agenttop.store.toggles import History
from agenttop.store.windows import Boundary, Cumulative, Ints, Sums, Tick, figures

#: Exemplars shown per agent.
EXEMPLARS: Final = 16
#: Kept per agent at most, whatever order they come in.
_MOST_EXEMPLARS: Final = 512
#: Of all agents together.
_MOST_IN_ALL: Final = 16_384
#: Ended agents that are kept at most; of others only the totals are.
MAX_GONE: Final = 64
#: Slots at first; they are halved again where half of them are free.
_SLOTS: Final = 16
#: What the window's Ticks may take, bytes.
MAX_TICKS: Final = 24 << 20
#: Points of the trends of all agents together (230 bytes each), and of one at least.
MAX_POINTS: Final = 65_536
_FEWEST_POINTS: Final = 60
_MEASURE_ROW: Final = {name: row for row, name in enumerate(MEASURES)}
_SOFTIRQ_ROW: Final = {name: row for row, name in enumerate(SOFTIRQS)}
_SLOW: Final = [STAGES.index(stage) for stage in SLOWPATH_STAGES]
_NO_INTS: Final[Ints] = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """An agent's slowpath over one tick; None where it made no step."""

    t_ns: int
    steps: int
    p50_ns: int | None
    p99_ns: int | None
    p999_ns: int | None


@dataclass(frozen=True, slots=True)
class Marker:
    """A policy was switched."""

    t_ns: int
    policy: str
    on: bool


@dataclass(slots=True)
class _Record(Owner):
    """An agent as the Store knows it (derive.Owner is the part that Snapshots need)."""

    #: Its counters at the newest Sample that had it (derive.scalars_of).
    before: Ints = field(default_factory=lambda: _NO_INTS)
    trend: deque[TrendPoint] = field(default_factory=deque)
    exemplars: list[tuple[int, Exemplar]] = field(default_factory=list)


class Store:
    """Feed it Samples, ask it for Snapshots. Not thread-safe.

    ``window_ns`` is the length of the rolling window, ``history_s`` that of
    the trends. ``clock`` gives CLOCK_MONOTONIC in ns (for the sample's age).
    """

    def __init__(
        self,
        window_ns: int = 30_000_000_000,
        history_s: float = 600,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.window_ns = window_ns
        self.history_ns = int(history_s * 1e9)
        self.host: Host | None = None
        self.events: deque[Event] = deque(maxlen=200)
        self._markers: deque[Marker] = deque(maxlen=200)
        self._clock = clock
        self._view_ns = 0
        self._skew_ns: int | None = None
        self._start()

    def _start(self) -> None:
        """Forget all counters: there was no Sample yet, or the engine started anew."""
        slots = _SLOTS
        self._last: Sample | None = None
        self._boundary: Boundary | None = None
        self._irq_names: dict[str, str] = {}
        self._current = Cumulative()
        self._window = Sums(slots, SCALARS)
        self._since = Sums(slots, SCALARS)
        self._since_start: Boundary | None = None
        self._ticks: deque[Tick] = deque()
        self._weight = 0
        #: A heap: the lowest come first, so that the highest become free.
        self._free = list(range(slots))
        self._agents: dict[int, _Record] = {}
        self._gone: list[_Record] = []
        self._cpu_slots: dict[int, int] = {}
        self._idle_slot = self._take_slot()
        self._policy_states: dict[str, tuple[bool, int | None]] = {}
        self._started_ns: int | None = None
        #: Before and after the toggles of policies.
        self.history = History()

    # ------------------------------------------------------------------ what views ask

    @property
    def markers(self) -> Sequence[Marker]:
        """Policy toggles, oldest first."""
        return self._markers

    @property
    def policies(self) -> list[PolicyStatus]:
        """As of the newest Sample."""
        return self._last.policies if self._last else []

    @property
    def started_ns(self) -> int | None:
        """CLOCK_MONOTONIC of the first Sample (of this run of the engine)."""
        return self._started_ns

    @property
    def settled(self) -> bool:
        """Whether the kernel side is loaded, or is known not to be possible here."""
        host = self.host
        return host is not None and not host.missing.get("chains", "").startswith(LOADING)

    def set_view_cpu(self, ns: int) -> None:
        """CPU time that the view's process has used, ns: it counts as agenttop's own too."""
        self._view_ns = ns

    def start_since(self) -> int:
        """Begin the long interval at the newest Sample, as a policy toggle does; gives its t_ns.

        ``snapshot(since_ns=...)`` reaches back to it however long ago it is.
        """
        if self._boundary is None:
            raise ValueError("there was no Sample yet")
        self._since.clear()
        self._since_start = self._boundary
        return self._boundary.t_ns

    def trend(self, agent_id: int) -> Sequence[TrendPoint]:
        """The slowpath of each tick, oldest first; empty for an agent that is not known."""
        record = self._agents.get(agent_id)
        if record is None:
            record = next((r for r in reversed(self._gone) if r.last.id == agent_id), None)
        return record.trend if record else ()

    def snapshot(
        self, window_ns: int | None = None, since_ns: int | None = None, hdr: bool = False
    ) -> Snapshot | None:
        """The figures over the last ``window_ns`` (default: the Store's window), or since a moment.

        ``since_ns`` (CLOCK_MONOTONIC) starts at the first Sample at or after
        it. What is further back than the window and the last toggle is no
        longer known: then the interval starts later, and interval_ns says so.
        ``hdr`` adds the whole distributions (costs about 0.2 ms each).
        None until there is a Sample; with one only the interval is 0.
        """
        sample, now, host = self._last, self._boundary, self.host
        if sample is None or now is None or host is None:
            return None
        self._reap(now.t_ns)
        start, sums = self._interval(now, window_ns, since_ns)
        owners: list[Owner] = [
            record
            for record in (*self._agents.values(), *self._gone)
            if record.seen_ns > start.t_ns or (record.alive and record.last.alive)
        ]
        exemplars = [
            pair
            for owner in owners
            if isinstance(owner, _Record)
            for pair in sorted(
                (p for p in owner.exemplars if p[1].t_ns > start.t_ns), key=_slow_first
            )[:EXEMPLARS]
        ]
        exemplars.sort(key=_slow_first)
        arrived = self._clock()
        age_ns = arrived - now.t_ns - (self._skew_ns or 0)
        return build(
            View(
                host=host,
                sample=sample,
                start=start,
                end=now,
                sums=sums,
                owners=owners,
                cpu_slots=self._cpu_slots,
                idle_slot=self._idle_slot,
                irq_names=self._irq_names,
                exemplars=[exemplar for _, exemplar in exemplars],
                age_ns=max(age_ns, 0),
                hdr=hdr,
            )
        )

    def _interval(
        self, now: Boundary, window_ns: int | None, since_ns: int | None
    ) -> tuple[Boundary, Sums]:
        ticks = self._ticks
        if since_ns is not None:
            first = self._since_start or now
            if ticks and since_ns > first.t_ns:
                chosen = [tick for tick in ticks if tick.start.t_ns >= since_ns]
                return (chosen[0].start, self._sum(chosen)) if chosen else (now, self._sum(()))
            return first, self._since
        if window_ns is None or window_ns >= self.window_ns or not ticks:
            return (ticks[0].start if ticks else now), self._window
        chosen = [tick for tick in ticks if _inside(tick, now.t_ns, window_ns)] or [ticks[-1]]
        return chosen[0].start, self._sum(chosen)

    def _sum(self, ticks: Iterable[Tick]) -> Sums:
        sums = Sums(self._window.slots, SCALARS)
        for tick in ticks:
            sums.add(tick)
        return sums

    # ------------------------------------------------------------------ what the engine tells

    def feed(self, sample: Sample) -> None:
        """Take in the next Sample.

        One that lies before the last one starts a new run, and so does a
        change of how or how finely is measured (from /proc to BPF when that
        has loaded) or of the CPUs that are: the counters are others then.
        """
        last = self._last
        if last is not None and (
            sample.seq <= last.seq or sample.t_ns <= last.t_ns or self._differs(sample.host)
        ):
            self._start()
            last = None
        if sample.host is not None:
            self.host = sample.host
        self.events.extend(sample.events)
        self._irq_names.update(sample.irq_names)
        skew = self._clock() - sample.t_ns
        self._skew_ns = skew if self._skew_ns is None or last is None else min(self._skew_ns, skew)
        end = Boundary(
            sample.t_ns, sample.cpus, sample.trust, self._view_ns, sample.energy_uj, sample.t_ns
        )
        if (known := self._boundary) is not None:
            if sample.cpus:
                end.earlier = known.cpus, known.cpus_ns
            else:
                end.cpus, end.cpus_ns, end.earlier = known.cpus, known.cpus_ns, known.earlier
        start, first = self._boundary or end, last is None
        slots, scalars, cpu_steps = self._take_agents(sample, start.t_ns, first)
        labels = {
            record.slot: gained
            for counters in sample.agents
            if counters.causes
            and (record := self._agents[counters.id])
            and (gained := record.caused.take_labels(counters.causes, first))
        }
        cells, added = self._take_histograms(sample)
        self._last, self._boundary = sample, end
        if first:
            self._since_start, self._started_ns = end, end.t_ns
        else:
            tick = Tick(start, end, cells, added, slots, scalars, cpu_steps, labels)
            self._ticks.append(tick)
            self._weight += tick.weight
            self._window.add(tick)
            self._since.add(tick)
            self._take_trend(tick)
            self._remember(tick, sample.policies)
        self._expire(sample.t_ns)
        self._take_exemplars(sample)
        self._take_policies(sample, first)

    def _remember(self, tick: Tick, policies: list[PolicyStatus]) -> None:
        self.history.host = self.host
        owners = {record.slot: record.last.id for record in (*self._gone, *self._agents.values())}
        self.history.add(tick, owners, policies)

    def _differs(self, host: Host | None) -> bool:
        if host is None or self.host is None:
            return False
        now, before = host, self.host
        return (now.mode, now.level, now.cpus) != (before.mode, before.level, before.cpus)

    def _take_agents(
        self, sample: Sample, since_ns: int, first: bool
    ) -> tuple[Ints, Ints, dict[int, dict[int, int]]]:
        """Scalars that each agent gained, by slot."""
        slots: list[int] = []
        before: list[Ints] = []
        annexes: list[int] = []
        named: list[Ints] = []
        cpu_steps: dict[int, dict[int, int]] = {}
        now = scalars_of(sample.agents)
        known = set()
        for counters, row in zip(sample.agents, now, strict=True):
            known.add(counters.id)
            record = self._agents.get(counters.id)
            if record is not None and counters.steps < record.last.steps:
                # The id has another owner, or its counters were zeroed.
                self._retire(record)
                record = None
            if record is None:
                record = _Record(
                    slot=self._take_slot(), last=counters, joined_ns=since_ns, seen_ns=sample.t_ns
                )
                self._agents[counters.id] = record
                # The kernel counts a new agent from 0; schedstat from the process's start.
                record.before = row.copy() if first else np.zeros_like(row)
                record.before[SCHEDSTAT] = row[SCHEDSTAT]
                earlier: dict[str, int] = counters.cpu_steps if first else {}
            else:
                earlier = record.last.cpu_steps
                if record.last.run_ns is None:
                    record.before[SCHEDSTAT] = row[SCHEDSTAT]
            slots.append(record.slot)
            before.append(record.before)
            more, rows = record.names.take(counters.named, SCALARS, first, self._take_slot)
            annexes += more
            named += rows
            more, rows = record.caused.take(counters, SCALARS, first, self._take_slot)
            annexes += more
            named += rows
            cpu_steps[record.slot] = _gained(earlier, counters.cpu_steps)
            if record.last.alive:  # or it ended in this tick
                record.seen_ns = sample.t_ns
            record.before, record.last, record.alive = row, counters, counters.alive
        for agent_id in self._agents.keys() - known:
            self._retire(self._agents[agent_id])
        if not slots:
            return _NO_INTS, np.zeros((0, SCALARS), dtype=np.int64), {}
        gained = np.maximum(now - np.array(before), 0)
        if annexes:
            gained = np.concatenate([gained, named])
        return np.array(slots + annexes, dtype=np.int64), gained, cpu_steps

    def _take_histograms(self, sample: Sample) -> tuple[Ints, Ints]:
        rows: list[tuple[int, Histogram]] = []
        full: set[int] = set()
        for counters in sample.agents:
            record = self._agents[counters.id]
            base = record.slot * BLOCK
            if sample.full:
                full.update(range(base, base + len(MEASURES)))
                full.update((*record.names.rows(), *record.caused.rows()))
            rows += record.names.histograms(counters.named)
            rows += record.caused.histograms(counters.causes)
            for name, packed in counters.histograms.items():
                if name in _MEASURE_ROW:
                    rows.append((base + _MEASURE_ROW[name], packed))
        for cpu in sample.cpus:
            if cpu.softirq_latency:
                if cpu.cpu not in self._cpu_slots:
                    self._cpu_slots[cpu.cpu] = self._take_slot()
                base = self._cpu_slots[cpu.cpu] * BLOCK
                for name, packed in cpu.softirq_latency.items():
                    if name in _SOFTIRQ_ROW:
                        rows.append((base + _SOFTIRQ_ROW[name], packed))
        base = self._idle_slot * BLOCK
        for state, packed in sample.idle_exit.items():
            if state.isdecimal() and int(state) < BLOCK:
                rows.append((base + int(state), packed))
        if sample.full:
            full.update(row for row, _ in rows)
        return self._current.update(rows, full)

    def _take_trend(self, tick: Tick) -> None:
        records = list(self._agents.values())
        if not records:
            return
        row = _MEASURE_ROW["slowpath"]
        mine = np.flatnonzero(tick.cells // BUCKETS % BLOCK == row)
        cells = tick.cells[mine]
        # Slot -> line; -1 for what is no agent's.
        line = np.full(self._window.slots, -1, dtype=np.int64)
        line[[record.slot for record in records]] = np.arange(len(records))
        lines = line[cells // (BLOCK * BUCKETS)]
        known = lines >= 0
        counts = summed(lines[known] * BUCKETS + cells[known] % BUCKETS, tick.added[mine[known]])
        found = figures(counts, len(records))
        oldest = tick.end.t_ns - self.history_ns
        most = max(MAX_POINTS // len(records), _FEWEST_POINTS)
        # Most agents make no step in most ticks: one point serves them all.
        none = TrendPoint(tick.end.t_ns, 0, None, None, None)
        for record, total, values in zip(
            records, found.total.tolist(), found.values.tolist(), strict=True
        ):
            trend = record.trend
            trend.append(TrendPoint(tick.end.t_ns, total, *values) if total else none)
            while trend[0].t_ns < oldest or len(trend) > most:
                trend.popleft()

    def _take_exemplars(self, sample: Sample) -> None:
        for exemplar in sample.exemplars:
            record = self._agents.get(exemplar.agent)
            if record is not None and len(exemplar.stages_ns) == len(STAGES):
                slow = sum(exemplar.stages_ns[i] or 0 for i in _SLOW)
                record.exemplars.append((slow, exemplar))
        for record in self._agents.values():
            if len(record.exemplars) > 4 * EXEMPLARS:
                since = self._since_start.t_ns if self._since_start else sample.t_ns
                oldest = min(sample.t_ns - self.window_ns, since)
                record.exemplars = _worth_keeping(record.exemplars, oldest)
        if sum(len(record.exemplars) for record in self._agents.values()) > _MOST_IN_ALL:
            for record in self._agents.values():
                record.exemplars = sorted(record.exemplars, key=_slow_first)[:EXEMPLARS]

    def _take_policies(self, sample: Sample, first: bool) -> None:
        for policy in sample.policies:
            state = (policy.state in ("on", "drift"), policy.since_ns)
            before = self._policy_states.get(policy.name)
            self._policy_states[policy.name] = state
            changed = state[0] if before is None else state != before
            if not changed or (before is None and policy.since_ns is None):
                continue
            marker = Marker(policy.since_ns or sample.t_ns, policy.name, state[0])
            if marker not in self._markers:
                self._markers.append(marker)
            if not first:
                # The toggle lies within this tick: what follows is wholly after it.
                self.start_since()
                self.history.switched(policy.name, state[0], marker.t_ns, policy.by_trial)

    # ------------------------------------------------------------------ slots and windows

    def _take_slot(self) -> int:
        if not self._free:
            slots = self._window.slots
            self._resize(2 * slots)
            self._free = list(range(slots, 2 * slots))
        return heapq.heappop(self._free)

    def _resize(self, slots: int) -> None:
        for sums in (self._window, self._since):
            sums.resize(slots)

    def _shrink(self) -> None:
        """Give back what a burst of agents took."""
        slots = self._window.slots
        while (
            slots > _SLOTS and sum(slot >= slots // 2 for slot in self._free) == slots - slots // 2
        ):
            slots //= 2
            self._free = [slot for slot in self._free if slot < slots]
        if slots < self._window.slots:
            heapq.heapify(self._free)
            self._resize(slots)

    def _retire(self, record: _Record) -> None:
        """The agent has ended: keep it while its steps lie in the window."""
        del self._agents[record.last.id]
        record.alive = False
        self._gone.append(record)

    def _expire(self, now_ns: int) -> None:
        while len(self._ticks) > 1 and not _inside(self._ticks[0], now_ns, self.window_ns):
            tick = self._ticks.popleft()
            self._window.add(tick, -1)
            self._weight -= tick.weight
        if self._weight > MAX_TICKS:
            self._thin()
        self._reap(now_ns)

    def _thin(self) -> None:
        """Fewer Ticks, where they take too much: neighbours that are short are joined."""
        longest = self.window_ns // 8
        kept: list[Tick] = []
        *ticks, newest = self._ticks
        for tick in ticks:
            if kept and tick.end.t_ns - kept[-1].start.t_ns <= longest:
                kept[-1] = kept[-1].joined(tick)
            else:
                kept.append(tick)
        self._ticks = deque([*kept, newest])
        self._weight = sum(tick.weight for tick in self._ticks)

    def _reap(self, now_ns: int) -> None:
        """Free the slots of ended agents whose steps have left the window."""
        oldest = self._ticks[0].start.t_ns if self._ticks else now_ns
        since = self._since_start.t_ns if self._since_start else now_ns
        lost = {id(r) for r in self._gone if r.seen_ns <= oldest and r.seen_ns <= since}
        spare = len(self._gone) - len(lost) - MAX_GONE
        if spare > 0:
            stay = [r for r in self._gone if id(r) not in lost]
            # The highest slots go first, so that the table can shrink.
            oldest_first = sorted(stay, key=lambda r: (r.seen_ns, -r.slot))
            lost |= {id(r) for r in oldest_first[:spare]}
        if not lost:
            return
        gone = [record for record in self._gone if id(record) in lost]
        slots = {
            slot
            for record in gone
            for slot in (record.slot, *record.names.annexes, *record.caused.annexes)
        }
        self._gone = [record for record in self._gone if id(record) not in lost]
        agents = {record.slot for record in gone}
        for tick in self._ticks:
            tick.forget(slots, agents)
        self._weight = sum(tick.weight for tick in self._ticks)
        for sums in (self._window, self._since):
            sums.forget(slots, agents)
        self._current.forget(slots)
        for slot in slots:
            heapq.heappush(self._free, slot)
        self._shrink()


def _inside(tick: Tick, now_ns: int, window_ns: int) -> bool:
    """Does the tick belong to the window? Half a tick's grace: none is exactly on time."""
    length = tick.end.t_ns - tick.start.t_ns
    return tick.start.t_ns >= now_ns - window_ns - length // 2


def _gained(before: dict[str, int], now: dict[str, int]) -> dict[int, int]:
    """CPU -> steps that were added."""
    out = {}
    for cpu, count in now.items():
        more = count - before.get(cpu, 0)
        if more > 0 and cpu.isdecimal():
            out[int(cpu)] = more
    return out


def _slow_first(pair: tuple[int, Exemplar]) -> int:
    return -pair[0]


def _worth_keeping(
    exemplars: list[tuple[int, Exemplar]], oldest_ns: int
) -> list[tuple[int, Exemplar]]:
    """Without the expired ones, and without those that can never be among the slowest again.

    One that EXEMPLARS younger ones surpass will still be surpassed by them
    when it expires.
    """
    slowest: list[int] = []
    kept: list[tuple[int, Exemplar]] = []
    for slow, exemplar in sorted(exemplars, key=lambda p: -p[1].t_ns):
        if exemplar.t_ns < oldest_ns or len(kept) >= _MOST_EXEMPLARS:
            break
        if len(slowest) < EXEMPLARS:
            heapq.heappush(slowest, slow)
        elif slow > slowest[0]:
            heapq.heapreplace(slowest, slow)
        else:
            continue
        kept.append((slow, exemplar))
    return kept

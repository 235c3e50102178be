"""Samples summed over blocks of time: what a report's figures and their intervals are made from.

Steps within a second depend on each other; what can be drawn anew for an
interval are whole blocks of time. A block is about a second, longer in long
measurements (so that there are never many), and never spans a switch of a
policy unless there is no other way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from agenttop.model.row_layout import BLOCK
from agenttop.model.sample import (
    AgentCounters,
    Budget,
    CpuCounters,
    DetailCounters,
    Exemplar,
    PolicyStatus,
    Sample,
)
from agenttop.model.vocabulary import MEASURES, SOFTIRQS
from agenttop.stats.histogram import BUCKETS
from agenttop.stats.sparse_counts import Cells
from agenttop.store.cause_sums import Caused
from agenttop.store.snapshot_builder import losses, lost
from agenttop.store.store import Store
from agenttop.store.toggles import SETTLE_NS
from agenttop.store.windows import Ints, Label, Tick

#: A block has this length at first, ns; with more blocks than MOST it is doubled.
FIRST_NS: Final = 1_000_000_000
MOST: Final = 120
#: Blocks that policies' switches keep apart; with more, they no longer do.
MOST_APART: Final = 400
_STEP: Final = MEASURES.index("step")
#: Idle states that cpuidle has at most.
STATES: Final = 10
#: Of an idle state: entries, time_ns, above, below.
IDLE_FIELDS: Final = 4
#: Of a budget: grants, refusals, throttles, degraded_ns, held_ns, spent.
BUDGET_FIELDS: Final = ("grants", "refusals", "throttles", "degraded_ns", "held_ns", "spent")

_LARGEST: Final = 1 << 62
#: Of a cause: steps that had it, events, its time in ns.
CAUSE_FIELDS: Final = 3


@dataclass(slots=True)
class Block:
    """What was added in some time. Histograms are of all agents that are not in the background."""

    start_ns: int
    length_ns: int
    #: Policies on in all of it; None when something was switched, or settled.
    on: frozenset[str] | None
    #: Agent -> its scalars (derive.Named.of).
    agents: dict[int, Ints] = field(default_factory=dict)
    #: Agent -> CPU -> steps that resumed there.
    cpu_steps: dict[int, Counter[int]] = field(default_factory=dict)
    #: words.MEASURES; the steps whose stage took no time are in the bucket 0.
    counts: Cells = field(default_factory=Cells)
    #: Waking a CPU out of each idle state, all agents.
    exits: Cells = field(default_factory=Cells)
    #: words.SOFTIRQS: raise to entry, all CPUs.
    softirq_latency: Cells = field(default_factory=Cells)
    #: CPU -> shape (idle states, IDLE_FIELDS).
    idle: dict[int, Ints] = field(default_factory=dict)
    energy_uj: Counter[str] = field(default_factory=Counter)
    #: Agent -> shape (BUDGET_FIELDS,), tokens in thousandths.
    budgets: dict[int, Ints] = field(default_factory=dict)
    #: Causes (words.CAUSES) observed in all of it, and agent -> cause -> CAUSE_FIELDS.
    observed: frozenset[str] = frozenset()
    causes: dict[int, dict[str, Ints]] = field(default_factory=dict)
    #: In the background -> label of a cause -> its sums (CAUSE_FIELDS, then those of
    #: words.DETAILS), of all agents.
    labels: dict[bool, dict[Label, Ints]] = field(default_factory=dict)
    #: What woke the slowest steps that were kept, by kind.
    wakers: Counter[str] = field(default_factory=Counter)
    ksoftirqd_ns: int = 0
    lost: int = 0
    #: Agents that found no slot at the same time, at most.
    slots_full: int = 0
    self_ns: int = 0
    #: Frequencies seen, kHz.
    khz: Counter[int] = field(default_factory=Counter)

    @property
    def states_ns(self) -> dict[int, list[int]]:
        """CPU -> time in each idle state (power.Part)."""
        return {cpu: rows[:, 1].tolist() for cpu, rows in self.idle.items()}

    def add(self, other: Block) -> None:
        """Take in the block that follows."""
        self.length_ns += other.length_ns
        if self.on != other.on:
            self.on = None
        for mine, theirs in ((self.agents, other.agents), (self.budgets, other.budgets)):
            for key, row in theirs.items():
                mine[key] = mine[key] + row if key in mine else row
        self.observed &= other.observed
        for agent, causes in other.causes.items():
            own = self.causes.setdefault(agent, {})
            for name, row in causes.items():
                own[name] = own[name] + row if name in own else row
        for background, labels in other.labels.items():
            _add_labels(self.labels.setdefault(background, {}), labels)
        for cpu, states in other.idle.items():
            same = cpu in self.idle and self.idle[cpu].shape == states.shape
            self.idle[cpu] = self.idle[cpu] + states if same else states
        for agent, steps in other.cpu_steps.items():
            self.cpu_steps.setdefault(agent, Counter()).update(steps)
        for cells, more in (
            (self.counts, other.counts),
            (self.exits, other.exits),
            (self.softirq_latency, other.softirq_latency),
        ):
            cells.add(more.keys, more.counts)
        self.energy_uj.update(other.energy_uj)
        self.wakers.update(other.wakers)
        self.khz.update(other.khz)
        self.ksoftirqd_ns += other.ksoftirqd_ns
        self.lost += other.lost
        self.slots_full = max(self.slots_full, other.slots_full)
        self.self_ns += other.self_ns


@dataclass(frozen=True, slots=True)
class Known:
    """An agent as it was last seen."""

    name: str
    pid: int
    background: bool


class Blocks(Store):
    """A Store that keeps blocks, from ``begin`` on."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.blocks: list[Block] = []
        #: Agent -> who it is. Ids of another run of the engine are others.
        self.known: dict[int, Known] = {}
        self.block_ns = FIRST_NS
        #: The kernel tells of idle states chosen too deep and too shallow (since 5.0).
        self.above_known = False
        self.last: Sample | None = None
        self._open = False
        self._run = 0
        self._taken: Tick | None = None
        self._states: frozenset[str] = frozenset()
        self._switched_ns = 0
        self._budgets: dict[int, Ints] = {}
        self._had_budget: set[int] = set()
        self._observed: frozenset[str] = frozenset()
        self._causes: dict[int, dict[str, Ints]] = {}
        #: Labels of causes, and what they are.
        self.labels: dict[Label, DetailCounters] = {}
        self._limit = MOST
        # Blocks are made of the newest tick: nobody asks for a window.
        super().__init__(window_ns=FIRST_NS, history_s=1, clock=clock)

    def begin(self) -> None:
        """Blocks are kept of what comes from now on."""
        self._open = True

    def feed(self, sample: Sample) -> None:
        """Take in the next Sample."""
        super().feed(sample)
        self.last = sample
        if not sample.cpus and self._boundary is not None:
            self.last = msgspec.structs.replace(sample, cpus=self._boundary.cpus)
        tick = self._ticks[-1] if self._ticks else None
        on = frozenset(p.name for p in sample.policies if p.state in ("on", "drift"))
        if tick is None:
            self._run += 1
            self._states, self._budgets, self._had_budget = on, {}, set()
            self._budget_gains(sample.policies)
            self._causes = {}
            self._cause_gains(sample)
            self._observed = _observed(sample)
            return
        if tick is self._taken:
            return
        self._taken = tick
        if on != self._states:
            self._switched_ns = tick.end.t_ns
        settled = on == self._states and tick.start.t_ns >= self._switched_ns + SETTLE_NS
        if not self._switched_ns:
            settled = on == self._states
        self._states = on
        gains = self._budget_gains(sample.policies)
        causes = self._cause_gains(sample)
        observed = _observed(sample)
        if self._open:
            block = self._block(tick, sample.exemplars, gains, on if settled else None)
            block.causes, block.observed = causes, observed & self._observed
            self._keep(block)
        self._observed = observed

    # ------------------------------------------------------------------ one tick

    def _key(self, agent_id: int) -> int:
        return self._run << 32 | agent_id

    def _block(
        self,
        tick: Tick,
        exemplars: Sequence[Exemplar],
        budgets: dict[int, Ints],
        on: frozenset[str] | None,
    ) -> Block:
        records = {r.slot: r for r in (*self._gone, *self._agents.values())}
        owners = {slot: record.last for slot, record in records.items()}
        block = Block(tick.start.t_ns, tick.end.t_ns - tick.start.t_ns, on)
        for slot, row in zip(tick.slots.tolist(), tick.scalars, strict=True):
            if (agent := owners.get(slot)) is not None:
                key = self._know(agent)
                block.agents[key] = row.copy()
                block.cpu_steps[key] = Counter(tick.cpu_steps.get(slot, {}))
        # A file may tell of a budget whose agent it never had.
        block.budgets = {key: row for key, row in budgets.items() if key in self.known}
        for slot, labels in tick.labels.items():
            if (record := records.get(slot)) is not None:
                mine = block.labels.setdefault(record.last.background, {})
                _add_labels(mine, {known: _clipped(sums) for known, sums in labels.items()})
                self._name_labels(record.caused, labels)
        self._histograms(tick, block, owners)
        before = {cpu.cpu: cpu for cpu in tick.start.cpus}
        for cpu in tick.end.cpus if tick.end.cpus_ns > tick.start.cpus_ns else ():
            if (old := before.get(cpu.cpu)) is not None:
                self._cpu(block, old, cpu)
        for name, value in tick.end.energy_uj.items():
            gained = value - tick.start.energy_uj.get(name, value)
            block.energy_uj[name] += max(gained, 0)
        for exemplar in exemplars:
            block.wakers[waker_kind(exemplar)] += 1
        old_trust, trust = tick.start.trust, tick.end.trust
        block.lost = lost(*losses(old_trust, trust))
        block.slots_full = trust.slots_full
        block.self_ns = max(
            trust.self_ns - old_trust.self_ns + tick.end.view_ns - tick.start.view_ns, 0
        )
        return block

    def _name_labels(self, caused: Caused, labels: Iterable[Label]) -> None:
        for cause, words in labels:
            if (one := caused.labels.get(cause, {}).get(words)) is not None:
                self.labels[cause, words] = one

    def _know(self, agent: AgentCounters) -> int:
        key = self._key(agent.id)
        self.known[key] = Known(agent.name, agent.pid, agent.background)
        return key

    def _histograms(self, tick: Tick, block: Block, owners: Mapping[int, AgentCounters]) -> None:
        rows, buckets = np.divmod(tick.cells, BUCKETS)
        slots, inner = np.divmod(rows, BLOCK)
        foreground = [slot for slot, agent in owners.items() if not agent.background]
        found = []
        for chosen, height in (
            (foreground, len(MEASURES)),
            ([self._idle_slot], STATES),
            (list(self._cpu_slots.values()), len(SOFTIRQS)),
        ):
            mine = np.isin(slots, np.array(chosen, dtype=np.int64)) & (inner < height)
            table = np.zeros((height, BUCKETS), dtype=np.int64)
            np.add.at(table, (inner[mine], buckets[mine]), tick.added[mine])
            found.append(table)
        # The kernel leaves most stages that took no time out of their histograms.
        totals = found[0].sum(axis=1)
        found[0][:, 0] += np.maximum(totals[_STEP] - totals, 0)
        block.counts, block.exits, block.softirq_latency = map(Cells.of, found)

    def _cpu(self, block: Block, old: CpuCounters, now: CpuCounters) -> None:
        if now.idle and len(now.idle) == len(old.idle):
            rows = np.array(
                [
                    [
                        _gain(a.entries, b.entries),
                        _gain(a.time_ns, b.time_ns),
                        _gain(a.above or 0, b.above or 0),
                        _gain(a.below or 0, b.below or 0),
                    ]
                    for a, b in zip(old.idle, now.idle, strict=True)
                ],
                dtype=np.int64,
            )
            block.idle[now.cpu] = rows
            self.above_known = self.above_known or any(s.above is not None for s in now.idle)
        if now.ksoftirqd_ns is not None and old.ksoftirqd_ns is not None:
            block.ksoftirqd_ns += max(now.ksoftirqd_ns - old.ksoftirqd_ns, 0)
        if now.freq_khz is not None:
            block.khz[now.freq_khz // 50_000 * 50_000] += 1

    def _budget_gains(self, policies: Sequence[PolicyStatus]) -> dict[int, Ints]:
        """What each agent's budget did since the Sample before; its first begins at 0."""
        now = {
            self._key(int(agent)): _budget(budget)
            for policy in policies
            for agent, budget in policy.budgets.items()
            if agent.isdecimal()
        }
        gains = {}
        for agent, row in now.items():
            old = self._budgets.get(agent)
            if old is not None:
                gains[agent] = row if (row < old).any() else row - old
            elif agent not in self._had_budget:
                gains[agent] = row
            # else the window was off: what its counters did meanwhile belongs to no block.
        self._budgets = now
        self._had_budget |= now.keys()
        return gains

    def _cause_gains(self, sample: Sample) -> dict[int, dict[str, Ints]]:
        """What each agent's causes gained since the Sample before."""
        now = {
            self._key(agent.id): {
                name: np.array([cause.steps, cause.events, cause.sum_ns], dtype=np.int64)
                for name, cause in agent.causes.items()
            }
            for agent in sample.agents
            if agent.causes
        }
        gains: dict[int, dict[str, Ints]] = {}
        for agent, causes in now.items():
            old = self._causes.get(agent, {})
            gains[agent] = {
                name: np.maximum(row - old[name], 0) if name in old else row
                for name, row in causes.items()
            }
        self._causes = now
        return gains

    # ------------------------------------------------------------------ keeping few

    def _keep(self, block: Block) -> None:
        last = self.blocks[-1] if self.blocks else None
        if last is not None and last.length_ns < 0.9 * self.block_ns and last.on == block.on:
            last.add(block)
        else:
            self.blocks.append(block)
        if len(self.blocks) > self._limit:
            self._join(apart=self._limit <= MOST_APART)
            # Where switches keep most of them apart, it is tried again when there are many more.
            self._limit = max(MOST, len(self.blocks) * 3 // 2)

    def _join(self, apart: bool) -> None:
        """Neighbours become one, up to twice as long; ``apart``: with the same policies on."""
        self.block_ns *= 2
        out: list[Block] = []
        for block in self.blocks:
            last = out[-1] if out else None
            if (
                last is not None
                and last.length_ns + block.length_ns <= 1.1 * self.block_ns
                and (last.on == block.on or not apart)
            ):
                last.add(block)
            else:
                out.append(block)
        self.blocks = out


def _gain(before: int, now: int) -> int:
    """Of a counter; one that went back gained nothing. A file may say anything."""
    return min(max(now - before, 0), _LARGEST)


def _observed(sample: Sample) -> frozenset[str]:
    return frozenset(cause.name for cause in sample.causes if cause.state == "on")


def _clipped(sums: Sequence[int]) -> Ints:
    return np.array([min(value, _LARGEST) for value in sums], dtype=np.int64)


def _add_labels(mine: dict[Label, Ints], more: Mapping[Label, Ints]) -> None:
    for label, sums in more.items():
        mine[label] = mine[label] + sums if label in mine else sums


def _budget(budget: Budget) -> Ints:
    return np.array(
        [
            budget.grants,
            budget.refusals,
            budget.throttles,
            budget.degraded_ns,
            budget.held_ns,
            min(max(int(budget.spent * 1000), 0), _LARGEST),
        ],
        dtype=np.int64,
    )


#: Kinds of wakers of slow steps, in words for people.
WAKERS: Final = ("task", "kernel worker", "ksoftirqd", "softirq", "interrupt", "timer", "unknown")


def waker_kind(exemplar: Exemplar) -> str:
    """From Exemplar.waker's text (sampler.py)."""
    waker = exemplar.waker
    if waker.endswith("]"):
        if waker.startswith(("kworker/", "iou-wrk-", "rcu_", "irq/")):
            return "kernel worker"
        return "ksoftirqd" if waker.startswith("ksoftirqd/") else "task"
    if waker.startswith("softirq"):
        return "timer" if waker.endswith((" TIMER", " HRTIMER")) else "softirq"
    if waker == "local_timer":
        return "timer"
    return "interrupt" if waker else "unknown"


__all__ = ["BUDGET_FIELDS", "WAKERS", "Block", "Blocks", "Known", "waker_kind"]

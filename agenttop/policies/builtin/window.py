"""window: idle guard and performance floor, but only while an agent is about to run.

At each wake-up of an agent the kernel side opens a window: "this thread will
be needed again within window_us" (collectors/bpf/window.bpf.c). It is paid
from the agent's budget, moved on by the next wake-up, and over by itself.
While one is open on a CPU, the guardian keeps that CPU out of slow idle
states and holds the floor; with the last one both are gone (window_watch.py).
So a static guard's price is paid only where and while somebody needs it, and
an agent that asks for it all the time gets it some of the time.

Which idle states are closed is weighed as in guard: what the driver promises
and what was measured. The default limit is for bare metal's C2 and deeper. On
a virtual machine HLT takes some 8 us, so 50 us closes nothing; set
``limit_us`` to 5 there, as guard does.

Knobs: pm_qos_resume_latency_us of every CPU, as an agent may be woken
anywhere; for the floor uclamp.min of the agents' threads, or scaling_min_freq
where the kernel has no clamps. Each is in the journal once, for as long as
the policy is on.
"""

from __future__ import annotations

import fnmatch
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec

from agenttop.linux.process import printable
from agenttop.model.sample import Budget, Event
from agenttop.policies.base import Agent, Key, Settings, Targets
from agenttop.policies.knobs.base import format_cpus
from agenttop.policies.parts.held_power import Lost, LostPower
from agenttop.policies.parts.idle_limits import Closed, IdleLimits, closes, why_not
from agenttop.policies.parts.performance_floor import Floor
from agenttop.stats.token_bucket import Rates, Terms

if TYPE_CHECKING:
    from agenttop.collectors.bpf.read.windows import Windows

_WindowUs = Annotated[int, msgspec.Meta(ge=50, le=100_000)]
_LimitUs = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]

#: Budgets that a user's agents may have together; with more agents each gets a part. Agents that
#: root chose in a way that nobody can fake have whole ones.
BUDGETS_EACH: Final = 16
#: An agent's throttling is told of at most this often, ns.
TELL_NS: Final = 10_000_000_000
#: Why there is no window before the kernel side is loaded.
NO_CHAINS: Final = "needs step chains (BPF), which are not loaded yet"
#: What is said of each change of it.
DURING: Final = " while a window is open"


class Override(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is different for some agents; the first one that matches counts."""

    #: The agents' name, with * and ? as in file names.
    match: _Name
    window_us: _WindowUs | None = None
    limit_us: _LimitUs | None = None
    min_util_ratio: _Ratio | None = None
    floor: bool | None = None
    budget: Terms | None = None


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What can be set."""

    #: How long a window stays open after a wake-up, us.
    window_us: _WindowUs = 2_000
    #: Longest exit of an idle state that stays open meanwhile, us. A CPU has one limit: the
    #: strictest of its agents'.
    limit_us: _LimitUs = 50
    #: Utilization that the CPU is held ready for meanwhile, as a share of its capacity, 0..1.
    min_util_ratio: _Ratio = 0.5
    #: Whether to hold the floor at all.
    floor: bool = True
    #: Who gets windows: names with * and ?; empty: every agent but the background ones.
    agents: list[_Name] = []
    #: Each agent's token bucket.
    budget: Terms = Terms()
    #: Different settings for some agents.
    per_agent: list[Override] = []

    def of(self, name: str) -> AgentTerms:
        """What holds for the agent of this name."""
        given: dict[str, Any] = {key: getattr(self, key) for key in AgentTerms._fields}
        for one in self.per_agent:
            if fnmatch.fnmatchcase(name, one.match):
                own = {key: getattr(one, key) for key in AgentTerms._fields}
                given |= {key: value for key, value in own.items() if value is not None}
                break
        return AgentTerms(**given)

    def selects(self, agent: Agent) -> bool:
        """Whether this agent gets windows."""
        if not self.agents:
            return not agent.background
        return any(fnmatch.fnmatchcase(agent.name, pattern) for pattern in self.agents)


class AgentTerms(NamedTuple):
    """The settings of one agent."""

    window_us: int
    limit_us: int
    min_util_ratio: float
    floor: bool
    budget: Terms


class _Chosen(NamedTuple):
    """An agent that is to get windows."""

    agent: Agent
    terms: AgentTerms


class _Opened(NamedTuple):
    """An agent that gets windows, and at what price."""

    agent: Agent
    terms: AgentTerms
    rates: Rates


class Window:
    """The policy. Manager: ``attach`` first, ``start`` after each ``wanted``, ``stop``."""

    name = "window"
    key = "w"
    title = "latency window: guard and floor while an agent is about to run"

    def __init__(self, params: Params | None = None) -> None:
        self.params = params or Params()
        self._kernel: Windows | None = None
        self._why = NO_CHAINS
        limits = [self.params.limit_us, *(o.limit_us or 10**6 for o in self.params.per_agent)]
        self._limits = IdleLimits(min(limits))
        self._floor = Floor()
        budgets = [self.params.budget, *(o.budget for o in self.params.per_agent if o.budget)]
        #: Only where a budget is priced in joules.
        self._power = LostPower() if any(b.price == "joules" for b in budgets) else None
        #: Slots whose wake-ups open windows now, and with what.
        self._open: dict[int, _Opened] = {}
        self._told: dict[int, int] = {}
        #: What the guardian says (window_watch.Watch.figures).
        self.figures: Mapping[str, Any] = {}
        self.reset()

    def attach(self, kernel: Windows | None, reason: str = "") -> None:
        """The kernel side, or why there is none."""
        self._kernel = kernel
        self._why = f"needs step chains: {reason}" if reason else NO_CHAINS

    @property
    def apart(self) -> Mapping[str, str]:
        """Policies that it cannot be on beside, and what both would set.

        By name: which of the two saw the other's values depended on their order.
        """
        floor = self.params.floor or any(one.floor for one in self.params.per_agent)
        return {"guard": "CPUs' idle limits"} | ({"floor": "performance floors"} if floor else {})

    @property
    def kernel(self) -> Windows | None:
        """What the guardian is to watch."""
        return self._kernel

    def reset(self) -> None:
        self._chosen: dict[int, _Chosen] = {}
        #: User -> the part of a budget that each of its agents gets.
        self._parts: dict[int, float] = {}
        self._closed: dict[int, list[Closed]] = {}
        self._kept: dict[int, str] = {}
        self._online: frozenset[int] = frozenset()
        self._cells: dict[Key, tuple[int, ...]] = {}
        self._lost = Lost(None, "not asked for")

    def probe(self) -> str | None:
        no_guard = why_not()
        if no_guard == "needs root" or (no_guard and self._floor.why_not()):
            return no_guard
        if self._power is not None:
            self._power.look(time.monotonic_ns())
            if self.params.budget.price == "joules" and (why := self._power.why_not()):
                return f"a budget in joules needs the power that is lost: {why}"
        return None if self._kernel is not None else self._why

    # ----------------------------------------------------------------- what should hold

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        """The values that hold while a window is open."""
        self._online = frozenset(cpu.cpu for cpu in targets.cpus if cpu.online)
        self._chosen = {}
        for agent in targets.agents:
            if agent.slot and self.params.selects(agent):
                terms = self.params.of(agent.name)
                self._chosen[agent.slot] = _Chosen(agent, terms)
        users = Counter(c.agent.user for c in self._chosen.values() if not c.agent.chosen)
        self._parts = {user: min(1.0, BUDGETS_EACH / n) for user, n in users.items()}
        self._cells = {}
        settings = self._guard(targets, held) if self._chosen else {}
        if self._power is not None:
            self._power.look(time.monotonic_ns())
            self._lost = self._power.lost(self._closed)
        return settings | self._floors(held)

    def _guard(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        settings: Settings = {}
        self._kept = {}
        self._limits.limit_us = min(c.terms.limit_us for c in self._chosen.values())
        self._limits.learn(targets, self._closed)
        self._closed = {
            cpu: closed for cpu in sorted(self._online) if (closed := self._limits.over(cpu))
        }
        for cpu, closed in self._closed.items():
            limit = self._limits.limit(closed)
            key, value = ("pm_qos", f"cpu{cpu}"), str(limit) if limit else "n/a"
            stricter = None if key in held else self._limits.stricter(cpu, value)
            if stricter is None:
                settings[key] = value
                self._cells[key] = (cpu,)
            else:
                self._kept[cpu] = stricter
        return settings

    def _floors(self, held: Mapping[Key, str]) -> Settings:
        settings: Settings = {}
        if self._kernel is None:
            return settings
        with_floor = [c for c in self._chosen.values() if c.terms.floor and c.terms.min_util_ratio]
        for chosen in with_floor:
            cell = self._kernel.cell_of(chosen.agent.slot)
            for key, value in self._floor.clamps(
                chosen.agent, chosen.terms.min_util_ratio, held
            ).items():
                settings[key] = value
                self._cells[key] = (cell,)
        if with_floor:
            highest = max(c.terms.min_util_ratio for c in with_floor)
            for key, value, cpus in self._floor.frequencies(highest, held):
                settings[key] = value
                self._cells[key] = cpus
        return settings

    def cells(self, key: Key) -> tuple[int, ...]:
        """The kernel's cells that a knob of ``wanted`` follows."""
        return self._cells.get(key, ())

    # ----------------------------------------------------------------- the kernel side

    def start(self) -> None:
        """Have the wake-ups of the agents that ``wanted`` chose open windows, and no others."""
        kernel = self._kernel
        if kernel is None:
            return
        for slot, opened in list(self._open.items()):
            chosen = self._chosen.get(slot)
            if chosen is None or chosen.agent.id != opened.agent.id or not self._rates(chosen):
                kernel.shut(slot)
                del self._open[slot]
        for slot, chosen in self._chosen.items():
            rates = self._rates(chosen)
            if rates is None:
                continue
            before = self._open.get(slot)
            if before is None or (before.terms, before.rates) != (chosen.terms, rates):
                clamped = chosen.terms.floor and self._floor.by_thread
                kernel.open(slot, chosen.terms.window_us * 1000, rates, clamped)
            self._open[slot] = _Opened(*chosen, rates)

    def _rates(self, chosen: _Chosen) -> Rates | None:
        """An agent's budget as the kernel counts; None while its price is not known."""
        terms = chosen.terms.budget
        if terms.price == "joules" and self._lost.watts is None:
            return None
        return Rates.of(terms, self._lost.watts, self._part(chosen.agent))

    def _part(self, agent: Agent) -> float:
        """Of a whole budget, 0..1: a user's agents have BUDGETS_EACH of them together."""
        return 1.0 if agent.chosen else self._parts.get(agent.user, 1.0)

    def stop(self) -> None:
        """No more windows; the open ones run out."""
        for slot in self._open:
            if self._kernel is not None:
                self._kernel.shut(slot)
        self._open.clear()
        self._told.clear()
        self.figures = {}

    def news(self, now_ns: int) -> list[Event]:
        """Agents whose budget was emptied since the last call."""
        events = []
        for slot, chosen in self._open.items():
            assert self._kernel is not None
            bucket = self._kernel.read(slot, chosen.rates).bucket
            told = self._told.get(chosen.agent.id, 0)
            if bucket.refuses(now_ns) and now_ns - told > TELL_NS:
                self._told[chosen.agent.id] = now_ns
                name = printable(chosen.agent.name, 32)
                mark = chosen.terms.budget.recovery
                text = (
                    f"window: {name} is throttled, its budget is empty until it is {mark:.0%} full"
                )
                events.append(Event(now_ns, "policy", text))
        return events

    def foreign(self, key: Key) -> bool:
        """Whether the guardian found a knob set by somebody else, maybe to the very same value."""
        return list(key) in self.figures.get("foreign", ())

    # ----------------------------------------------------------------- on screen

    def budgets(self, now_ns: int) -> dict[str, Budget]:
        """Agent id (as text) -> its budget and what came of it."""
        budgets = {}
        for slot, chosen in self._open.items():
            assert self._kernel is not None
            bucket, held_ns = self._kernel.read(slot, chosen.rates)
            terms = chosen.terms.budget
            delays = self.figures.get("slots", {}).get(str(slot), (0, None, None, None))
            budgets[str(chosen.agent.id)] = Budget(
                tokens=bucket.tokens(now_ns),
                capacity=terms.capacity * self._part(chosen.agent),
                grants=bucket.grants,
                refusals=bucket.refusals,
                throttled=bucket.refuses(now_ns),
                throttles=bucket.throttles,
                degraded_ns=bucket.degraded(now_ns),
                held_ns=held_ns,
                spent=bucket.spent(),
                edges=delays[0],
                edge_p50_ns=delays[1],
                edge_p99_ns=delays[2],
                edge_max_ns=delays[3],
            )
        return budgets

    def armed(self, now_ns: int) -> list[int]:
        """CPUs that a window holds now."""
        return self._kernel.held_cpus(now_ns) if self._kernel is not None and self._open else []

    def _prices(self) -> list[str]:
        """What a price in joules comes to, or why there is none; budgets that are too small."""
        parts = []
        watts, how = self._lost
        in_joules = [c for c in self._chosen.values() if c.terms.budget.price == "joules"]
        if in_joules and watts is None:
            names = ", ".join(printable(c.agent.name, 32) for c in in_joules[:4])
            parts.append(f"no window for {names}: the power that is lost is N/A ({how})")
        elif in_joules:
            parts.append(f"{watts:.3g} tokens (uJ) per us: {watts:.3g}W lost, {how}")
        for chosen in self._chosen.values():
            rates, terms = self._rates(chosen), chosen.terms
            price_ns = rates.price_of(terms.window_us * 1000) if rates else 0
            if rates and price_ns > rates.cap_ns:
                parts.append(
                    f"a whole window of {printable(chosen.agent.name, 32)} costs"
                    f" {price_ns / rates.token_ns:.0f} tokens, its budget holds only"
                    f" {terms.budget.capacity * self._part(chosen.agent):g}"
                )
        return parts

    def _spent(self, now_ns: int) -> list[str]:
        """What is left of the agents' tokens, and who has none."""
        budgets = self.budgets(now_ns).values()
        if not budgets:
            return []
        lowest = min(budget.tokens / budget.capacity for budget in budgets)
        parts = [f"{'at least ' if len(budgets) > 1 else ''}{lowest:.0%} tokens"]
        if throttled := sum(budget.throttled for budget in budgets):
            parts.append(f"{throttled} throttled")
        if cpus := self.armed(now_ns):
            parts.append(f"{len(cpus)} armed")
        return parts

    def agents(self) -> dict[int, str]:
        now = time.monotonic_ns()
        words = {}
        for slot, chosen in self._open.items():
            assert self._kernel is not None
            bucket = self._kernel.read(slot, chosen.rates).bucket
            share = bucket.level_ns(now) / chosen.rates.cap_ns
            words[chosen.agent.id] = "thr" if bucket.refuses(now) else f"{share:.0%}"
        return words

    def detail(self) -> str:
        parts = closes(self._closed)
        if not self._chosen:
            parts.append("no agent to have one yet")
        elif not parts and not why_not():
            parts.append(
                f"no idle state of cpu{format_cpus(self._online)} takes longer than that"
                " (window.limit_us)"
            )
        if self._kept:
            kept = ", ".join(f"cpu{cpu}={value}" for cpu, value in self._kept.items())
            parts.append(f"already as strict: {kept}")
        if self._chosen and self.params.floor:
            parts.append(self._floor.detail())
        parts += self._prices()
        count, _, p99_ns, longest_ns = self.figures.get("delays", (0, 0, 0, 0))
        if count:
            parts.append(
                f"in force {p99_ns / 1000:.0f}us p99 after the wake-up"
                f" (max {longest_ns / 1000:.0f}us of {count})"
            )
        parts += self._spent(time.monotonic_ns())
        return f"{self.params.window_us / 1000:g}ms <={self._limits.limit_us}us: {'; '.join(parts)}"

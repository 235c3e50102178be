"""What each tick added, per agent, and from that: before and after the toggles of policies.

The ticks of the last minutes are kept sparse. When a policy is switched, those
before it (back to the toggle before, at most BEFORE of them) become one side,
those that follow (up to the next toggle of any policy, at most AFTER) the
other; the time in which the change settles belongs to neither. What a trial
switches is the trial's to tell: here it only ends what came before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from agenttop.model.row_layout import BLOCK
from agenttop.model.sample import Cost, Effect, Host, PolicyStatus
from agenttop.model.snapshot import Snapshot
from agenttop.model.vocabulary import MEASURES
from agenttop.stats.before_after import PERCENTILES, Counts, change
from agenttop.stats.histogram import BUCKETS
from agenttop.store.power import power
from agenttop.store.windows import Boundary, Ints, Tick

#: What is compared.
COMPARED: Final = ("slowpath", "step")
#: Ticks taken at most before and after a toggle (and so kept: some 50 kB each with 20 agents).
BEFORE: Final = 60
AFTER: Final = 90
#: Not looked at after a toggle, ns: threads move, CPUs leave their idle state.
SETTLE_NS: Final = 1_000_000_000
#: Shorter ticks are taken together: a block must outlast what its steps have in common, ns.
BLOCK_NS: Final = 900_000_000
#: Toggles of one press (a bundle), ns.
TOGETHER_NS: Final = 500_000_000

_ROWS: Final = np.array([MEASURES.index(name) for name in COMPARED])
_STEP_ROW: Final = COMPARED.index("step")
_WIDTH: Final = len(COMPARED) * BUCKETS


@dataclass(slots=True, frozen=True)
class Moment:
    """What one tick added; of histograms only those that are compared."""

    start_ns: int
    end_ns: int
    #: agent id * _WIDTH + compared measure * BUCKETS + bucket, and what was added there.
    keys: Ints
    added: Ints
    #: CPU -> time in deeper idle states, ns.
    idle_ns: Mapping[int, int]
    #: Both ends' energy counters (Sample.energy_uj), and the idle states' times by CPU.
    energy_uj: Mapping[str, int]
    states_ns: Mapping[int, Sequence[int]]
    #: Agent id -> tokens that its windows cost.
    tokens: Mapping[int, float] = field(default_factory=dict)

    @property
    def length_ns(self) -> int:
        return self.end_ns - self.start_ns


def moment(tick: Tick, agents: Mapping[int, int], tokens: Mapping[int, float]) -> Moment:
    """From a Tick; ``agents`` is slot -> agent id, ``tokens`` what each agent's windows cost."""
    rows, buckets = np.divmod(tick.cells, BUCKETS)
    slots, measures = np.divmod(rows, BLOCK)
    owner = np.full(int(slots.max()) + 1 if len(slots) else 1, -1, dtype=np.int64)
    for slot, agent in agents.items():
        if slot < len(owner):
            owner[slot] = agent
    place = np.full(BLOCK, -1, dtype=np.int64)
    place[_ROWS] = np.arange(len(COMPARED))
    ids, where = owner[slots], place[measures]
    mine = (ids >= 0) & (where >= 0)
    keys = ids[mine] * _WIDTH + where[mine] * BUCKETS + buckets[mine]
    states = _idle(tick.start, tick.end)
    return Moment(
        start_ns=tick.start.t_ns,
        end_ns=tick.end.t_ns,
        keys=keys,
        added=tick.added[mine],
        idle_ns={cpu: sum(times[1:]) for cpu, times in states.items() if len(times) > 1},
        energy_uj=_gained(tick.start.energy_uj, tick.end.energy_uj),
        states_ns=states,
        tokens=tokens,
    )


def _idle(start: Boundary, end: Boundary) -> dict[int, list[int]]:
    if start.cpus_ns == end.cpus_ns:
        return {}
    before = {cpu.cpu: cpu.idle for cpu in start.cpus}
    return {
        cpu.cpu: [
            max(b.time_ns - a.time_ns, 0) for a, b in zip(before[cpu.cpu], cpu.idle, strict=True)
        ]
        for cpu in end.cpus
        if cpu.idle and len(before.get(cpu.cpu, ())) == len(cpu.idle)
    }


def _gained(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """Of each energy counter; without those that began anew."""
    return {
        name: value - before[name]
        for name, value in now.items()
        if name in before and value >= before[name]
    }


def counts(moments: Sequence[Moment], agent: int) -> dict[str, Counts]:
    """Measure of COMPARED -> what each moment added to it, shape (moments, BUCKETS)."""
    out = np.zeros((len(moments), len(COMPARED), BUCKETS), dtype=np.int64)
    for at, each in enumerate(moments):
        mine = each.keys // _WIDTH == agent
        out[at].reshape(-1)[each.keys[mine] % _WIDTH] = each.added[mine]
    # Steps without any slowpath are left out of its histogram in the kernel; the step's own
    # has every step.
    totals = out.sum(axis=2)
    lacking = np.maximum(totals[:, [_STEP_ROW]] - totals, 0)
    out[:, :, 0] += lacking
    return {name: out[:, at] for at, name in enumerate(COMPARED)}


def blocks(found: Counts, moments: Sequence[Moment]) -> Counts:
    """Neighbours taken together until a block is long enough."""
    starts, length = [], BLOCK_NS
    for at, each in enumerate(moments):
        if length >= BLOCK_NS:
            starts.append(at)
            length = 0
        length += each.length_ns
    if not starts:
        return found
    if length < BLOCK_NS and len(starts) > 1:
        starts.pop()
    return np.add.reduceat(found, starts, axis=0)


@dataclass(slots=True)
class Toggle:
    """A switch of a policy, and the ticks on both sides of it."""

    policy: str
    on: bool
    t_ns: int
    before: list[Moment]
    after: list[Moment] = field(default_factory=list)
    open: bool = True


class History:
    """Fed with every tick, told of every toggle; asked for effects."""

    def __init__(self) -> None:
        self.moments: deque[Moment] = deque(maxlen=BEFORE + 2)
        self.host: Host | None = None
        self.toggles: dict[str, Toggle] = {}
        self._last_ns: int | None = None
        #: The last toggle of a trial.
        self._tried_ns = 0
        #: Agent id -> tokens that its windows have cost, as of the last tick.
        self._spent: dict[int, float] = {}
        #: (policy, agent) -> ticks after the toggle that the effect was made from, and it.
        self._made: dict[tuple[str, int], tuple[Toggle, int, Effect]] = {}

    def add(
        self, tick: Tick, agents: Mapping[int, int], policies: Iterable[PolicyStatus] = ()
    ) -> Moment:
        """Another tick; ``agents`` is slot -> agent id, ``policies`` as of its end."""
        made = moment(tick, agents, self._tokens(policies))
        self.moments.append(made)
        for toggle in self.toggles.values():
            if (
                toggle.open
                and made.start_ns >= toggle.t_ns + SETTLE_NS
                and len(toggle.after) < AFTER
            ):
                toggle.after.append(made)
        return made

    def _tokens(self, policies: Iterable[PolicyStatus]) -> dict[int, float]:
        """What each agent's windows cost since the tick before; a new bucket begins at 0."""
        before, self._spent = self._spent, {}
        for policy in policies:
            for agent, budget in policy.budgets.items():
                if agent.isdecimal():
                    self._spent[int(agent)] = budget.spent
        return {
            agent: spent - before[agent] if spent >= before.get(agent, 0.0) else spent
            for agent, spent in self._spent.items()
            if agent in before
        }

    def switched(self, policy: str, on: bool, t_ns: int, trial: bool = False) -> None:
        """A policy was switched at that moment (CLOCK_MONOTONIC), within the newest tick."""
        if trial:
            for toggle in self.toggles.values():
                toggle.open = False
            self._tried_ns = t_ns
            return
        last = self._last_ns
        together = last is not None and abs(t_ns - last) <= TOGETHER_NS
        for toggle in self.toggles.values():
            if not (together and abs(toggle.t_ns - t_ns) <= TOGETHER_NS):
                toggle.open = False
        others = [toggle.t_ns for toggle in self.toggles.values() if not toggle.open]
        since = max([*others, self._tried_ns])
        before = [
            each
            for each in self.moments
            if each.end_ns <= t_ns and (not since or each.start_ns >= since + SETTLE_NS)
        ]
        self.toggles[policy] = Toggle(policy, on, t_ns, before[-BEFORE:])
        self._last_ns = t_ns

    def effect(self, policy: str, agent: int) -> Effect | None:
        """The last toggle's effect on an agent, or None when there was no toggle.

        It is made anew when there are a quarter more ticks than it was made from.
        """
        toggle = self.toggles.get(policy)
        if toggle is None:
            return None
        made = self._made.get((policy, agent))
        have = len(toggle.after)
        if made is not None and made[0] is toggle and have < max(made[1] * 5 // 4, made[1] + 1):
            return made[2]
        effect = effect_of(toggle, agent, self.host)
        if len(self._made) > 256:
            self._made.clear()
        self._made[policy, agent] = (toggle, have, effect)
        return effect


def effect_of(toggle: Toggle, agent: int, host: Host | None) -> Effect:
    """Before and after, for one agent."""
    sides = [counts(side, agent) for side in (toggle.before, toggle.after)]
    before, after = (
        {name: blocks(found, moments) for name, found in side.items()}
        for side, moments in zip(sides, (toggle.before, toggle.after), strict=True)
    )
    return Effect(
        agent=agent,
        on=toggle.on,
        since_ns=toggle.t_ns,
        steps_before=int(before["step"].sum()),
        steps_after=int(after["step"].sum()),
        measures={
            name: {p: change(before[name], after[name], p) for p in PERCENTILES}
            for name in COMPARED
        },
        cost=cost(toggle.before, toggle.after, host, [agent]),
    )


def cost(
    before: Sequence[Moment],
    after: Sequence[Moment],
    host: Host | None,
    agents: Iterable[int],
) -> Cost:
    """Deeper idle lost, power, and the tokens of these agents' windows."""
    spent = [each.tokens[agent] for agent in agents for each in after if agent in each.tokens]
    watts = [power(each, host) for each in (before, after)]
    return Cost(
        idle_before=deeper(before),
        idle_after=deeper(after),
        watts_before=watts[0].watts,
        watts_after=watts[1].watts,
        watts_missing=watts[0].missing or watts[1].missing,
        watts_estimated=watts[0].estimated or watts[1].estimated,
        tokens=round(sum(spent)) if spent else None,
    )


def deeper(moments: Sequence[Moment]) -> dict[str, float]:
    """CPU (as text) -> share of the time in deeper idle states, 0..1."""
    total = sum(each.length_ns for each in moments)
    if not total:
        return {}
    cpus = sorted({cpu for each in moments for cpu in each.idle_ns})
    return {
        str(cpu): min(sum(each.idle_ns.get(cpu, 0) for each in moments) / total, 1.0)
        for cpu in cpus
    }


def attach(snapshot: Snapshot, effect: Callable[[str, int], Effect | None]) -> Snapshot:
    """The snapshot with every agent's effects in its policies (for JSON: all are computed)."""
    import msgspec

    policies: list[PolicyStatus] = []
    for policy in snapshot.policies:
        found = [effect(policy.name, agent.id) for agent in snapshot.agents]
        effects = [each for each in found if each is not None]
        policies.append(msgspec.structs.replace(policy, effects=effects))
    return msgspec.structs.replace(snapshot, policies=policies)

"""From sums over an interval to the Snapshot: rates, percentiles, shares.

Pure functions; the Store chooses the interval. The layout of an agent's
scalars (everything of AgentCounters that only grows and is no histogram)
stands here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from agenttop.model import snapshot as shot
from agenttop.model.histogram_layout import LAST_NS
from agenttop.model.row_layout import BLOCK
from agenttop.model.sample import (
    Activity,
    AgentCounters,
    CpuCounters,
    Exemplar,
    Host,
    Sample,
    Softnet,
    Trust,
)
from agenttop.model.vocabulary import (
    COMPUTE_PARTS,
    EVENTS,
    GATES,
    MEASURES,
    OVERFLOW,
    SLOWPATH_STAGES,
    SOFTIRQS,
    SOURCES,
    STAGES,
)
from agenttop.store.cause_sums import Caused, by_cause, told, unexplained
from agenttop.store.step_names import MARKS, Names, by_name, deadlines, markers, marks_row
from agenttop.store.windows import BEYOND, Boundary, Figures, Ints, Sums, beyond, figures

# Places of an agent's scalars.
_STEPS, _READY, _UNATTRIBUTED, _STEP_SUM, _TAIL_STEPS = range(5)
_STAGE_SUMS: Final = slice(5, 5 + len(STAGES))
_TAIL_SUMS: Final = slice(_STAGE_SUMS.stop, _STAGE_SUMS.stop + len(STAGES))
_SOURCES: Final = slice(_TAIL_SUMS.stop, _TAIL_SUMS.stop + len(SOURCES))
_GATES: Final = slice(_SOURCES.stop, _SOURCES.stop + len(GATES))
_PARTS: Final = slice(_GATES.stop, _GATES.stop + len(COMPUTE_PARTS))
_MARKS: Final = slice(_PARTS.stop, _PARTS.stop + MARKS)
#: run_ns, run_delay_ns, timeslices.
SCHEDSTAT: Final = slice(_MARKS.stop, _MARKS.stop + 3)
SCALARS: Final = SCHEDSTAT.stop
_SLOW: Final = [STAGES.index(stage) for stage in SLOWPATH_STAGES]
_LARGEST: Final = (1 << 63) - 1
#: From so many samples on no percentile is an estimate.
_SURE: Final = 5000
_PERCENTILES: Final = ("p50_ns", "p99_ns", "p999_ns")


@dataclass(slots=True)
class Owner:
    """An agent with a slot in the Sums."""

    slot: int
    #: Its newest counters.
    last: AgentCounters
    #: The Sample before the first that had it, and the last in which it lived.
    joined_ns: int
    seen_ns: int
    alive: bool = True
    names: Names = field(default_factory=Names)
    caused: Caused = field(default_factory=Caused)


@dataclass(slots=True)
class View:
    """All that a Snapshot is made from."""

    host: Host
    sample: Sample
    start: Boundary
    end: Boundary
    sums: Sums
    owners: Sequence[Owner]
    cpu_slots: dict[int, int]
    idle_slot: int
    irq_names: dict[str, str]
    exemplars: list[Exemplar]
    age_ns: int
    #: Put the whole distributions into the Stats too.
    hdr: bool = False


def scalars_of(agents: Sequence[AgentCounters]) -> Ints:
    """One row of SCALARS numbers per agent; what is not measured counts as 0."""
    rows = [
        [
            a.steps,
            a.ready or 0,
            a.unattributed,
            a.step_sum_ns,
            a.tail_steps,
            *_fit(a.stage_sum_ns, len(STAGES)),
            *_fit(a.tail_sum_ns, len(STAGES)),
            *_fit(a.sources, len(SOURCES)),
            *_fit(a.gates, len(GATES)),
            *_fit(a.compute_parts_ns, len(COMPUTE_PARTS)),
            *marks_row(a.marks),
            a.run_ns or 0,
            a.run_delay_ns or 0,
            a.timeslices or 0,
        ]
        for a in agents
    ]
    try:
        return np.array(rows, dtype=np.int64).reshape(len(rows), SCALARS)
    except OverflowError:  # a damaged recording
        rows = [[min(value, _LARGEST) for value in row] for row in rows]
        return np.array(rows, dtype=np.int64).reshape(len(rows), SCALARS)


@dataclass(frozen=True, slots=True)
class Named:
    """An agent's scalars by name: what it gained over some time."""

    steps: int
    unattributed: int
    step_ns: int
    tail_steps: int
    #: In the order of vocabulary.py; a stage that is not measured has 0.
    stages_ns: list[int]
    tail_ns: list[int]
    sources: list[int]
    compute_ns: list[int]

    @classmethod
    def of(cls, row: Ints) -> Named:
        """From a row of a Tick's or a Sums' scalars."""
        values: list[int] = row.tolist()
        return cls(
            steps=values[_STEPS],
            unattributed=values[_UNATTRIBUTED],
            step_ns=values[_STEP_SUM],
            tail_steps=values[_TAIL_STEPS],
            stages_ns=values[_STAGE_SUMS],
            tail_ns=values[_TAIL_SUMS],
            sources=values[_SOURCES],
            compute_ns=values[_PARTS],
        )


def _fit(values: Sequence[int | None], length: int) -> list[int]:
    """Exactly ``length`` numbers: another minor version may send more or fewer."""
    out = [value or 0 for value in values[:length]]
    return out + [0] * (length - len(out))


def build(view: View) -> shot.Snapshot:
    """The Snapshot over the interval from ``start`` to ``end``."""
    rows = view.sums.slots * BLOCK
    found = figures(view.sums.counts, rows, lambda totals: _lost_zeros(view.owners, totals))
    interval = view.end.t_ns - view.start.t_ns
    agents = _agents(view, found)
    agents.sort(key=lambda agent: agent.id)
    return shot.Snapshot(
        schema=shot.SCHEMA_NAME,
        version=shot.SCHEMA_VERSION,
        host=view.host,
        wall_s=view.sample.wall_s,
        t_ns=view.end.t_ns,
        interval_ns=interval,
        trust=_trust(view, agents, interval),
        cpus=_cpus(view, found, agents),
        agents=agents,
        policies=view.sample.policies,
        cause_states=[told(state) for state in view.sample.causes],
        policies_held_by=view.sample.policies_held_by,
        exemplars=view.exemplars,
    )


def _lost_zeros(owners: Sequence[Owner], totals: Ints) -> Ints:
    """Per row, the steps whose stage took no time.

    The kernel side leaves most of them out of the stage's histogram (it would
    count zeros in four of them at each step); the step's own histogram has
    every step, so the difference is their number.
    """
    zeros = np.zeros(len(totals), dtype=np.int64)
    if owners:
        slots = np.array([owner.slot for owner in owners], dtype=np.int64)
        rows = slots[:, None] * BLOCK + np.arange(len(MEASURES))
        found = totals[rows]
        zeros[rows] = np.maximum(found[:, [MEASURES.index("step")]] - found, 0)
    return zeros


# --------------------------------------------------------------------------- agents


def _agents(view: View, found: Figures) -> list[shot.Agent]:
    totals, values = found.total.tolist(), found.values.tolist()
    maxima, scalars = found.maximum.tolist(), view.sums.scalars.tolist()

    def stat(row: int, steps: int, sum_ns: int) -> shot.Stat:
        # The counts are read a moment apart from the sums; a Stat counts the steps of its sum.
        total, known = totals[row], values[row]
        marks: list[str] = []
        if total == 0:
            return shot.Stat(steps, sum_ns)
        if total < _SURE:
            rest = beyond(total)
            # With no sample beyond it a percentile would be the longest under another name.
            known = [ns if more else None for ns, more in zip(known, rest, strict=True)]
            marks = [
                name for name, more in zip(_PERCENTILES, rest, strict=True) if 0 < more < BEYOND
            ]
        p50, p99, p999 = known
        out = shot.Stat(steps, sum_ns, p50, p99, p999, maxima[row], marks)
        if maxima[row] >= LAST_NS:
            for name in (*_PERCENTILES, "max_ns"):
                if (getattr(out, name) or 0) >= LAST_NS:
                    setattr(out, name, LAST_NS)
                    out.over_range.append(name)
        if view.hdr:
            from agenttop.stats import hdr

            counts = view.sums.counts.row(row)
            out.hdr = hdr.encode(counts, total - int(counts.sum()))
        return out

    agents = []
    for owner in view.owners:
        agent = _agent(view, owner, scalars[owner.slot], owner.slot * BLOCK, stat)
        if owner.names.lanes:
            present = _present(view, owner)
            agent.steps_by_name = by_name(owner.names, scalars, present, stat)
        if states := view.sample.causes:
            labels = view.sums.labels.get(owner.slot, {})
            agent.causes = by_cause(owner.caused, states, scalars, stat, labels)
            stages = scalars[owner.slot][_STAGE_SUMS]
            agent.unexplained_ns = unexplained(owner.caused, states, scalars, stages)
        agents.append(agent)
    return agents


def _present(view: View, owner: Owner) -> int:
    """The part of the interval in which the agent was there, ns."""
    start, end = view.start.t_ns, view.end.t_ns
    return max(end - max(start, owner.joined_ns), 0) if end > start else 0


def _agent(
    view: View,
    owner: Owner,
    scalars: list[int],
    row: int,
    stat: Callable[[int, int, int], shot.Stat],
) -> shot.Agent:
    last, present = owner.last, _present(view, owner)
    sums = scalars[_STAGE_SUMS]
    # A stage is measured if it is now, or was for a part of the interval.
    measured = [
        now is not None or gained > 0
        for now, gained in zip(_pad(last.stage_sum_ns), sums, strict=True)
    ]
    chains = any(measured)
    steps = scalars[_STEPS]
    stages = {
        name: stat(row + i, steps, sums[i]) if measured[i] else None
        for i, name in enumerate(STAGES)
    }
    # The stages are the truth: they were counted apart, the sums are made of them.
    step_sum = sum(sums) if chains else scalars[_STEP_SUM]
    slow_sum = sum(sums[i] for i in _SLOW)
    step = stat(row + MEASURES.index("step"), steps, step_sum)
    slowpath = stat(row + MEASURES.index("slowpath"), steps, slow_sum)
    per_cpu = {
        cpu: count for cpu, count in view.sums.cpu_steps.get(owner.slot, {}).items() if count > 0
    }
    home = max(per_cpu, key=lambda cpu: (per_cpu[cpu], -cpu), default=None)
    run_ns, delay_ns, slices = scalars[SCHEDSTAT]
    return shot.Agent(
        id=last.id,
        name=last.name,
        rule=last.rule,
        pid=last.pid,
        pids=last.pids,
        threads=last.threads,
        threads_tracked=last.threads_tracked,
        alive=owner.alive,
        background=last.background,
        user=last.user,
        chosen=last.chosen,
        steps=steps if chains else None,
        steps_per_s=_rate(steps, present) if chains else None,
        sources=_named(SOURCES, scalars[_SOURCES]),
        gates=_named(GATES, scalars[_GATES]),
        ready=scalars[_READY] if last.ready is not None else None,
        unattributed=scalars[_UNATTRIBUTED] if chains else None,
        step=step,
        stages=stages,
        slowpath=slowpath,
        tail=_tail(scalars, measured),
        compute_ns={
            name: value if now is not None else None
            for name, value, now in zip(
                COMPUTE_PARTS, scalars[_PARTS], _pad(last.compute_parts_ns, 3), strict=True
            )
        },
        home_cpu=home,
        home_ratio=per_cpu[home] / sum(per_cpu.values()) if home is not None else None,
        cpu_steps={str(cpu): count for cpu, count in sorted(per_cpu.items())},
        policies={
            policy.name: policy.agents[str(last.id)]
            for policy in view.sample.policies
            if str(last.id) in policy.agents
        },
        run_delay_ns=delay_ns // slices if last.timeslices is not None and slices else None,
        cpu_ratio=run_ns / present if last.run_ns is not None and present else None,
        deadlines=deadlines(scalars[_MARKS]),
        markers=markers(scalars[_MARKS]) if last.marks is not None else None,
    )


def _tail(scalars: list[int], measured: list[bool]) -> shot.Tail:
    sums = scalars[_TAIL_SUMS]
    whole = sum(sums[i] for i in _SLOW)
    if not scalars[_TAIL_STEPS] or not whole:
        return shot.Tail(steps=scalars[_TAIL_STEPS])
    shares = {STAGES[i]: sums[i] / whole for i in _SLOW if measured[i]}
    stage = max(shares, key=lambda name: shares[name], default=None)
    return shot.Tail(stage, shares[stage] if stage else None, shares, scalars[_TAIL_STEPS])


def _pad(values: Sequence[int | None], length: int = len(STAGES)) -> list[int | None]:
    return [*values[:length], *([None] * (length - len(values)))]


def _named(names: Sequence[str], counts: Sequence[int]) -> dict[str, int]:
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def _rate(count: float, time_ns: int) -> float:
    """Per second; 0 over no time."""
    return count * 1e9 / time_ns if time_ns > 0 else 0.0


# --------------------------------------------------------------------------- CPUs


def _cpus(view: View, found: Figures, agents: Sequence[shot.Agent]) -> list[shot.Cpu]:
    rows, since_ns = view.start.cpus, view.start.cpus_ns
    if since_ns == view.end.cpus_ns and view.end.earlier is not None and view.start is not view.end:
        # Not read within the interval: what was found out last.
        rows, since_ns = view.end.earlier
    before, interval = {cpu.cpu: cpu for cpu in rows}, view.end.cpus_ns - since_ns
    living: dict[int, list[int]] = {}
    for agent in agents:
        if agent.alive and agent.home_cpu is not None:
            living.setdefault(agent.home_cpu, []).append(agent.id)
    medians = found.values[view.idle_slot * BLOCK : (view.idle_slot + 1) * BLOCK, 0].tolist()
    exits = [None if value < 0 else int(value) for value in medians]
    out = []
    for now in view.end.cpus:
        # One that came during the interval (hot-plugged): nothing is known of its share yet.
        old = before.get(now.cpu, now)
        time_ns = interval if now.cpu in before else 0
        slot = view.cpu_slots.get(now.cpu)
        p99 = (
            found.values[slot * BLOCK : (slot + 1) * BLOCK, 1].tolist() if slot is not None else []
        )
        latency = {
            name: int(value) for name, value in zip(SOFTIRQS, p99, strict=False) if value >= 0
        }
        out.append(_cpu(view, old, now, time_ns, latency, exits, living.get(now.cpu, [])))
    return out


def _cpu(
    view: View,
    old: CpuCounters,
    now: CpuCounters,
    interval: int,
    latency: dict[str, int],
    exits: list[int | None],
    living: list[int],
) -> shot.Cpu:
    lines = _gained(old.irqs, now.irqs)
    vectors = _gained(old.vectors, now.vectors)
    softirqs = _gained(old.softirqs, now.softirqs)
    irqs = {_irq_name(line, view.irq_names): activity for line, activity in lines.items()}
    irqs.update(vectors)
    return shot.Cpu(
        cpu=now.cpu,
        online=now.online,
        busy_ratio=_share(now.busy_ns - old.busy_ns, interval),
        steal_ratio=_share(now.steal_ns - old.steal_ns, interval),
        irq=_total(irqs.values(), [*now.irqs.values(), *now.vectors.values()], interval),
        irqs={name: _load(activity, interval) for name, activity in irqs.items()},
        softirq=_total(softirqs.values(), now.softirqs.values(), interval),
        softirqs={
            name: _load(activity, interval, latency.get(name))
            for name, activity in softirqs.items()
        },
        ksoftirqd_ratio=(
            _share(now.ksoftirqd_ns - old.ksoftirqd_ns, interval)
            if now.ksoftirqd_ns is not None and old.ksoftirqd_ns is not None
            else None
        ),
        receiving=_receiving(old.softnet, now.softnet, interval),
        idle=_idle(view.host, old, now, interval, exits),
        freq_khz=now.freq_khz,
        agents=living,
    )


def _receiving(old: Softnet | None, now: Softnet | None, interval: int) -> shot.Receiving | None:
    if old is None or now is None:
        return None
    return shot.Receiving(
        _rate(max(now.packets - old.packets, 0), interval),
        _rate(max(now.dropped - old.dropped, 0), interval),
        _rate(max(now.time_squeezes - old.time_squeezes, 0), interval),
    )


def _irq_name(line: str, names: dict[str, str]) -> str:
    return f"{line} {names[line]}" if names.get(line) else line


def _gained(old: dict[str, Activity], now: dict[str, Activity]) -> dict[str, Activity]:
    """What was added, of those that ran at all."""
    out = {}
    for name, activity in now.items():
        before = old.get(name)
        count = activity.count - (before.count if before else 0)
        if count <= 0:
            continue
        time_ns = activity.time_ns
        if time_ns is not None and before is not None:
            time_ns = None if before.time_ns is None else max(time_ns - before.time_ns, 0)
        out[name] = Activity(count, time_ns)
    return out


def _load(activity: Activity, interval: int, p99_ns: int | None = None) -> shot.Load:
    ratio = None if activity.time_ns is None else _share(activity.time_ns, interval)
    return shot.Load(_rate(activity.count, interval), ratio, p99_ns)


def _total(gained: Iterable[Activity], all_of_them: Iterable[Activity], interval: int) -> shot.Load:
    """All together; the time is known if any one's is (then 0 is a measured 0)."""
    gained = list(gained)
    timed = any(activity.time_ns is not None for activity in all_of_them)
    time_ns = sum(activity.time_ns or 0 for activity in gained)
    ratio = _share(time_ns, interval) if timed else None
    return shot.Load(_rate(sum(activity.count for activity in gained), interval), ratio)


def _idle(
    host: Host, old: CpuCounters, now: CpuCounters, interval: int, exits: list[int | None]
) -> list[shot.IdleShare]:
    if len(old.idle) != len(now.idle):
        return []
    out = []
    for i, (state, before, after) in enumerate(
        zip(host.idle_states, old.idle, now.idle, strict=False)
    ):
        above, below = (
            _rate(max(b - a, 0), interval) if a is not None and b is not None else None
            for a, b in ((before.above, after.above), (before.below, after.below))
        )
        out.append(
            shot.IdleShare(
                name=state.name,
                ratio=_share(after.time_ns - before.time_ns, interval) or 0.0,
                per_s=_rate(max(after.entries - before.entries, 0), interval),
                above_per_s=above,
                below_per_s=below,
                latency_ns=state.latency_us * 1000,
                exit_p50_ns=exits[i] if i < len(exits) else None,
            )
        )
    return out


def _share(part_ns: int, interval: int) -> float | None:
    """Of the interval, 0..1; None over no time. Counters of 10 ms steps may overshoot a little."""
    return min(max(part_ns / interval, 0.0), 1.0) if interval > 0 else None


# --------------------------------------------------------------------------- trust


def losses(old: Trust, now: Trust) -> tuple[dict[str, int], int | None]:
    """What was lost between two Samples: by kind, and recursion misses (None: not known)."""
    drops = {name: max(count - old.drops.get(name, 0), 0) for name, count in now.drops.items()}
    if now.recursion_misses is None:
        return drops, None
    return drops, max(now.recursion_misses - (old.recursion_misses or 0), 0)


def lost(drops: Mapping[str, int], misses: int | None) -> int:
    """What ``losses`` told of steps, in all."""
    return sum(n for kind, n in drops.items() if kind not in (OVERFLOW, EVENTS)) + (misses or 0)


def _trust(view: View, agents: Sequence[shot.Agent], interval: int) -> shot.TrustLine:
    old, now = view.start.trust, view.end.trust
    drops, misses = losses(old, now)
    events = drops.pop(EVENTS, 0)
    chains = view.host.mode != "procfs" and "chains" not in view.host.missing
    forgotten = Named.of(view.sums.forgotten)
    shown = sum(agent.steps or 0 for agent in agents)
    others = forgotten.steps + max(now.steps_of_ended - old.steps_of_ended, 0)
    steps = shown + others if chains else None
    unattributed = sum(agent.unattributed or 0 for agent in agents) + forgotten.unattributed
    unattributed += max(now.unattributed_of_ended - old.unattributed_of_ended, 0)
    living = [agent for agent in agents if agent.alive]
    tracked = [agent.threads_tracked for agent in living if agent.threads_tracked is not None]
    threads = sum(agent.threads for agent in living if agent.threads_tracked is not None)
    own = now.self_ns - old.self_ns + view.end.view_ns - view.start.view_ns
    sums = view.sums
    return shot.TrustLine(
        steps=steps,
        drops=drops,
        lost=lost(drops, misses),
        recursion_misses=misses,
        unattributed_ratio=unattributed / steps if steps else None,
        coverage_ratio=min(sum(tracked) / threads, 1.0) if threads else None,
        sample_age_ns=view.age_ns,
        self_ratio=max(own, 0) / interval if interval > 0 else None,
        bpf_ratio=sums.bpf_ns / sums.bpf_time_ns if sums.bpf_time_ns else None,
        read_ns=now.read_ns,
        slots_full=now.slots_full,
        steps_per_s=_rate(steps, interval) if steps is not None else None,
        steps_of_others=others,
        events_dropped=events,
        slots_full_by_user=now.slots_full_by_user,
    )

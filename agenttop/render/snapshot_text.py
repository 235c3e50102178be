"""Snapshots as plain text: what ``snapshot`` and ``-b`` print. No line is wider than asked for."""

from __future__ import annotations

import shutil
import textwrap
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from agenttop import __version__
from agenttop.model.sample import Exemplar
from agenttop.model.snapshot import Agent, Cpu, Load, Snapshot, Stat
from agenttop.model.vocabulary import OVERFLOW, SLOWPATH_STAGES, STAGE_TARGETS_NS, STAGES
from agenttop.render.cause_text import cause_lines
from agenttop.render.columns import (
    BY_NAME,
    DEFAULT_SORT,
    chosen,
    heads,
    mix,
    named_rows,
    needed,
    ordered,
)
from agenttop.text.figures import (
    NA,
    ascii_only,
    clean,
    count,
    cut,
    duration,
    fit,
    frequency,
    measured,
    percent,
    rate,
)

#: Narrower than this nothing can be told.
LEAST_WIDTH: Final = 40


@dataclass(frozen=True)
class Layout:
    """How a Snapshot is to be written."""

    width: int = 120
    sort: str = DEFAULT_SORT
    inverted: bool = False
    #: Agents whose chain is shown, the first ones of the table.
    chains: int = 3
    #: Agents in the table at most (None: all).
    agents: int | None = None
    ascii: bool = False


def report(snapshot: Snapshot, layout: Layout | None = None) -> str:
    """The Snapshot as text, ending in a line end."""
    layout = layout or Layout()
    width = max(layout.width, LEAST_WIDTH)
    agents = ordered(snapshot.agents, layout.sort, layout.inverted)
    blocks = [_head(snapshot, width), _agents(snapshot, agents, layout, width)]
    if not without_chains(snapshot):
        blocks += [_chain(snapshot, agent, width) for agent in agents[: layout.chains]]
    blocks += [_cpus(snapshot, width), _policies(snapshot, width)]
    lines = [line for block in blocks if block for line in (*block, "")]
    lines = [cut(line, width).rstrip() for line in lines[:-1]]
    if layout.ascii:
        lines = [ascii_only(line) for line in lines]
    return "\n".join(lines) + "\n"


def without_chains(snapshot: Snapshot) -> bool:
    """Are there no step chains to be shown?"""
    return "chains" in snapshot.host.missing or snapshot.host.mode == "procfs"


# --------------------------------------------------------------------------- head


def _head(snapshot: Snapshot, width: int) -> list[str]:
    host, trust = snapshot.host, snapshot.trust
    when = time.strftime("%Y-%m-%d %H:%M:%S", _local(snapshot.wall_s))
    seconds = f"{snapshot.interval_ns / 1e9:.1f} s"
    first = [
        f"agenttop {__version__}",
        clean(host.name, 64),
        clean(host.kernel, 64),
        f"{host.cpus} CPU{'s' if host.cpus != 1 else ''}",
        f"level {host.level}",
        host.mode,
        when,
        f"over {seconds}",
    ]
    lost = f"lost {count(trust.lost)}"
    kinds = [
        f"{clean(name, 24)} {count(n)}"
        for name, n in sorted(trust.drops.items())
        if n and name != OVERFLOW
    ]
    if kinds:
        lost += f" ({', '.join(kinds)})"
    steps = f"{count(trust.steps)} steps ({rate(trust.steps_per_s)}/s)"
    if trust.steps_of_others:
        steps += f", {count(trust.steps_of_others)} of them of ended agents that are not shown"
    facts = [
        steps,
        lost,
        f"unattributed {percent(trust.unattributed_ratio)}",
        f"coverage {percent(trust.coverage_ratio)}",
        f"sample age {duration(trust.sample_age_ns)}",
        f"self {percent(trust.self_ratio)}",
        f"bpf {percent(trust.bpf_ratio)}",
    ]
    if trust.events_dropped:
        facts.append(
            f"process events dropped {count(trust.events_dropped)} (the next scan finds the agents)"
        )
    if trust.slots_full:
        users = ", ".join(
            f"uid {clean(user, 12)}: {count(n)}" for user, n in trust.slots_full_by_user.items()
        )
        facts.append(
            f"{count(trust.slots_full)} agents found no slot" + (f" ({users})" if users else "")
        )
    lines = [*_flow(first, width), *_flow(facts, width)]
    if host.banner:
        lines += _wrapped("note: ", clean(host.banner), width)
    for group, reason in sorted(host.missing.items()):
        lines += _wrapped(f"N/A {clean(group, 24)}: ", clean(reason), width)
    return lines


def _local(wall_s: float) -> time.struct_time:
    try:
        return time.localtime(wall_s)
    except (OverflowError, ValueError, OSError):  # a damaged recording
        return time.gmtime(0)


def _flow(parts: Iterable[str], width: int) -> list[str]:
    """Parts on as few lines as they need, two blanks between."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += "  " + part
        else:
            lines.append(part)
    return lines


def _wrapped(first: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=" " * min(len(first), 12)
    )


# --------------------------------------------------------------------------- agents


def _agents(snapshot: Snapshot, agents: Sequence[Agent], layout: Layout, width: int) -> list[str]:
    total = len(snapshot.agents)
    order = f"{'-' if layout.inverted else ''}{layout.sort}"
    if not total:
        return ["AGENTS 0", "  none found; name one: --agent pid:N or --agent cmd:RE"]
    columns = chosen(width, not without_chains(snapshot))
    name_width = columns[0].width + width - needed(columns)
    names = [*agents, *(row for agent in agents for row in named_rows(agent))]
    longest = max((len(columns[0].text(agent)) for agent in names), default=0)
    name_width = min(name_width, max(longest, columns[0].width))

    def line(cells: Sequence[str]) -> str:
        out = ""
        for i, (column, cell) in enumerate(zip(columns, cells, strict=True)):
            if i:
                out += " " * (1 + column.group)
            out += fit(cell, column.width if i else name_width, column.right)
        return out

    lines = [f"AGENTS {total}, by {order}", line(heads(columns))]
    shown = agents if layout.agents is None else agents[: layout.agents]
    for agent in shown:
        lines.append(line([column.text(agent) for column in columns]))
        for row in named_rows(agent):
            cells = [column.text(row) if column.key in BY_NAME else "" for column in columns]
            lines.append(line(cells))
    if len(shown) < total:
        lines.append(f"... and {total - len(shown)} more")
    return lines


# --------------------------------------------------------------------------- chains


def _chain(snapshot: Snapshot, agent: Agent, width: int) -> list[str]:
    gates = mix(agent.gates, 2)
    lines = [f"CHAIN {clean(agent.name, 64)} (pid {agent.pid})  {mix(agent.sources)} -> {gates}"]
    if not agent.steps:
        return [*lines, "  no step in the interval"]
    head = f"  {'stage':<10}{'p50':>9}{'p99':>9}{'p99.9':>9}{'max':>9}{'target':>8}"
    lines.append(f"{head}  {'of step':>7} {'of tail':>7}")
    for name in STAGES:
        stat = agent.stages[name]
        if stat is None:
            lines.append(f"  {name:<10}{NA:>9}  (not measured at level {snapshot.host.level})")
            continue
        target = STAGE_TARGETS_NS.get(name)
        over = target is not None and stat.p99_ns is not None and stat.p99_ns > target
        step_share = percent(stat.sum_ns / agent.step.sum_ns) if agent.step.sum_ns else NA
        tail = percent(agent.tail.shares[name]) if name in agent.tail.shares else "-"
        lines.append(
            f"{_row(name, stat)}{duration(target) if target else '-':>8}"
            f"  {step_share:>7} {tail:>7}{'  over' if over else ''}"
        )
    lines += [_row("slowpath", agent.slowpath), _row("step", agent.step)]
    lines += cause_lines(snapshot, agent)
    lines += _flow(_deadlines(agent), width)
    slowest = next((e for e in snapshot.exemplars if e.agent == agent.id), None)
    if slowest is not None:
        lines += _slowest(slowest, width)
    return lines


def _deadlines(agent: Agent) -> list[str]:
    """What the step markers told beside the names."""
    parts = []
    for name, told in agent.deadlines.items():
        judged = told.met + told.missed
        if judged:
            parts.append(f"  deadlines {name}: {count(told.missed)} of {count(judged)} missed")
        if told.overrun:
            parts.append(f"  over budget {name}: {count(told.overrun)}")
    marks = agent.markers
    if marks is not None:
        facts = (
            ("with a name too many", marks.crowded),
            ("unreadable", marks.unread),
            ("invalid", marks.invalid),
            ("for io_uring forgotten", marks.forgotten),
            ("for io_uring missing", marks.strays),
        )
        parts += [f"  markers {what}: {count(number)}" for what, number in facts if number]
    return parts


def _row(name: str, stat: Stat) -> str:
    cells = [
        measured(getattr(stat, field), field in stat.estimated)
        for field in ("p50_ns", "p99_ns", "p999_ns", "max_ns")
    ]
    return f"  {name:<10}" + "".join(f"{cell:>9}" for cell in cells)


def _slowest(exemplar: Exemplar, width: int) -> list[str]:
    stages = dict(zip(STAGES, exemplar.stages_ns, strict=False))
    slow = sum(stages.get(name) or 0 for name in SLOWPATH_STAGES)
    parts = [f"  slowest {duration(slow)}:"]
    parts += [
        f"{name} {duration(value)}"
        for name in SLOWPATH_STAGES
        if (value := stages.get(name)) is not None
    ]
    parts.append(f"tid {exemplar.tid} on cpu {exemplar.cpu}")
    if exemplar.waker:
        parts.append(f"woken by {clean(exemplar.waker, 48)}")
    lines = _flow(parts, width)
    return [lines[0], *(f"  {line}" for line in lines[1:])]


# --------------------------------------------------------------------------- CPUs and policies


def _cpus(snapshot: Snapshot, width: int) -> list[str]:
    if not snapshot.cpus:
        return []
    lines = [
        f"{'CPU':>4}{'BUSY':>7}{'STEAL':>7}{'IRQ':>7}{'IRQ/S':>8}{'SOFTIRQ':>8}"
        f"{'FREQ':>9}  IDLE, TOP IRQ AND SOFTIRQ, AGENTS"
    ]
    if every_s := snapshot.host.cpus_every_s:
        lines.insert(0, f"CPUs are read every {every_s:g} s; figures are of the last reading")
    names = {agent.id: clean(agent.name, 24) for agent in snapshot.agents}
    for cpu in snapshot.cpus:
        start = f"{cpu.cpu:>4}"
        if not cpu.online:
            lines.append(f"{start}  offline")
            continue
        start += "".join(
            f"{cell:>{cells}}"
            for cell, cells in (
                (percent(cpu.busy_ratio), 7),
                (percent(cpu.steal_ratio), 7),
                (percent(cpu.irq.ratio), 7),
                (rate(cpu.irq.per_s), 8),
                (percent(cpu.softirq.ratio), 8),
                (frequency(cpu.freq_khz), 9),
            )
        )
        parts = _flow([f"{start} ", *_cpu_parts(cpu, names)], width)
        lines += [parts[0], *(" " * 6 + part for part in parts[1:])]
    return lines


def _cpu_parts(cpu: Cpu, names: dict[int, str]) -> list[str]:
    states = [f"{clean(state.name, 12)} {percent(state.ratio)}" for state in cpu.idle]
    parts = [" ".join(states) if states else f"idle {NA}"]
    for loads in (cpu.irqs, cpu.softirqs):
        if loads:
            name = max(loads, key=lambda key: _weight(loads[key]))
            share = loads[name].ratio
            amount = percent(share) if share is not None else f"{rate(loads[name].per_s)}/s"
            parts.append(f"{clean(name, 32)} {amount}")
    if (receiving := cpu.receiving) is not None:
        for per_s, what in (
            (receiving.time_squeezes_per_s, "receive budget used up"),
            (receiving.dropped_per_s, "packets dropped, backlog full"),
        ):
            if per_s > 0:
                parts.append(f"{what} {rate(per_s)}/s")
    if cpu.agents:
        parts.append(", ".join(names.get(agent, str(agent)) for agent in cpu.agents))
    return parts


def _weight(load: Load) -> tuple[float, float]:
    return (load.ratio or 0.0, load.per_s)


def _policies(snapshot: Snapshot, width: int) -> list[str]:
    if not snapshot.policies:
        return []
    holder = snapshot.policies_held_by
    who = "another agenttop" if not holder else f"agenttop with pid {holder}"
    lines = ["POLICIES" if holder is None else f"POLICIES (held by {who})"]
    for policy in snapshot.policies:
        lines.append(
            cut(f"  {clean(policy.name, 16):<8} {policy.state:<5} {clean(policy.detail)}", width)
        )
        lines += [cut(f"    {clean(change)}", width) for change in policy.changes]
    return lines


def terminal_width() -> int:
    """Of the terminal that stdout is, else COLUMNS, else 120 (a pipe has no edge)."""
    return max(shutil.get_terminal_size((120, 50)).columns, LEAST_WIDTH)

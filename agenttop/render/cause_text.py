"""The causes of an agent's stages as lines of text."""

from __future__ import annotations

import textwrap

from agenttop.model.snapshot import Agent, CauseLabel, CauseStat, Snapshot
from agenttop.text.figures import NA, count, duration, measured, percent

#: Labels of a cause that are listed.
_LABELS = 3
#: Stage -> what it is apart from its causes.
_RESTS = {
    "wait": "what was waited for, and unknown",
    "compute": "own work and unknown",
}
#: Of lines that list names.
_WIDTH = 80
_PERCENTILES = ("p50_ns", "p99_ns", "max_ns")


def cause_lines(snapshot: Snapshot, agent: Agent) -> list[str]:
    """Those that are observed, the most time first, and what they leave; empty if none is.

    Percentiles are over the steps that had the cause.
    """
    if not any(state.state == "on" for state in snapshot.cause_states):
        return []
    lines = [
        f"  {'cause':<16}{'steps':>8}{'times':>8}{'p50':>9}{'p99':>9}{'max':>9}  {'of stage':>8}"
    ]
    found = [(name, stat) for name, stat in agent.causes.items() if stat is not None]
    absent = [name for name, stat in found if not stat.count and not stat.details]
    for name, stat in sorted(found, key=lambda one: -one[1].sum_ns):
        if name in absent:
            continue
        whole = agent.stages.get(stat.stage)
        share = percent(stat.sum_ns / whole.sum_ns) if whole and whole.sum_ns else NA
        cells = [
            measured(getattr(stat, field), field in stat.estimated) if stat.count else "-"
            for field in _PERCENTILES
        ]
        lines.append(
            f"  {name:<16}{count(stat.count):>8}{count(stat.events):>8}"
            + "".join(f"{cell:>9}" for cell in cells)
            + f"  {share:>8}"
        )
        lines += label_lines(stat)
    for stage, left in agent.unexplained_ns.items():
        whole = agent.stages.get(stage)
        share = percent(left / whole.sum_ns) if whole and whole.sum_ns else NA
        lines.append(f"  {f'rest of {stage}':<59}  {share:>8}  ({rest_of(stage)})")
    lines += _listed("none", absent)
    off = [f"{s.name} ({s.reason})" for s in snapshot.cause_states if s.state == "n/a"]
    return lines + _listed("N/A", off)


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    return textwrap.wrap(
        f"{what}: {', '.join(names)}", _WIDTH, initial_indent="  ", subsequent_indent="    "
    )


def rest_of(stage: str) -> str:
    """What a stage is that no observed cause explains."""
    return _RESTS.get(stage, "unknown")


def label_lines(stat: CauseStat) -> list[str]:
    """The labels with the most time, a line each."""
    lines = [
        f"    {count(one.steps or one.events):>8} x {one.text}{_each(one)}"
        for one in stat.details[:_LABELS]
    ]
    if len(stat.details) > _LABELS:
        rest = stat.details[_LABELS:]
        steps = count(sum(one.steps for one in rest))
        lines.append(f"    {steps:>8} x {len(rest)} more")
    return lines


def _each(one: CauseLabel) -> str:
    """What a step had of it, and what came with it."""
    told = f", {duration(one.sum_ns // one.steps)} each" if one.steps else ""
    return told + (f" ({one.facts})" if one.facts else "")


def state_lines(snapshot: Snapshot) -> list[str]:
    """Every cause: whether it is observed, and what that costs."""
    lines = []
    for state in snapshot.cause_states:
        cost = "cost not measured" if state.run_ns is None else f"{state.run_ns:.0f} ns a run"
        what = f"{cost}" if state.state == "on" else f"not measured: {state.reason}"
        lines.append(f"{state.name:<16} {state.level:<5} {state.state:<4} {what}")
    return lines

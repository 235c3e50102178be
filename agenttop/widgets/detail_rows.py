"""What stands on the popups: help, an agent's details, a policy's plan, the sort keys."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from agenttop.model.sample import PolicyStatus
from agenttop.model.snapshot import Agent, Stat
from agenttop.model.vocabulary import COMPUTE_PARTS, STAGE_TARGETS_NS, STAGES
from agenttop.render.columns import COLUMNS
from agenttop.text.ages import ago
from agenttop.text.figures import NA, clean, count, duration, measured, percent, rate
from agenttop.view.state import View
from agenttop.widgets.effect_rows import effect_rows, trial_rows
from agenttop.widgets.paint import Line, Row
from agenttop.widgets.policies import STATES


def title(text: str, width: int) -> Row:
    return Line(width).add(f" {text}", "title").row()


def blank(width: int) -> Row:
    return Line(width).row()


def fact(name: str, text: str, width: int, role: str = "text") -> list[Row]:
    """A name and its text, wrapped under itself."""
    lead = 16
    lines = textwrap.wrap(text, max(width - lead - 1, 8)) or [""]
    rows = [Line(width).add("  ").fit(name, lead - 2, "dim").add(lines[0], role).row()]
    return rows + [Line(width).add(" " * lead).add(line, role).row() for line in lines[1:]]


def sort_rows(view: View, width: int) -> list[Row]:
    """One row per sort key."""
    return [
        Line(width)
        .add(" ● " if key == view.sort else "   ", "good")
        .fit(column.label, 18, "strong")
        .add(" ")
        .fit(column.meaning, width - 22, "dim")
        .row()
        for key, column in COLUMNS.items()
    ]


def policy_rows(view: View, policy: PolicyStatus, width: int) -> list[Row]:
    """What it would do, what it did."""
    _, word, role = STATES.get(policy.state, ("", policy.state, "warn"))
    rows = fact("state", word, width, role)
    rows += fact("what", clean(policy.title, 200), width)
    if policy.detail:
        rows += fact("now", clean(policy.detail, 400), width)
    if view.options.readonly:
        rows += fact("switching", "not here: agenttop runs with --readonly", width, "warn")
    elif policy.state != "n/a":
        rows += fact("switching", f"press {clean(policy.key, 2)}", width)
    if policy.since_ns is not None and view.snapshot is not None:
        rows += fact("since", f"{ago(view.snapshot.t_ns - policy.since_ns)} ago", width)
    if policy.cpus:
        rows += fact("CPUs", ", ".join(map(str, policy.cpus)), width)
    if policy.tids:
        rows += fact("threads", ", ".join(map(str, policy.tids)), width)
    for agent_id, what in policy.agents.items():
        name = view.name_of(int(agent_id)) if agent_id.isdecimal() else agent_id
        rows += fact(clean(name, 13), clean(what, 60), width)
    effect = view.effect(policy.name)
    if effect is not None and policy.name not in view.trials.newest:
        rows += effect_rows(effect, view.name_of(effect.agent), width)
    result = view.trials.result(policy.name, view.agent, view.host)
    if result is not None:
        rows += trial_rows(result, width)
    for heading, lines in (
        ("Would change", policy.plan),
        ("Changed, given back when off", policy.changes),
    ):
        if lines:
            rows += [blank(width), title(heading, width)]
            rows += [
                Line(width).add("  ").fit(clean(x, 300), width - 3, "text").row() for x in lines
            ]
    if not policy.changes and not policy.plan:
        rows += [blank(width), Line(width).add("  nothing is changed now", "dim").row()]
    return rows


def agent_rows(view: View, agent: Agent, width: int) -> list[Row]:
    """Everything that is known about an agent."""
    rows = fact("rule", clean(agent.rule, 80), width)
    rows += fact("processes", _numbers(agent.pids), width)
    tracked = agent.threads_tracked
    text = str(agent.threads) if tracked is None else f"{tracked} of {agent.threads} measured"
    rows += fact("threads", text, width)
    if not agent.alive:
        rows += fact("state", "has ended; its steps leave the window with time", width, "warn")
    rows += fact("steps", f"{count(agent.steps)} in the window, {rate(agent.steps_per_s)}/s", width)
    rows += [blank(width), _stage_head(width)]
    for stage in STAGES:
        rows.append(_stage(stage, agent.stages.get(stage), width))
    rows.append(_stage("slowpath", agent.slowpath, width))
    rows.append(_stage("step", agent.step, width))
    rows.append(blank(width))
    rows += fact("ended by", _shares(agent.sources), width)
    rows += fact("gates", _shares(agent.gates), width)
    rows += fact("resumes on", _shares({f"cpu {c}": n for c, n in agent.cpu_steps.items()}), width)
    total = sum(value or 0 for value in agent.compute_ns.values())
    parts = [
        f"{part.replace('_', '-')} {percent((agent.compute_ns.get(part) or 0) / total)}"
        for part in COMPUTE_PARTS
        if total and agent.compute_ns.get(part) is not None
    ]
    rows += fact("compute", ", ".join(parts) or NA, width)
    if agent.ready is not None:
        rows += fact("ready", f"{count(agent.ready)} gates returned at once", width)
    rows += fact("unattributed", f"{count(agent.unattributed)} steps without a known waker", width)
    rows += fact("run queue", f"{duration(agent.run_delay_ns)} a time slice (schedstat)", width)
    rows += fact("CPU", percent(agent.cpu_ratio), width)
    for name, what in sorted(agent.policies.items()):
        rows += fact(clean(name, 13), clean(what, 60) or "holds it", width, "good")
    host = view.host
    reasons: Iterable[tuple[str, str]] = host.missing.items() if host else ()
    missing = list(reasons)
    if missing:
        rows += [blank(width), title("N/A here", width)]
        for group, reason in missing:
            rows += fact(clean(group, 13), clean(reason, 200), width, "dim")
    return rows


def _stage_head(width: int) -> Row:
    line = Line(width).add("  ").fit("stage", 12, "head")
    for head in ("p50", "p99", "p99.9", "longest", "target"):
        line.fit(head, 9, "head", right=True)
    return line.row()


def _stage(name: str, stat: Stat | None, width: int) -> Row:
    role = f"stage.{name}" if name in STAGES else "title"
    line = Line(width).add("  ").fit(name, 12, role)
    limit = STAGE_TARGETS_NS.get(name)
    for field in ("p50_ns", "p99_ns", "p999_ns", "max_ns"):
        value = getattr(stat, field) if stat is not None else None
        text = measured(value, stat is not None and field in stat.estimated)
        over = field == "p99_ns" and limit is not None and value is not None and value > limit
        line.fit(text, 9, "alarm" if over else "text" if value is not None else "dim", right=True)
    line.fit(duration(limit) if limit is not None else "", 9, "dim", right=True)
    p99 = stat.p99_ns if stat is not None else None
    if limit is not None and p99 is not None and p99 > limit:
        line.add(" over", "alarm")
    return line.row()


def _shares(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{clean(k, 24)} {percent(n / total)}" for k, n in ranked[:8]) or NA


def _numbers(pids: list[int]) -> str:
    text = ", ".join(map(str, pids[:12]))
    return f"{text} and {len(pids) - 12} more" if len(pids) > 12 else text

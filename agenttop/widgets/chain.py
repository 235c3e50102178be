"""The selected agent's chain: each stage's percentiles beside its target."""

from __future__ import annotations

from collections.abc import Sequence

from agenttop.model.snapshot import Agent, Stat
from agenttop.model.vocabulary import SLOWPATH_STAGES, STAGE_TARGETS_NS, STAGES
from agenttop.text.figures import NA, clean, duration, measured, percent
from agenttop.widgets.paint import Line, Row, Span, bar
from agenttop.widgets.panel import Panel

#: What each stage is, in a line.
MEANINGS = {
    "wait": "gate entry to the completion's first kernel event: nobody's fault",
    "irq": "hard interrupt to softirq or wake-up",
    "softirq": "softirq entry to the wake-up",
    "ipi": "wake-up at the waker to its arrival on the target CPU",
    "idle_exit": "the target CPU leaving its idle state",
    "queue": "waiting in the run queue for the switch-in",
    "return": "switch-in to the gate's return to user space",
    "compute": "the agent's own work until the next gate",
}


class Chain(Panel):
    """Stage by stage, in time order."""

    def title(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        agent = self.view.agent
        left: list[Span] = [("Chain ", "title")]
        right: list[Span] = []
        if agent is not None:
            left.append((clean(agent.name, 24), "accent"))
            if agent.gates:
                gate = max(agent.gates, key=lambda g: agent.gates[g])
                source = max(agent.sources, key=lambda s: agent.sources[s], default="")
                arrow = f"{source} → {gate}" if source else gate
                right = [(clean(arrow, 32), "dim")]
        return left, right

    def foot(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        if not self.active or self.view.agent is None:
            return (), ()
        stage = STAGES[self.view.stage % len(STAGES)]
        text = MEANINGS[stage]
        if self.view.agent.stages.get(stage) is None:
            text = f"N/A, {self._why(stage)}"
        elif shares := self._causes(stage):
            text = shares
        return [(f"{stage}: ", "head_active"), (text, "dim")], ()

    def _causes(self, stage: str) -> str:
        """What the stage was spent on, the most first; empty if no cause of it is observed."""
        agent = self.view.agent
        whole = agent.stages.get(stage) if agent is not None else None
        if agent is None or stage not in agent.unexplained_ns or not whole or not whole.sum_ns:
            return ""
        found = [
            (stat.sum_ns, f"{name} ({stat.details[0].text})" if stat.details else name)
            for name, stat in agent.causes.items()
            if stat and stat.stage == stage
        ]
        words = [f"{name} {percent(ns / whole.sum_ns)}" for ns, name in sorted(found)[::-1] if ns]
        rest = percent(agent.unexplained_ns[stage] / whole.sum_ns)
        return clean(", ".join([*words, f"rest {rest} (C: all)"]), 200)

    def rows(self, width: int, height: int) -> list[Row]:
        agent = self.view.agent
        if agent is None:
            return [Line(width).add(" no agent is selected", "dim").row()]
        rows = [self._head(width)]
        stages = list(STAGES)
        if height < len(stages) + 2:
            # On a low panel what the kernel adds counts; the sum tells the rest.
            stages = [stage for stage in stages if stage in SLOWPATH_STAGES or height >= 10]
        for stage in stages:
            rows.append(self._stage(agent, stage, width))
        if height >= len(rows) + 1:
            rows.append(self._sum(agent.slowpath, "slowpath", width))
        if height >= len(rows) + 1:
            rows.append(self._sum(agent.step, "step", width))
        return rows

    def _head(self, width: int) -> Row:
        line = Line(width).add("   ").fit("stage", 10, "head")
        for head in ("p50", "p99", "p99.9"):
            line.fit(head, 8, "head", right=True)
        line.fit("target", 8, "head", right=True).add("  ")
        return line.add("share of the tail" if line.left > 17 else "tail", "head").row()

    def _stage(self, agent: Agent, stage: str, width: int) -> Row:
        view = self.view
        here = self.active and STAGES[view.stage % len(STAGES)] == stage
        stat = agent.stages.get(stage)
        line = Line(width).add("▸" if here else " ", "accent").add("▪ ", f"stage.{stage}")
        line.fit(stage, 10, "text")
        if stat is None:
            line.fit(NA, 8, "dim", right=True)
            if stage == STAGES[0] or self.view.reason("chains") == "":
                line.add("  " + self._why(stage), "dim")
            return line.row("cursor" if here else "")
        limit = STAGE_TARGETS_NS.get(stage)
        over = limit is not None and stat.p99_ns is not None and stat.p99_ns > limit
        line.fit(_value(stat, "p50_ns"), 8, right=True)
        line.fit(_value(stat, "p99_ns"), 8, "alarm" if over else "strong", right=True)
        line.fit(_value(stat, "p999_ns"), 8, right=True)
        target = duration(limit) if limit is not None else ""
        line.fit(target, 8, "dim", right=True).add("  ")
        share = agent.tail.shares.get(stage)
        if share is not None:
            line.add(f"{percent(share):>5} ", "text")
            room = min(line.left - 6, 30)
            if room > 3:
                line.add(bar(share, room), f"stage.{stage}")
        if over:
            line.add(" over", "alarm")
        return line.row("cursor" if here else "")

    def _why(self, stage: str) -> str:
        host = self.view.host
        if host is not None and host.mode == "procfs":
            return self.view.reason("chains")
        if stage == "return" and host is not None and host.level == "lite":
            return "in compute: level lite taxes no system call"
        return self.view.reason(stage) or "not measured"

    def _sum(self, stat: Stat, name: str, width: int) -> Row:
        line = Line(width).add(" Σ ", "dim").fit(name, 10, "title")
        for field, role in (("p50_ns", "text"), ("p99_ns", "strong"), ("p999_ns", "text")):
            line.fit(_value(stat, field), 8, role, right=True)
        line.fit("", 8)
        for text in (f"  {stat.count:,} steps, longest {measured(stat.max_ns)}",
                     f"  max {measured(stat.max_ns)}"):  # fmt: skip
            if stat.count and len(text) < line.left:
                line.add(text, "dim")
                break
        return line.row()


def _value(stat: Stat, field: str) -> str:
    return measured(getattr(stat, field), field in stat.estimated)

"""The slowest recent steps of the selected agent, as a waterfall of their stages."""

from __future__ import annotations

from collections.abc import Sequence

from agenttop.model.sample import Exemplar
from agenttop.model.vocabulary import SLOWPATH_STAGES, STAGES
from agenttop.text.ages import ago
from agenttop.text.figures import clean, duration, percent
from agenttop.widgets.paint import Line, Row, Span, blocks
from agenttop.widgets.panel import Panel, window

_SHORT = {"idle_exit": "idle", "softirq": "softirq", "return": "ret"}


def slow_ns(exemplar: Exemplar) -> int:
    """The step's slowpath."""
    return sum(exemplar.stages_ns[STAGES.index(s)] or 0 for s in SLOWPATH_STAGES)


class Slowest(Panel):
    """One bar per step, all on one scale; the chosen one told in words below."""

    _top = 0

    def title(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        exemplars = self.view.exemplars
        left: list[Span] = [("Slowest steps", "title")]
        agent = self.view.agent
        if agent is not None:
            left.append((f" {clean(agent.name, 24)}", "accent"))
        right: list[Span] = []
        if exemplars:
            at = min(self.view.exemplar, len(exemplars) - 1)
            right = [(f"{at + 1} of {len(exemplars)} ", "text"), ("n", "key"), ("/", "dim"),
                     ("p", "key")]  # fmt: skip
        return left, right

    def rows(self, width: int, height: int) -> list[Row]:
        exemplars = self.view.exemplars
        if not exemplars:
            host = self.view.host
            procfs = host is not None and host.mode == "procfs"
            text = f" N/A, {self.view.reason('chains')}" if procfs else " no slow step yet"
            return [Line(width).add(text, "dim").row()]
        at = min(self.view.exemplar, len(exemplars) - 1)
        told = self._told(exemplars[at], width, min(3, max(height - 1, 0)))
        room = height - len(told)
        self._top = window(len(exemplars), at, room, self._top)
        scale = max(map(slow_ns, exemplars)) or 1
        rows = [
            self._bar(exemplar, width, scale, index == at)
            for index, exemplar in enumerate(exemplars[self._top : self._top + room], self._top)
        ]
        if len(rows) < room:
            rows += [Line(width).row()] * (room - len(rows))
        return rows + told

    def _bar(self, exemplar: Exemplar, width: int, scale: int, here: bool) -> Row:
        line = Line(width).add("▸" if here else " ", "accent")
        total = slow_ns(exemplar)
        line.fit(duration(total), 7, "strong" if here else "text", right=True)
        line.add(" ")
        room = max(line.left - 16, 8)
        end = line.used + room
        parts = [
            (
                (exemplar.stages_ns[STAGES.index(stage)] or 0) / scale,
                _SHORT.get(stage, stage),
                f"block.stage.{stage}",
            )
            for stage in SLOWPATH_STAGES
        ]
        spans = blocks(parts, room)
        if not here:
            # Half-high bars for the others: calm, and their rows do not run together.
            spans = [("▄" * len(text), role.removeprefix("block.")) for text, role in spans]
        worst = max(SLOWPATH_STAGES, key=lambda s: exemplar.stages_ns[STAGES.index(s)] or 0)
        share = (exemplar.stages_ns[STAGES.index(worst)] or 0) / (total or 1)
        line.extend(spans).to(end + 1)
        return line.add(f"{worst:<9} ", "dim").add(f"{percent(share):>4}", "dim").row()

    def _told(self, exemplar: Exemplar, width: int, lines: int) -> list[Row]:
        """The chosen step in words: stages, then where and by whom."""
        if lines <= 0:
            return []
        parts = [
            (stage, value) for stage, value in zip(STAGES, exemplar.stages_ns, strict=True) if value
        ]
        # Where room is short the smallest parts are left out first.
        while len(parts) > 1 and sum(len(_told_part(*part)) + 3 for part in parts) > width:
            parts.remove(min(parts, key=lambda part: part[1]))
        first = Line(width).add(" ")
        for stage, value in parts:
            name, _, text = _told_part(stage, value).partition(" ")
            first.add("▪", f"stage.{stage}").add(f"{name} ", "dim").add(f"{text}  ")
        snapshot = self.view.snapshot
        second = Line(width).add(" ")
        if snapshot is not None:
            second.add(ago(snapshot.t_ns - exemplar.t_ns) + " ago", "text")
        second.add(" · tid ", "dim").add(str(exemplar.tid), "text")
        second.add(" · cpu ", "dim").add(str(exemplar.cpu), "text")
        second.add(" · ", "dim").add(clean(exemplar.gate, 24), "text")
        if exemplar.source:
            second.add(" ← ", "dim").add(clean(exemplar.source, 16), "accent")
        if exemplar.waker and second.left > 16:
            second.add(" by ", "dim")
            second.fit(clean(exemplar.waker, 48), min(48, second.left), "text")
        rule = Line(width).to(width, "─", "faint").row()
        return ([rule] if lines > 2 else []) + [first.row(), second.row()][: min(lines, 2)]


def _told_part(stage: str, value: int) -> str:
    return f"{_SHORT.get(stage, stage)} {duration(value)}"

"""The tail over time, on a logarithmic scale, with a mark where a policy was switched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agenttop.store.store import TrendPoint
from agenttop.text.figures import clean, duration
from agenttop.view.state import SLOWPATH_TARGET_NS, View
from agenttop.widgets.braille_plot import Canvas, Scale, Timeline, binned
from agenttop.widgets.paint import Line, Row, Span, size_of
from agenttop.widgets.panel import Panel

#: Spans that the time axis may have, s.
SPANS: Final = (60, 120, 300, 600)
#: Lines of a comparison at most.
MOST: Final = 6
_LABEL: Final = 7
#: Label, role and (time, value) of a line.
_Curve = tuple[str, str, list[tuple[int, int]]]
_PERCENTILES: Final = (("p50_ns", "p50", 2), ("p999_ns", "p99.9", 3), ("p99_ns", "p99", 0))


class Trend(Panel):
    """The slowpath of the selected agent (``compare``: the p99 of the worst agents)."""

    def __init__(self, view: View, *, id: str, compare: bool = False) -> None:
        super().__init__(view, id=id)
        self.compare = compare

        self._lines: list[_Curve] = []
        self._drawn_for: object = None
        self._drawn: list[Row] = []

    def title(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        left: list[Span] = [("Slowpath p99 by agent" if self.compare else "Slowpath", "title")]
        agent = self.view.agent
        if not self.compare and agent is not None:
            left.append((f" {clean(agent.name, 24)}", "accent"))
        right: list[Span] = []
        room = width - size_of(left) - 6
        # The lines on top come last and matter most.
        for label, role, _ in reversed(self._lines):
            spans = [("─ ", role), (f"{label}  ", "dim")]
            if size_of(right) + size_of(spans) <= room:
                right = spans + right
        target: list[Span] = [("·· ", "warn"), ("target", "dim")]
        if right and size_of(right) + size_of(target) <= room:
            right += target
        return left, right

    def rows(self, width: int, height: int) -> list[Row]:
        view, snapshot = self.view, self.view.snapshot
        trends = self._trends()
        oldest = min((trend[0].t_ns for _, _, trend in trends if trend), default=None)
        if snapshot is None or oldest is None or height < 3 or width < _LABEL + 8:
            self._lines, self._drawn_for = [], None
            reason = view.reason("chains")
            text = f" N/A, {reason}" if reason else " no step yet: nothing to draw"
            return [Line(width).add(text, "dim").row()]
        age_s = (snapshot.t_ns - oldest) / 1e9
        span = next((s for s in SPANS if s >= age_s), SPANS[-1])
        timeline = Timeline(snapshot.t_ns, span * 10**9, width - _LABEL - 2)
        # Until time has moved by a whole cell the picture stays: that is most of the cost.
        drawn_for = (width, height, span, timeline.first_dot, [name for name, _, _ in trends],
                     view.selected, len(view.data.markers), view.appearance)  # fmt: skip
        if drawn_for != self._drawn_for:
            self._drawn_for = drawn_for
            self._drawn = self._draw(trends, timeline, span, width, height - 1)
        return list(self._drawn)

    def _trends(self) -> list[tuple[str, str, Sequence[TrendPoint]]]:
        """Label, role and points of what is to be drawn, that on top last."""
        view = self.view
        series = view.appearance.series
        if not self.compare:
            trend = view.data.trend(view.selected) if view.selected is not None else ()
            return [(label, series(at), trend) for _, label, at in _PERCENTILES if trend]
        agents = view.snapshot.agents if view.snapshot else []
        ranked = sorted(agents, key=lambda a: -(a.slowpath.p99_ns or 0))[:MOST]
        # A colour belongs to an agent, not to a rank, or lines would change colour.
        return [
            (clean(agent.name, 12), series(agent.id - 1), view.data.trend(agent.id))
            for agent in sorted(ranked, key=lambda a: (a.id == view.selected, a.id))
        ]

    def _draw(
        self,
        trends: list[tuple[str, str, Sequence[TrendPoint]]],
        timeline: Timeline,
        span: int,
        width: int,
        height: int,
    ) -> list[Row]:
        fields = ["p99_ns"] * len(trends) if self.compare else [f for f, _, _ in _PERCENTILES]
        curves = [
            (label, role, _visible(trend, field, timeline.start_ns))
            for (label, role, trend), field in zip(trends, fields, strict=True)
        ]
        self._lines = [curve for curve in curves if curve[2]]
        scale = Scale.over([value for _, _, curve in self._lines for _, value in curve])
        view = self.view
        canvas = Canvas(timeline.columns, height, scale, view.appearance.ascii_only)
        canvas.level(SLOWPATH_TARGET_NS, "·", "warn")
        marks = self._marks(timeline)
        for column in marks:
            canvas.upright(column, "┊", "marker")
        for _, role, curve in self._lines:
            canvas.line(binned(curve, timeline), role)
        for column, word in marks.items():
            canvas.word(column, word, "marker")
        ticks = scale.ticks(height)
        rows = []
        for y in range(height):
            label = duration(round(ticks[y])).replace(".00", "") if y in ticks else ""
            line = Line(width).fit(label, _LABEL, "dim", right=True)
            line.add("┤" if y in ticks else "│", "faint")
            rows.append(line.extend(canvas.spans(y)).row())
        rows.append(self._axis(width, timeline, span))
        return rows

    def _marks(self, timeline: Timeline) -> dict[int, str]:
        out: dict[int, str] = {}
        for marker in self.view.data.markers:
            column = timeline.column(marker.t_ns)
            if column is not None:
                word = f"{clean(marker.policy, 12)} {'on' if marker.on else 'off'}"
                out[column] = f"{out[column]}, {word}" if column in out else word
        return out

    @staticmethod
    def _axis(width: int, timeline: Timeline, span: int) -> Row:
        line = Line(width).to(_LABEL).add("└", "faint")
        start = line.used
        for part in (1.0, 0.75, 0.5, 0.25):
            seconds = span * part
            at = start + round(timeline.columns * (1 - part))
            label = f"-{seconds:.0f}s" if seconds < 120 else f"-{seconds / 60:g}m"
            if at >= line.used and width - at > 12:
                line.to(at, "─", "faint").add(label, "dim")
        line.to(width - 5, "─", "faint").add(" now", "dim")
        return line.row()


def _visible(points: Sequence[TrendPoint], field: str, since_ns: int) -> list[tuple[int, int]]:
    out = []
    for point in reversed(points):
        if point.t_ns < since_ns:
            break
        value = getattr(point, field)
        if value is not None:
            out.append((point.t_ns, value))
    out.reverse()
    return out

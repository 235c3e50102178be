"""The tail over time, on a logarithmic scale, with a mark where a policy was switched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agenttop.format import clean, duration
from agenttop.screens.state import SLOWPATH_TARGET_NS, TrendPoint, View
from agenttop.widgets.paint import Line, Row, Span
from agenttop.widgets.panel import Panel
from agenttop.widgets.plot import Scale, Timeline, binned, braille, glyph

#: Spans that the time axis may have, s.
SPANS: Final = (60, 120, 300, 600)
#: Lines of a comparison at most.
MOST: Final = 6
_LABEL: Final = 7
_PERCENTILES: Final = (("p50_ns", "p50", 2), ("p999_ns", "p99.9", 3), ("p99_ns", "p99", 0))


class Trend(Panel):
    """The slowpath of the selected agent (``compare``: the p99 of the worst agents)."""

    def __init__(self, view: View, *, id: str, compare: bool = False) -> None:
        super().__init__(view, id=id)
        self.compare = compare

    def title(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        left: list[Span] = [("Slowpath p99 by agent" if self.compare else "Slowpath", "title")]
        agent = self.view.agent
        if not self.compare and agent is not None:
            left.append((f" {clean(agent.name, 24)}", "accent"))
        right: list[Span] = []
        for label, role, _ in self._lines()[:MOST]:
            right += [("─ ", role), (f"{label}  ", "dim")]
        if right:
            right += [("·· ", "warn"), ("target", "dim")]
        return left, right

    def _lines(self) -> list[tuple[str, str, list[tuple[int, int]]]]:
        """Label, role, points of each line; the last is drawn on top."""
        view = self.view
        palette = view.palette
        out: list[tuple[str, str, list[tuple[int, int]]]] = []
        if self.compare:
            if view.snapshot is None:
                return []
            ranked = sorted(view.snapshot.agents, key=lambda a: -(a.slowpath.p99_ns or 0))[:MOST]
            # A colour belongs to an agent, not to a rank, or lines would change colour.
            for agent in sorted(ranked, key=lambda a: a.id == view.selected):
                points = _values(view.data.trend(agent.id), "p99_ns")
                if points:
                    role = palette.series(agent.id - 1)
                    out.append((clean(agent.name, 12), role, points))
            return out
        if view.selected is None:
            return []
        trend = view.data.trend(view.selected)
        for field, label, series in _PERCENTILES:
            points = _values(trend, field)
            if points:
                out.append((label, palette.series(series), points))
        return out

    def rows(self, width: int, height: int) -> list[Row]:
        view = self.view
        lines = self._lines()
        points = [point for _, _, line in lines for point in line]
        plot = height - 1
        if not points or plot < 2 or width < _LABEL + 8 or view.snapshot is None:
            reason = view.reason("chains")
            text = f" N/A, {reason}" if reason else " no step yet: nothing to draw"
            return [Line(width).add(text, "dim").row()]
        end = view.snapshot.t_ns
        age_s = (end - min(t for t, _ in points)) / 1e9
        span = next((s for s in SPANS if s >= age_s), SPANS[-1])
        columns = width - _LABEL - 2
        timeline = Timeline(end, span * 10**9, columns)
        visible = [v for t, v in points if timeline.column(t) is not None]
        scale = Scale.over(visible or [v for _, v in points])
        grids = [(role, braille(binned(line, timeline), scale, plot)) for _, role, line in lines]
        marks = self._marks(timeline)
        target = -1
        if scale.low < SLOWPATH_TARGET_NS < scale.high:
            target = round((1 - scale.place(SLOWPATH_TARGET_NS)) * (plot - 1))
        ticks = scale.ticks(plot)
        cells = [self._cells(y, columns, grids, marks, target) for y in range(plot)]
        _write(cells, marks)
        rows = []
        for y in range(plot):
            label = duration(round(ticks[y])).replace(".00", "") if y in ticks else ""
            line = Line(width).fit(label, _LABEL, "dim", right=True)
            line.add("┤" if y in ticks else "│", "faint")
            rows.append(line.extend(cells[y]).row())
        rows.append(self._axis(width, timeline, span))
        return rows

    def _cells(
        self,
        y: int,
        columns: int,
        grids: list[tuple[str, list[list[int]]]],
        marks: dict[int, str],
        target: int,
    ) -> list[Span]:
        ascii_only = self.view.palette.ascii_only
        spans: list[Span] = []
        for x in range(columns):
            pattern, role = 0, "faint"
            for line_role, grid in grids:
                if grid[y][x]:
                    # One cell has one colour: the line on top gives it, all give dots.
                    pattern, role = pattern | grid[y][x], line_role
            if pattern:
                spans.append((glyph(pattern, ascii_only), role))
            elif x in marks:
                spans.append(("┊", "marker"))
            elif y == target and x % 2:
                spans.append(("·", "warn"))
            else:
                spans.append((" ", role if spans and spans[-1][1] == role else "faint"))
        return spans

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


def _values(points: Sequence[TrendPoint], field: str) -> list[tuple[int, int]]:
    return [(p.t_ns, value) for p in points if (value := getattr(p, field)) is not None]


def _write(cells: list[list[Span]], marks: dict[int, str]) -> None:
    """Writes each mark's words beside its line, in the highest row where nothing is drawn."""
    for column, word in sorted(marks.items()):
        for row in cells:
            if any(
                _written(row, start, word)
                for start in (column + 1, column - len(word))
                if 0 <= start <= len(row) - len(word)
            ):
                break


def _written(row: list[Span], start: int, word: str) -> bool:
    if any(row[x][0] not in " ·" for x in range(start, start + len(word))):
        return False
    for x, character in enumerate(word, start):
        row[x] = (character, "marker")
    return True

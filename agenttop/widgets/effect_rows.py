"""Before and after as rows of a popup: a toggle's effect, a trial's result, what it cost."""

from __future__ import annotations

from agenttop.model.sample import Change, Cost, Effect
from agenttop.render.effect_text import (
    MEASURES,
    PERCENTILES,
    Measures,
    costs,
    direction,
    interval,
    lacking,
    times,
)
from agenttop.stats.permutation_test import Compared
from agenttop.stats.rounds import MIN_ROUNDS
from agenttop.text.figures import clean, measured
from agenttop.trial.trial import Result
from agenttop.widgets.paint import Line, Row

_ROLES = {-1: "good", 0: "text", 1: "alarm"}


def effect_rows(effect: Effect, name: str, width: int) -> list[Row]:
    """What the last toggle changed for an agent."""
    word = "on" if effect.on else "off"
    rows = _head(f"{clean(name, 32)}: before and after it was switched {word}", width)
    rows.append(_columns("", width))
    rows += _changes(effect.measures, width)
    text = f"{effect.steps_before:,} steps before, {effect.steps_after:,} after; e tries it fairly"
    rows.append(Line(width).add("  ").fit(text, width - 3, "dim").row())
    return rows + _costs(effect.cost, width)


def trial_rows(result: Result, width: int) -> list[Row]:
    """What a trial showed for an agent."""
    agent = result.agents[0]
    rows = _head(f"{clean(agent.name, 32)}: trial, {result.rounds} rounds", width)
    text = f"on, off and control {result.block_s:g} s each in random order, seed {result.seed}"
    rows.append(Line(width).add("  ").fit(text, width - 3, "dim").row())
    if result.ended:
        text = f"{clean(result.ended, 60)} before {result.rounds_planned} rounds were made"
        rows.append(Line(width).add("  ").fit(text, width - 3, "warn").row())
    rows += [_sides("on", width), *_changes(agent.measures, width)]
    if result.rounds < MIN_ROUNDS:
        text = f"no verdict from under {MIN_ROUNDS} rounds"
        rows.append(Line(width).add("  ").add(text, "warn").row())
    else:
        rows += _head("The same for off and control: nothing differs but chance", width)
        rows += [_sides("control", width), *_changes(agent.control, width)]
    return rows + _costs(result.cost, width)


def panel_rows(measures: Measures, name: str, width: int, room: int) -> list[Row]:
    """For the panel: every figure where there is room for it, else the ratios in three rows."""
    if room >= len(MEASURES) * len(PERCENTILES) + 1:
        return [_columns(f" {name}", width), *_changes(measures, width)]
    if room < len(PERCENTILES):
        return []
    rows = []
    for percentile, label in PERCENTILES.items():
        line = Line(width).add(" ").fit(label, 7, "dim")
        for measure, short in MEASURES.items():
            found = measures[measure][percentile]
            text = times(found)
            if line.left < len(short) + 1 + len(text):
                break  # a piece of a figure would be another figure
            line.add(f"{short} ", "dim")
            line.fit(text, 13, _ROLES[direction(found)] if found.ratio else "dim")
        rows.append(line.row())
    return rows


def _sides(other: str, width: int) -> Row:
    line = Line(width).fit("", 14).fit("off", 8, "head", right=True).add("   ")
    return line.fit(other, 7, "head", right=True).add("  change", "head").row()


def _columns(title: str, width: int) -> Row:
    line = Line(width).fit(title, 14, "head").fit("before", 8, "head", right=True).add("   ")
    return line.fit("after", 7, "head", right=True).add("  change", "head").row()


def _head(text: str, width: int) -> list[Row]:
    return [Line(width).row(), Line(width).add(" ").fit(text, width - 2, "title").row()]


def _changes(measures: Measures, width: int) -> list[Row]:
    rows = []
    for measure, short in MEASURES.items():
        for percentile, name in PERCENTILES.items():
            found = measures[measure][percentile]
            line = Line(width).add("  ").fit(f"{short} {name}", 12, "dim")
            line.fit(measured(found.before_ns), 8, "text", right=True).add(" → ", "faint")
            line.fit(measured(found.after_ns), 7, "text", right=True).add("  ")
            _ratio(line, found)
            rows.append(line.row())
    return rows


def _ratio(line: Line, found: Change) -> None:
    if found.ratio is None:
        line.fit(lacking(found), line.left, "dim")
        return
    role = _ROLES[direction(found)]
    line.fit(times(found), 14, role).fit(interval(found), 12, "dim")
    word = {-1: "lower", 0: "within chance", 1: "higher"}[direction(found)]
    if isinstance(found, Compared):
        word = found.verdict
    line.fit(word, line.left, role)


def _costs(cost: Cost, width: int) -> list[Row]:
    rows = _head("What it cost", width)
    for name, text in costs(cost):
        rows.append(Line(width).add("  ").fit(name, 14, "dim").fit(text, width - 17, "text").row())
    return rows

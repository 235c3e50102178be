"""What does the latency window, or another policy, cost in energy, and what does it bring?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agenttop.model.vocabulary import MEASURES
from agenttop.render.effect_text import lacking
from agenttop.report.estimate import (
    Estimate,
    nothing,
    percentile,
    quotient,
    ratio_of_sums,
)
from agenttop.report.figure_text import said, value
from agenttop.report.model import Answer, Figure, Row, Table, Unit
from agenttop.report.question_data import Data
from agenttop.report.questions.shared import no_steps, not_measured
from agenttop.report.time_blocks import Block
from agenttop.stats.before_after import Counts, change, freedom, student
from agenttop.store.power import power

KEY = "window"
QUESTION = (
    "What does the latency window (or another policy) cost in energy, and what does it bring?"
)
_COMPARED = (("slowpath", "p50"), ("slowpath", "p99"), ("step", "p50"), ("step", "p99"))
_TRY = "agenttop report --switch window --for 120 switches it on and off in random order."


def answer(data: Data) -> Answer:
    """On against off, for each policy that was switched meanwhile."""
    if (cannot := no_steps(data, KEY, QUESTION)) is not None:
        return cannot
    settled = [block for block in data.blocks if block.on is not None]
    patterns: dict[tuple[bool, ...], list[str]] = {}
    for name in sorted({name for block in settled for name in block.on or ()}):
        pattern = tuple(name in (block.on or ()) for block in settled)
        patterns.setdefault(pattern, []).append(name)
    if not patterns:
        return not_measured(KEY, QUESTION, "no policy was on", _TRY)
    compared: list[tuple[str, list[list[Block]]]] = []
    always: list[tuple[str, list[list[Block]]]] = []
    for pattern, names in patterns.items():
        sides = [
            [block for block, is_on in zip(settled, pattern, strict=True) if is_on == on]
            for on in (False, True)
        ]
        (compared if all(sides) else always).append((" + ".join(names), sides))
    if not compared:
        held = ", ".join(name for name, _ in always)
        made = not_measured(
            KEY,
            QUESTION,
            f"{held} was on in all of the time, so there is nothing to compare it with",
            _TRY,
            [_idle("idle_on", "deeper idle while on", always[0][1][1]),
             _watts("watts_on", "power while on", always[0][1][1], data)],
        )  # fmt: skip
        made.how = "Shares of the time of all CPUs; power by RAPL."
        return made
    tables, figures, said_of, no_power = [], [], [], None
    for name, (off, on) in compared:
        rows = [_percentiles(measure, p, off, on) for measure, p in _COMPARED]
        rows += [_deep(off, on), _power(off, on, data)]
        no_power = no_power or rows[-1].figures[2].missing
        columns = ["off", "on", "on against off"]
        tables.append(Table(f"{name}: off and on", "figure", columns, rows))
        tail, deep, watts = rows[1].figures, rows[-2].figures[2], rows[-1].figures[2]
        figures += [_named(each, name) for each in (tail[2], deep, watts)]
        moved = f"slowpath p99 {value(tail[0])} off, {value(tail[1])} on"
        if tail[2].value is not None:
            moved += f": {said(tail[2])}"
            if (tail[2].low or 0) <= 1 <= (tail[2].high or 0):
                moved += ", which chance may have done"
        cost = f"deeper idle {said(deep)}" if deep.value is not None else "deeper idle N/A"
        energy = said(watts) if watts.value is not None else f"N/A ({watts.missing})"
        said_of.append(f"{name}: {moved}; cost: {cost} of the CPUs' time; power {energy}")
    return Answer(
        key=KEY,
        question=QUESTION,
        state="partly measured" if no_power else "measured",
        answer=". ".join(said_of) + ".",
        how="Blocks of time with the policy on against those with it off, without the second after"
        " a switch; percentiles from merged counts of the agents that are not in the background."
        " If chance did not decide when it was on (as --switch has it), something else may have"
        " changed with it; agenttop policy trial adds a control.",
        figures=figures,
        tables=tables,
        missing=no_power and f"power: {no_power}",
        instead="A machine with RAPL (/sys/class/powercap, as root), or idle states that tell"
        " their power."
        if no_power
        else None,
    )


def _named(figure: Figure, policy: str) -> Figure:
    import msgspec

    return msgspec.structs.replace(figure, name=f"{policy}: {figure.name}")


def _counts(blocks: Sequence[Block], measure: str) -> Counts:
    row = MEASURES.index(measure)
    return np.array([block.counts.row(row) for block in blocks])


def _percentiles(measure: str, which: str, off: Sequence[Block], on: Sequence[Block]) -> Row:
    before, after = _counts(off, measure), _counts(on, measure)
    name = f"{measure} {which}"
    found = change(before, after, which)
    ratio = Figure(
        f"{measure}_{which}_times",
        f"{name}, on over off",
        "times",
        found.ratio,
        found.low,
        found.high,
        n=min(int(before.sum()), int(after.sum())),
        blocks=min(len(off), len(on)),
        missing=None if found.ratio is not None else lacking(found),
    )
    return Row(
        name,
        [
            percentile(f"{measure}_{which}_off_ns", "off", before, which),
            percentile(f"{measure}_{which}_on_ns", "on", after, which),
            ratio,
        ],
    )


def _deeper(blocks: Sequence[Block]) -> tuple[list[int], list[int]]:
    """Time in all idle states but the shallowest, and all CPUs' time, ns."""
    deep = [
        sum(sum(times[1:]) for times in block.states_ns.values() if len(times) > 1)
        for block in blocks
    ]
    whole = [
        block.length_ns * sum(len(times) > 1 for times in block.states_ns.values())
        for block in blocks
    ]
    return deep, whole


def _idle(key: str, name: str, blocks: Sequence[Block]) -> Figure:
    deep, whole = _deeper(blocks)
    seconds = round(sum(block.length_ns for block in blocks) / 1e9)
    return quotient(
        key, name, deep, whole, n=seconds, of="seconds", missing="no idle states but the shallowest"
    )


def _deep(off: Sequence[Block], on: Sequence[Block]) -> Row:
    sides = [_idle("idle_off", "off", off), _idle("idle_on", "on", on)]
    found = [ratio_of_sums(*_deeper(side)) for side in (off, on)]
    made = _difference("idle_difference", "deeper idle, on less off", "points", *found)
    made.n, made.of, made.missing = min(s.n for s in sides), "seconds", sides[0].missing
    return Row("deeper idle", [*sides, made])


def _watts(key: str, name: str, blocks: Sequence[Block], data: Data) -> Figure:
    seconds = [block.length_ns / 1e9 for block in blocks]
    found = [power([block], data.host) for block in blocks]
    missing = next((each.missing for each in found if each.watts is None), None)
    if missing is not None or not blocks:
        return nothing(key, name, "watts", missing or "no block of time", "seconds")
    joules = [(each.watts or 0.0) * s for each, s in zip(found, seconds, strict=True)]
    made = quotient(key, name, joules, seconds, unit="watts", n=round(sum(seconds)), of="seconds")
    made.estimated = any(each.estimated for each in found)
    return made


def _power(off: Sequence[Block], on: Sequence[Block], data: Data) -> Row:
    sides = [_watts("watts_off", "off", off, data), _watts("watts_on", "on", on, data)]
    if any(side.value is None for side in sides):
        missing = next(side.missing for side in sides if side.value is None)
        made = nothing("watts_difference", "power, on less off", "watts", missing or "", "seconds")
        return Row("power", [*sides, made])
    estimates = [
        Estimate(
            side.value or 0.0,
            None
            if side.high is None or side.value is None
            else (side.high - side.value) / student(side.blocks - 1),
            side.blocks,
        )
        for side in sides
    ]
    made = _difference("watts_difference", "power, on less off", "watts", *estimates)
    made.n, made.of = min(side.n for side in sides), "seconds"
    made.estimated = any(side.estimated for side in sides)
    return Row("power", [*sides, made])


def _difference(
    key: str, name: str, unit: Unit, off: Estimate | None, on: Estimate | None
) -> Figure:
    """On less off, by Welch."""
    figure = Figure(key, name, unit, None)
    if off is None or on is None:
        return figure
    figure.value = on.value - off.value
    figure.blocks = min(off.blocks, on.blocks)
    if off.error is not None and on.error is not None:
        variances = [off.error**2, on.error**2]
        half = student(freedom(variances, [off.blocks, on.blocks])) * float(np.sqrt(sum(variances)))
        figure.low, figure.high = figure.value - half, figure.value + half
    return figure

"""A Report as plain text. No line is wider than asked for, as long as that is possible."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator

from agenttop.report.figure_text import basis, interval, plural, value
from agenttop.report.model import Answer, Figure, Report, Table, Whole
from agenttop.text.figures import cut, fit, percent

_LEAST = 40
#: Room for a row's label.
_LABEL = 28


def render(report: Report, width: int = 100) -> str:
    """The whole report."""
    width = max(width, _LEAST)
    lines = [line for each in head(report) for line in textwrap.wrap(each, width)]
    for number, answer in enumerate(report.answers, 1):
        lines += ["", *_answer(number, answer, width)]
    return "\n".join(cut(line, width).rstrip() for line in lines) + "\n"


def head(report: Report) -> Iterator[str]:
    """What was measured, and what a reader needs to believe it."""
    host, trust = report.host, report.trust
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.wall_s))
    source = "live" if report.source == "live" else f"recording {report.source}"
    yield (
        f"agenttop {report.program} report of {host.name} ({host.kernel},"
        f" {plural(host.cpus, 'CPU')}, level {host.level}, {host.mode}), {source}, until {when}"
    )
    yield (
        f"{report.seconds:.1f} s in {plural(report.blocks, 'block')} of about {report.block_s:g} s,"
        f" {plural(trust.steps, 'step')} of {plural(len(report.agents), 'agent')};"
        f" lost {trust.lost:,}; unattributed {percent(trust.unattributed_ratio)};"
        f" agenttop's own CPU {percent(trust.self_ratio)}"
        + (f"; {plural(trust.slots_full, 'agent')} found no slot" if trust.slots_full else "")
    )
    yield "Intervals are 95 %, from a bootstrap over the blocks of time; ~ marks an estimate."


def _answer(number: int, answer: Answer, width: int) -> Iterator[str]:
    yield from textwrap.wrap(f"{number}. {answer.question}", width, subsequent_indent="   ")
    yield from _indented(answer.answer, width)
    if answer.figures:
        yield ""
        yield from _figures(answer.figures, width)
    for whole in answer.wholes:
        yield from _indented(_shares(whole), width)
    for table in answer.tables:
        yield ""
        yield from _table(table, width)
    if answer.missing and answer.state != "not measured":
        yield from _indented(f"Not measured: {answer.missing}.", width)
    if answer.instead:
        yield from _indented(f"How it could be: {answer.instead}", width)
    if answer.how:
        yield from _indented(f"How: {answer.how}", width)


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="   ", subsequent_indent="   ")


def _shares(whole: Whole) -> str:
    parts = ", ".join(f"{part.name} {percent(part.ratio)}" for part in whole.parts)
    return f"{whole.title}: {parts}"


def _figures(figures: list[Figure], width: int) -> Iterator[str]:
    names = min(max(len(each.name) for each in figures), max(width - 45, 16))
    for each in figures:
        told = interval(each)
        rest = each.missing or "" if each.value is None else basis(each)
        line = f"   {fit(each.name, names)} {fit(value(each), 9, right=True)}"
        yield f"{line}  {fit(told, 19)} {rest}"


def _table(table: Table, width: int) -> Iterator[str]:
    yield f"   {table.title}"
    heads = table.columns
    cells = [[_cell(each) for each in row.figures] for row in table.rows]
    if max(sum(map(len, row)) + 2 * len(row) for row in cells) > width - _LABEL:
        # Too wide with their intervals, which the other formats have.
        cells = [[value(each) for each in row.figures] for row in table.rows]
    widths = [max(len(name), *(len(row[at]) for row in cells)) for at, name in enumerate(heads)]
    first = max(len(table.of), *(len(row.label) for row in table.rows))
    first = min(first, max(width - 3 - sum(widths) - 2 * len(widths), 20))

    def line(label: str, texts: list[str]) -> str:
        rest = [fit(each, wide, right=True) for each, wide in zip(texts, widths, strict=True)]
        return "   " + "  ".join([fit(label, first), *rest])

    yield line(table.of.upper(), heads)
    for row, texts in zip(table.rows, cells, strict=True):
        yield line(row.label, texts)


def _cell(figure: Figure) -> str:
    told = interval(figure)
    return f"{value(figure)} ({told})" if told else value(figure)

"""A Report as Markdown (GitHub's): hostile names stay text in it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from agenttop.report.figure_text import amount, basis, interval, value
from agenttop.report.formats import text
from agenttop.report.model import Answer, Figure, Report, Table

#: What means something within a line, or begins HTML, an entity or a formula.
_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~&$])")
#: What GitHub makes a link of by itself.
_LINK = re.compile(r"(?i)(www)\.|(https?|ftp|mailto|xmpp):")


def escape(words: str) -> str:
    """Text within a line that Markdown shows as it is, also in a table."""
    escaped = _SPECIAL.sub(r"\\\1", words)
    return _LINK.sub(lambda m: f"{m[1]}&#46;" if m[1] else f"{m[2]}&#58;", escaped)


def render(report: Report) -> str:
    """The whole report."""
    lines = ["# agenttop report", ""]
    for each in text.head(report):
        lines += [escape(each), ""]
    for answer in report.answers:
        lines += _answer(answer)
    return "\n".join(lines).rstrip("\n") + "\n"


def _answer(answer: Answer) -> Iterator[str]:
    yield f"## {escape(answer.question)}"
    yield ""
    yield f"**{escape(answer.answer)}**"
    yield ""
    if answer.figures:
        yield from _rows(
            ["figure", "value", "95 % interval", "of"],
            [
                [each.name, value(each), interval(each), each.missing or basis(each)]
                for each in answer.figures
            ],
        )
    for whole in answer.wholes:
        yield from _rows(
            [whole.title, "share"],
            [[part.name, amount("ratio", part.ratio)] for part in whole.parts],
        )
    for table in answer.tables:
        yield f"{escape(table.title)}:"
        yield ""
        yield from _table(table)
    if answer.missing and answer.state != "not measured":
        yield f"Not measured: {escape(answer.missing)}."
        yield ""
    if answer.instead:
        yield f"How it could be: {escape(answer.instead)}"
        yield ""
    if answer.how:
        yield f"How: {escape(answer.how)}"
        yield ""


def _table(table: Table) -> Iterator[str]:
    heads = [table.of, *table.columns]
    return _rows(heads, [[row.label, *map(_cell, row.figures)] for row in table.rows])


def _cell(figure: Figure) -> str:
    told = interval(figure)
    return f"{value(figure)} ({told})" if told else value(figure)


def _rows(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield _line(heads)
    yield "|" + " --- |" * len(heads)
    for row in rows:
        yield _line(row)
    yield ""


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"

"""A Report as one HTML file: no scripts, nothing from elsewhere, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from importlib import resources

from agenttop.report.figure_text import basis, interval, value
from agenttop.report.formats import plots, text
from agenttop.report.model import Answer, Figure, Report, Table

_STATES = {
    "measured": "measured",
    "partly measured": "partly",
    "not measured": "not",
}


def render(report: Report) -> str:
    """The whole document."""
    style = resources.files(__package__).joinpath("report.css").read_text("utf-8")
    first, *rest = text.head(report)
    title = escape(f"agenttop report: {report.host.name}")
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Even if a name got past the escaping: nothing runs and nothing is fetched.
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="color-scheme" content="light dark">',
        f"<title>{title}</title>",
        f"<style>\n{style}</style>",
        "</head>",
        "<body>",
        "<header>",
        "<h1>agenttop report</h1>",
        f'<p class="lead">{escape(first)}</p>',
        *(f"<p>{escape(each)}</p>" for each in rest),
        "</header>",
        "<main>",
        *_contents(report),
        *_trend(report),
        *(line for answer in report.answers for line in _answer(answer)),
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _contents(report: Report) -> Iterator[str]:
    yield '<nav aria-label="questions"><ol>'
    for answer in report.answers:
        state = _STATES[answer.state]
        yield (
            f'<li class="{state}"><a href="#{escape(answer.key)}">{escape(answer.question)}</a>'
            f' <span class="state">{escape(answer.state)}</span></li>'
        )
    yield "</ol></nav>"


def _trend(report: Report) -> Iterator[str]:
    drawn = plots.trend(report.trend)
    if drawn:
        yield '<section id="trend"><h2>The slowpath while it was measured</h2>'
        yield f"<figure>{drawn}<figcaption>{plots.TREND_CAPTION}</figcaption></figure>"
        yield "</section>"


def _answer(answer: Answer) -> Iterator[str]:
    yield f'<section id="{escape(answer.key)}" class="{_STATES[answer.state]}">'
    yield (f'<h2>{escape(answer.question)} <span class="state">{escape(answer.state)}</span></h2>')
    yield f'<p class="answer">{escape(answer.answer)}</p>'
    for whole in answer.wholes:
        yield f"<figure>{plots.shares(whole)}</figure>"
    if answer.figures:
        yield from _figures(answer.figures)
    for table in answer.tables:
        yield from _table(table)
    if answer.missing and answer.state != "not measured":
        yield f'<p class="missing"><b>Not measured:</b> {escape(answer.missing)}.</p>'
    if answer.instead:
        yield f'<p class="missing"><b>How it could be:</b> {escape(answer.instead)}</p>'
    if answer.how:
        yield "<details><summary>How it was measured</summary>"
        yield f"<p>{escape(answer.how)}</p></details>"
    yield "</section>"


def _figures(figures: list[Figure]) -> Iterator[str]:
    yield '<div class="wide"><table class="figures"><thead><tr><th scope="col">figure</th>'
    yield '<th scope="col" class="n">value</th><th scope="col" class="n">95 % interval</th>'
    yield '<th scope="col" class="plot"></th><th scope="col">of</th></tr></thead><tbody>'
    scales = plots.scales(figures)
    for each in figures:
        rest = escape(each.missing or "") if each.value is None else escape(basis(each))
        yield (
            f'<tr><th scope="row">{escape(each.name)}</th><td class="n">{escape(value(each))}</td>'
            f'<td class="n">{escape(interval(each))}</td>'
            f'<td class="plot">{plots.whisker(each, scales[each.unit])}</td><td>{rest}</td></tr>'
        )
    yield "</tbody></table></div>"


def _table(table: Table) -> Iterator[str]:
    heads = "".join(f'<th scope="col" class="n">{escape(each)}</th>' for each in table.columns)
    yield f"<h3>{escape(table.title)}</h3>"
    yield f'<div class="wide"><table><thead><tr><th scope="col">{escape(table.of)}</th>{heads}</tr>'
    yield "</thead><tbody>"
    for row in table.rows:
        cells = "".join(f'<td class="n">{_cell(each)}</td>' for each in row.figures)
        yield f'<tr><th scope="row">{escape(row.label)}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def _cell(figure: Figure) -> str:
    told = interval(figure)
    small = f"<small>{escape(told)}</small>" if told else ""
    why = f' title="{escape(figure.missing)}"' if figure.missing else ""
    return f"<span{why}>{escape(value(figure))}</span>{small}"

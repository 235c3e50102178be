"""What this machine offers to agenttop, and what is lost where something is missing.

Changes nothing. ``--check`` makes it a test: exit 1 if step chains cannot be
measured here.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap

import msgspec

from agenttop.doctor.report import Item, Report, banner, examine


def configure(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 if something that step chains need is missing"
    )


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    report = examine(deep=True)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print(render(report, _width()))
    return 1 if args.check and not report.chains else 0


def _width() -> int | None:
    """Columns of the terminal; None where the output goes elsewhere."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return None


def render(report: Report, width: int | None = None) -> str:
    """The report as text, one item a line; longer ones are folded when there is a width."""
    title = max(len(item.title) for item in report.items)
    lines = _fold("agenttop doctor: ", f"{report.host}, Linux {report.kernel}", width)
    group = ""
    for item in report.items:
        if item.group != group:
            group = item.group
            lines += ["", group]
        head = f"  {item.title:<{title}}  {item.status:<7}  "
        lines += _fold(head, _told(item), width)
    lines.append("")
    lines += _fold("verdict: ", report.verdict, width)
    if unlock := banner(report):
        lines += _fold("next: ", unlock, width)
    return "\n".join(lines)


def _told(item: Item) -> str:
    parts = [item.detail]
    if item.lost:
        parts.append(f"lost: {item.lost}")
    if item.remedy:
        parts.append(f"to do: {item.remedy}")
    return "; ".join(part for part in parts if part)


def _fold(head: str, text: str, width: int | None) -> list[str]:
    if width is None or len(head) + len(text) <= width:
        return [(head + text).rstrip()]
    # On a very narrow terminal the text goes below its title.
    indent = " " * (len(head) if width - len(head) >= 24 else 4)
    if len(indent) < len(head):
        return [
            head.rstrip()[:width],
            *textwrap.wrap(text, max(width, 12), initial_indent=indent, subsequent_indent=indent),
        ]
    return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=indent)

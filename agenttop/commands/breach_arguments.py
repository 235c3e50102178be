"""``--on-breach`` and what belongs to it, for the commands that measure."""

from __future__ import annotations

import argparse

from agenttop.commands.arguments import number
from agenttop.flight.breach_watch import KEEP_S


def add(parser: argparse.ArgumentParser) -> None:
    """``--on-breach`` and what belongs to it."""
    group = parser.add_argument_group("flight recorder")
    group.add_argument(
        "--on-breach",
        action="append",
        default=[],
        metavar="CONDITION",
        help="write the last seconds to a file when it comes true: [AGENT:][step|slowpath "
        "]p50|p99|p999>DURATION, as 'p99>2ms' (repeatable)",
    )
    group.add_argument(
        "--breach-keep",
        type=number(1, 3600),
        default=KEEP_S,
        metavar="SECONDS",
        help="at least so many of them (%(default)g)",
    )
    group.add_argument(
        "--breach-dir", metavar="DIR", help="write there ($XDG_STATE_HOME/agenttop/breaches)"
    )

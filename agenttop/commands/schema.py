"""Print the JSON Schema of what ``agenttop snapshot`` or ``agenttop report`` writes as JSON."""

from __future__ import annotations

import argparse
import json
from typing import Final

DOCUMENTS: Final = ("snapshot", "report")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "document", nargs="?", choices=DOCUMENTS, default=DOCUMENTS[0], help="(%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from agenttop.render.json_schema import SNAPSHOT, schema
    from agenttop.report.schema import REPORT

    print(json.dumps(schema(REPORT if args.document == "report" else SNAPSHOT), indent=2))
    return 0

"""Print the JSON Schema of what ``agenttop snapshot`` or ``agenttop report`` writes as JSON."""

from __future__ import annotations

import argparse
import json


def configure(parser: argparse.ArgumentParser) -> None:
    from agenttop.render.snapshot_json import DOCUMENTS

    parser.add_argument(
        "document", nargs="?", choices=DOCUMENTS, default=DOCUMENTS[0], help="(%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from agenttop.render.snapshot_json import schema

    print(json.dumps(schema(args.document), indent=2))
    return 0

"""Print the JSON Schema of what ``agenttop snapshot --format json`` writes."""

from __future__ import annotations

import argparse
import json


def configure(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from agenttop.jsonout import schema

    print(json.dumps(schema(), indent=2))
    return 0

"""Snapshots as JSON."""

from __future__ import annotations

from typing import Final

import msgspec

from agenttop.model.snapshot import Snapshot
from agenttop.text.figures import clean_all

#: Signs of a text; a whole distribution (hdr) has fewer.
LONGEST: Final = 1 << 20


def encode(shot: Snapshot, indent: int = 2) -> bytes:
    """One JSON document, ending in a line end. What is not available is null, never 0.

    Names of processes and devices are hostile: it is fit for a terminal as it is.
    """
    document = clean_all(msgspec.to_builtins(shot), LONGEST)
    return msgspec.json.format(msgspec.json.encode(document), indent=indent) + b"\n"

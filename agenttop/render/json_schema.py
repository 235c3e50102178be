"""The JSON Schema of what agenttop writes.

It is made from the types of what is written; the
descriptions are the ``#:`` comments beside their fields, and the units follow
from the names' suffixes.
"""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any, Final, NamedTuple

import msgspec

from agenttop.model import sample, snapshot
from agenttop.model.snapshot import SCHEMA_NAME, SCHEMA_VERSION, Snapshot
from agenttop.model.vocabulary import (
    CAUSE_NAMES,
    COMPUTE_PARTS,
    DETAILS,
    GATES,
    SLOWPATH_STAGES,
    SOURCES,
    STAGES,
)
from agenttop.step import CLASSES

#: Suffix of a name -> its unit.
UNITS: Final = {
    "per_s": "per second",
    "_ns": "nanoseconds",
    "_us": "microseconds",
    "_khz": "kilohertz",
    "_ratio": "share, 0..1",
    "_s": "seconds",
}
#: Fields that stand there only when asked for.
OPTIONAL: Final = ("hdr",)
#: Field -> the words that its keys are.
KEYS: Final = {
    "stages": STAGES,
    "shares": SLOWPATH_STAGES,
    "sources": SOURCES,
    "gates": GATES,
    "compute_ns": COMPUTE_PARTS,
    "causes": CAUSE_NAMES,
    "unexplained_ns": STAGES,
    "label": tuple(dict.fromkeys(name for one in DETAILS.values() for name in one.label)),
    "sums": tuple(dict.fromkeys(name for one in DETAILS.values() for name in one.sums)),
    "deadlines": CLASSES,
}
_FIELD: Final = re.compile(r"^ {4}(\w+):")


class Document(NamedTuple):
    """A JSON document that agenttop writes."""

    root: type
    #: Where its types are.
    modules: tuple[ModuleType, ...]
    name: str
    version: int
    description: str


SNAPSHOT: Final = Document(
    Snapshot,
    (sample, snapshot),
    SCHEMA_NAME,
    SCHEMA_VERSION,
    "What agenttop measured over an interval. null: not available here"
    " (host.missing says why), or a percentile that no sample lies beyond (p99 of under 100"
    " steps); values named in estimated rest on fewer than 5 samples beyond them, those in"
    " over_range are lower bounds.",
)


def schema(document: Document = SNAPSHOT) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a document."""
    _, parts = msgspec.json.schema_components([document.root], ref_template="#/$defs/{name}")
    for module in document.modules:
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if name in parts and kind.__module__ == module.__name__:
                _describe(parts[name], kind)
    for part in parts.values():
        _complete(part)
    body = dict(parts.pop(document.root.__name__))
    body["properties"]["schema"]["const"] = document.name
    body["properties"]["version"]["const"] = document.version
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:agenttop:{document.name}:{document.version}",
        **body,
        "title": f"{document.name} {document.version}",
        "description": document.description,
        "$defs": parts,
    }


def _complete(part: dict[str, Any]) -> None:
    """What is always written is required; where keys are words of ours, only those may stand."""
    fields = part.get("properties", {})
    part["required"] = [name for name in fields if name not in OPTIONAL]
    for name, field in fields.items():
        field.pop("default", None)
        if name in KEYS:
            field["propertyNames"] = {"enum": list(KEYS[name])}


def _describe(part: dict[str, Any], kind: type) -> None:
    comments = field_comments(kind)
    for name, field in part.get("properties", {}).items():
        unit = next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")
        text = comments.get(name, "")
        if unit:
            text = f"{text} [{unit}]".strip()
        if text:
            field["description"] = text


def field_comments(kind: type) -> dict[str, str]:
    """Field -> the ``#:`` comment above it; nothing where the source is not at hand."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return {}
    found: dict[str, str] = {}
    comment: list[str] = []
    for line in source.splitlines():
        text = line.strip()
        if text.startswith("#:"):
            comment.append(text[2:].strip())
        elif match := _FIELD.match(line):
            if comment:
                found[match[1]] = " ".join(comment)
            comment = []
        else:
            comment = []
    return found

"""A report as a JSON document."""

from __future__ import annotations

from typing import Final

from agenttop.render.json_schema import Document
from agenttop.report import model

REPORT: Final = Document(
    model.Report,
    (model,),
    model.SCHEMA_NAME,
    model.SCHEMA_VERSION,
    "Answers to the questions about agents' tail latency. null: not available, or not"
    " measured (missing says why).",
)

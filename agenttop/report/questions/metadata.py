"""How often does file metadata gate steps, and for how long?"""

from __future__ import annotations

from agenttop.report.data import Data
from agenttop.report.model import Answer
from agenttop.report.questions import causes

KEY = "metadata"
QUESTION = "How often does file metadata (openat, statx, getdents64) gate steps, and for how long?"


def answer(data: Data) -> Answer:
    """From the cause of file metadata, in so far as it was observed."""
    return causes.answer(
        KEY,
        QUESTION,
        data,
        "metadata",
        "The system-call events of openat, statx, getdents64 and their like, timed in each step"
        " (level full), tell it; what they cost stands in compute until then.",
    )

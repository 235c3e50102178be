"""How often do page faults gate steps, and for how long?"""

from __future__ import annotations

from agenttop.report.model import Answer
from agenttop.report.question_data import Data
from agenttop.report.questions import cause_figures

KEY = "faults"
QUESTION = "How often do page faults gate steps, and for how long?"


def answer(data: Data) -> Answer:
    """From the causes of page faults, in so far as they were observed."""
    return cause_figures.answer(
        KEY,
        QUESTION,
        data,
        "fault",
        "With --causes lite they are observed (a live report does so by itself, agenttop record"
        " when asked); without that what faults cost stands in compute.",
    )

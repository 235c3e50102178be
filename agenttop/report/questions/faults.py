"""How often do page faults gate steps, and for how long?"""

from __future__ import annotations

from agenttop.report.blocks import Data
from agenttop.report.model import Answer
from agenttop.report.questions import causes

KEY = "faults"
QUESTION = "How often do page faults gate steps, and for how long?"


def answer(data: Data) -> Answer:
    """From the causes minor_fault and major_fault, when steps carry them."""
    return causes.answer(
        KEY,
        QUESTION,
        data,
        ("minor_fault", "major_fault"),
        "The tracepoint exceptions:page_fault_user and the fault's end, timed in each step, would"
        " tell it; what faults cost stands in compute until then.",
    )

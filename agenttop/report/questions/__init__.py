"""A file per question: ``answer(data) -> Answer``.

A new question is a file here and a line in QUESTIONS. What cannot be measured
says so (``common.not_measured``) with how it could be; it never guesses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agenttop.report.model import Answer
from agenttop.report.question_data import Data
from agenttop.report.questions import (
    budget,
    deferred,
    faults,
    frequency,
    idle,
    metadata,
    placement,
    window,
)

#: In the order in which they are told.
QUESTIONS: Final[tuple[Callable[[Data], Answer], ...]] = (
    placement.answer,
    idle.answer,
    deferred.answer,
    frequency.answer,
    faults.answer,
    metadata.answer,
    window.answer,
    budget.answer,
)

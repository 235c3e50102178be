"""Causes within compute, for the questions that ask for one: the one place that reads them.

A Snapshot's agents have no causes yet. When they have, ``measured`` gives the
figures of the named ones and the questions answer from them.
"""

from __future__ import annotations

from collections.abc import Sequence

from agenttop.report.blocks import Data
from agenttop.report.model import Answer
from agenttop.report.questions.common import no_steps, not_measured


def answer(key: str, question: str, data: Data, causes: Sequence[str], instead: str) -> Answer:
    """From the causes with these names; "not measured" while there are none."""
    if (cannot := no_steps(data, key, question)) is not None:
        return cannot
    what = " and ".join(causes)
    return not_measured(
        key, question, f"the steps' causes ({what}) are not in what was measured", instead
    )

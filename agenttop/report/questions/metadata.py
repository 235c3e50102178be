"""How often does file metadata gate steps, and for how long?"""

from __future__ import annotations

from agenttop.report.estimate import quotient
from agenttop.report.figure_text import said
from agenttop.report.model import Answer, Figure
from agenttop.report.question_data import Data
from agenttop.report.questions import cause_figures

KEY = "metadata"
QUESTION = "How often does file metadata (openat, statx, getdents64) gate steps, and for how long?"


def answer(data: Data) -> Answer:
    """From the causes of file metadata, in so far as they were observed, and their cold share."""
    found = cause_figures.answer(
        KEY,
        QUESTION,
        data,
        "metadata",
        "The system-call events of openat, statx, getdents64 and their like, timed in each step"
        " (level full), tell it; what they cost stands in compute until then.",
    )
    share = _cold_share(data) if found.figures else []
    if share and share[0].value is not None:
        found.answer += (
            f" Cold were {said(share[0])} of the calls: they waited for a disk, and took"
            f" {said(share[1])} of the time of all."
        )
    found.figures += share
    return found


def _cold_share(data: Data) -> list[Figure]:
    """In calls and in time, over the blocks in which both causes were observed."""
    names = ("cold_metadata", "file_metadata")
    both = set(data.observed(names[0])) & set(data.observed(names[1]))
    if not both:
        return []
    events, ns = [], []
    for name in names:
        gained = cause_figures.gained(data, name)
        assert gained is not None
        kept = [at in both for at in data.observed(name)]
        events.append([value for value, keep in zip(gained.events, kept, strict=True) if keep])
        ns.append([value for value, keep in zip(gained.ns, kept, strict=True) if keep])
    calls, none = sum(events[1]), "no step had such a call"
    return [
        quotient("cold_ratio", "calls that waited for a disk (cold)", *events, n=calls, of="calls",
                 missing=none),
        quotient("cold_time_ratio", "of the time of all calls: cold ones", *ns, n=calls, of="calls",
                 missing=none),
    ]  # fmt: skip

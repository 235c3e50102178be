"""Conditions on an agent's percentiles: ``[AGENT:][step|slowpath ]p50|p99|p999>DURATION``.

As ``p99>2ms``, ``coder:p999>800us``, ``step p50 > 1.5s``: of every agent or of
those with that name, the slowpath unless ``step`` is said, over the window.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from agenttop.errors import UserError
from agenttop.model.snapshot import Agent, Stat
from agenttop.text.figures import clean

#: Figure -> the share of the steps that lie beyond it.
FIGURES: Final = {"p50": 0.5, "p99": 0.01, "p999": 0.001}
MEASURES: Final = ("slowpath", "step")
#: Limits lie within what the histograms can tell: 1 ns to 60 s.
MOST_NS: Final = 60_000_000_000
_UNITS: Final = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 1_000_000,
                 "s": 1_000_000_000}  # fmt: skip
_FORM: Final = re.compile(
    r"\s*(?:(?P<measure>\w+)\s+)?(?P<figure>p[\d.]+)\s*>\s*(?P<number>\d+(?:\.\d+)?)\s*"
    r"(?P<unit>[^\s\d.]*)\s*",
    re.ASCII,
)
_EXAMPLE: Final = (
    "[AGENT:][step|slowpath ]p50|p99|p999>DURATION, as 'p99>2ms' or 'coder:step p99>1s'"
)


@dataclass(frozen=True, slots=True)
class Condition:
    """A limit that a percentile breaches when it is above it."""

    #: None: of every agent.
    agent: str | None
    measure: str
    figure: str
    limit_ns: int

    def __str__(self) -> str:
        name = "" if self.agent is None else f"{self.agent}:"
        return f"{name}{self.measure} {self.figure}>{limit(self.limit_ns)}"

    def value_ns(self, agent: Agent) -> int | None:
        """The agent's figure; None when it is not the agent meant, or rests on too few steps.

        Fewer than one step beyond it is expected then, so that it would only
        be another word for the slowest step.
        """
        if self.agent is not None and agent.name != self.agent:
            return None
        stat: Stat = agent.step if self.measure == "step" else agent.slowpath
        if stat.count * FIGURES[self.figure] < 1:
            return None
        value: int | None = getattr(stat, f"{self.figure}_ns")
        return value


def limit(ns: int) -> str:
    """Exactly, in the largest unit in which it is whole: ``2ms``, ``1500us``."""
    for unit in ("s", "ms", "us"):
        if ns % _UNITS[unit] == 0:
            return f"{ns // _UNITS[unit]}{unit}"
    return f"{ns}ns"


def parse(text: str) -> Condition:
    """Raises UserError: one line that says what is wrong."""
    # The rest has no colon, so that a name may have some.
    name, colon, rest = text.rpartition(":")
    if colon and not name.strip():
        raise _wrong(text, "no agent's name stands before the colon")
    found = _FORM.fullmatch(rest)
    if found is None:
        raise _wrong(text, f"it has the form {_EXAMPLE}")
    measure = found["measure"] or "slowpath"
    if measure not in MEASURES:
        raise _wrong(text, f"'{clean(measure, 30)}' is neither step nor slowpath")
    figure = "p999" if found["figure"] == "p99.9" else found["figure"]
    if figure not in FIGURES:
        raise _wrong(text, f"'{clean(figure, 30)}' is none of {', '.join(FIGURES)}")
    unit = found["unit"]
    if unit not in _UNITS:
        what = f"'{clean(unit, 20)}' is none of them" if unit else "it has none"
        raise _wrong(text, f"the limit needs a unit (ns, us, ms, s): {what}")
    # Not a float: what is written whole is taken whole.
    whole, _, part = found["number"].partition(".")
    if len(whole) > 12 or len(part) > 12:
        raise _wrong(text, "the limit is not within 1ns and 60s")
    limit_ns = int(whole + part) * _UNITS[unit] // 10 ** len(part)
    if not 1 <= limit_ns <= MOST_NS:
        raise _wrong(text, "the limit is not within 1ns and 60s")
    return Condition(name.strip() or None, measure, figure, limit_ns)


def _wrong(text: str, why: str) -> UserError:
    return UserError(f"--on-breach '{clean(text, 80)}': {why}")

"""--switch: a policy on and off in blocks of random order while something is measured.

What a policy brings and costs can be told only from time with and time
without it, and only chance may decide which is which. The schedule is that of
``agenttop policy trial``; whoever reads the Samples sees in them when the
policy was on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

from agenttop.errors import UserError
from agenttop.model.options import EngineOptions
from agenttop.model.sample import Command, Sample
from agenttop.store.store import Store
from agenttop.text.figures import clean
from agenttop.trial.plan import BLOCK_S, SETTLE_S, Plan

#: Rounds when no time is given.
_ENDLESS: Final = 100_000
#: Under so many rounds nothing can be compared.
_LEAST: Final = 2
_ROUND_S: Final = 3 * (BLOCK_S + SETTLE_S)


def add(parser: argparse.ArgumentParser) -> None:
    """The option."""
    parser.add_argument(
        "--switch",
        action="append",
        default=[],
        metavar="POLICY",
        help="on and off in blocks of random order meanwhile, so that its effect and cost can be"
        " told; given back at the end (repeatable: together)",
    )


class Switching:
    """Switches policies while Samples come; the engine gives them back when it ends."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        # Loads numpy's part of the statistics only when somebody switches.
        from agenttop.trial.trial import Trial

        self._kind = Trial
        self._trial: Trial | None = None

    @classmethod
    def of(cls, names: list[str], seconds: float | None, engine: EngineOptions) -> Switching | None:
        """From the command line; sets the engine's delay. Raises UserError."""
        if not names:
            return None
        from agenttop.policies.selection import expanded

        names, engine.settings = expanded(names, engine.settings)
        rounds = _ENDLESS if seconds is None else int(seconds / _ROUND_S)
        if rounds < _LEAST:
            raise UserError(f"--switch needs --for {_LEAST * _ROUND_S:g} or more")
        engine.delay_s = min(engine.delay_s, SETTLE_S, BLOCK_S / 3)
        return cls(Plan(tuple(dict.fromkeys(names)), rounds))

    def take(self, sample: Sample, store: Store, send: Callable[[Command], None]) -> None:
        """Another Sample, which the Store has had. Raises UserError when it cannot go on."""
        if self._trial is None:
            self._trial = self._kind(self._plan, sample.policies, send)
        moments = store.history.moments
        self._trial.take(sample, moments[-1] if moments else None)
        if self._trial.ended is not None:
            raise UserError(f"--switch: {clean(self._trial.ended, 200)}")

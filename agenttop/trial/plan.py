"""The order of a trial's blocks, apart from trial.py so that the commands need no numpy."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final, Literal

Label = Literal["on", "off", "control"]
LABELS: Final[tuple[Label, ...]] = ("on", "off", "control")

#: Defaults: under two minutes in all.
ROUNDS: Final = 8
BLOCK_S: Final = 3.0
SETTLE_S: Final = 1.0


@dataclass(frozen=True)
class Plan:
    """What is tried, for how long, and in which order (the seed gives it)."""

    policies: tuple[str, ...]
    rounds: int = ROUNDS
    block_s: float = BLOCK_S
    settle_s: float = SETTLE_S
    seed: int = field(default_factory=lambda: random.SystemRandom().randrange(1_000_000))

    @property
    def order(self) -> list[list[Label]]:
        """The blocks of each round."""
        chance = random.Random(self.seed)
        return [chance.sample(LABELS, len(LABELS)) for _ in range(self.rounds)]

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.rounds * len(LABELS) * (self.block_s + self.settle_s)

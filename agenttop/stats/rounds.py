"""How many rounds a trial's verdict needs (apart from the test itself, which loads numpy)."""

from __future__ import annotations

from typing import Final

#: A verdict needs so many rounds: with fewer, chance alone does it more often than in 5 %.
MIN_ROUNDS: Final = 6

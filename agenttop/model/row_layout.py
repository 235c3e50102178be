"""How the Store and the check of recordings count rows: histograms of one owner, and annexes."""

from __future__ import annotations

from typing import Final

from agenttop.model.vocabulary import CAUSES, MEASURES, SOFTIRQS, STEP_MEASURES

#: Histograms of one owner: an agent's measures, or some of its causes, a CPU's softirq vectors,
#: the idle states (cpuidle has at most 10).
BLOCK: Final = max(len(MEASURES), len(SOFTIRQS), 10)
#: Names of steps that share an annex.
NAMES_PER_ANNEX: Final = BLOCK // len(STEP_MEASURES)
#: Names kept for an agent at most (the kernel side has 16 and one for the rest).
MOST_NAMES: Final = 32
#: Annexes that an agent's causes take.
CAUSE_ANNEXES: Final = -(-len(CAUSES) // BLOCK)

"""How often does a frequency ramp follow an agent's wake-up, and what does it cost?"""

from __future__ import annotations

from collections import Counter

from agenttop.report.blocks import Data
from agenttop.report.model import Answer, Figure
from agenttop.report.questions.common import not_measured

KEY = "frequency"
QUESTION = "How often does a frequency ramp follow an agent's wake-up, and what does it cost?"
_HOW = (
    "The tracepoint power:cpu_frequency (or APERF and MPERF read at the switch-in and at the next"
    " gate) would tell the frequency at each wake-up and the time until it has risen."
)


def answer(data: Data) -> Answer:
    """Only what scaling_cur_freq shows at the Samples: no wake-up is tied to it yet."""
    seen: Counter[int] = Counter()
    for block in data.blocks:
        seen.update(block.khz)
    if not seen:
        why = data.host.missing.get("freq", "no CPU tells its frequency")
        return not_measured(
            KEY,
            QUESTION,
            f"{why}, so this machine's frequencies cannot be seen",
            "A machine with a cpufreq driver (a virtual machine has none as a rule). " + _HOW,
        )
    total = sum(seen.values())
    ordered = sorted(seen)
    low, high = ordered[0], ordered[-1]
    below = sum(count for khz, count in seen.items() if khz < 0.9 * high)
    figures = [
        Figure("lowest_khz", "lowest seen", "khz", float(low), n=total, of="readings"),
        Figure("highest_khz", "highest seen", "khz", float(high), n=total, of="readings"),
        Figure(
            "below_ratio",
            "readings below 90 % of the highest",
            "ratio",
            below / total,
            n=total,
            of="readings",
        ),
    ]
    made = not_measured(
        KEY,
        QUESTION,
        "frequencies are read at the samples, not at the wake-ups",
        _HOW,
        figures,
    )
    made.how = (
        "scaling_cur_freq of every CPU at each sample (in steps of 50 MHz). It shows that"
        " frequencies differ, not that an agent's wake-up met a low one."
    )
    return made

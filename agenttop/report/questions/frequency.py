"""How often does a frequency ramp follow an agent's wake-up, and what does it cost?"""

from __future__ import annotations

from collections import Counter

from agenttop.report.estimate import quotient
from agenttop.report.figure_text import said, value
from agenttop.report.model import Answer, Figure
from agenttop.report.question_data import Data, Labelled
from agenttop.report.questions.cause_figures import added, gained, label_table, not_observed
from agenttop.report.questions.shared import MOST_ROWS, no_steps, not_measured

KEY = "frequency"
QUESTION = "How often does a frequency ramp follow an agent's wake-up, and what does it cost?"
_HOW = "--causes frequency observes it (a live report does so by itself)."


def answer(data: Data) -> Answer:
    """From the cause frequency; without it, what scaling_cur_freq shows at the Samples."""
    if (cannot := no_steps(data, KEY, QUESTION)) is not None:
        return cannot
    found = gained(data, "frequency")
    labels = data.labels("frequency")
    if found is None or not labels:
        return _at_samples(data)
    zeros = [0] * len(found.had)
    known = added(zeros, (one.steps.tolist() for one in labels))
    risen = [one for one in labels if one.fields.get("to_khz")]
    ramp = quotient("ramp_ratio", "steps that a ramp followed", found.had, known, n=sum(known))
    later = quotient(
        "wake_to_ramp_mean_ns",
        "wake-up to the ramp",
        added(zeros, (one.sums("wake_to_ramp_ns").tolist() for one in risen)),
        found.had,
        unit="ns",
        n=sum(found.had),
        missing="no ramp followed",
    )
    slow = quotient("slow_compute_ratio", "of compute before a ramp", found.ns,
                    found.stages("compute"), n=sum(found.steps))  # fmt: skip
    most = quotient(
        "cost_mean_ns",
        "at most lost by it, a step with a ramp",
        added(zeros, (_lost(one) for one in risen)),
        found.had,
        unit="ns",
        n=sum(found.had),
        missing="no ramp followed",
    )
    often = sorted(labels, key=lambda one: -int(one.steps.sum()))[:MOST_ROWS]
    ramps = label_table(
        "frequency at the switch-in, and after the ramp",
        "frequency",
        often,
        lambda one: [
            quotient("label_ratio", "of steps", one.steps, known, n=sum(known)),
            quotient("label_mean_ns", "compute before", one.ns, one.events, unit="ns",
                     n=int(one.events.sum()), missing="no ramp"),
        ],
    )  # fmt: skip
    text = f"A frequency ramp followed {said(ramp)} of the agents' wake-ups"
    if later.value is not None:
        text += (
            f", {value(later)} behind the wake-up on average; {said(slow)} of all compute was done"
            f" before one, which cost at most {value(most)} in such a step"
        )
    return Answer(
        key=KEY,
        question=QUESTION,
        state="measured",
        answer=text + ".",
        how="The tracepoint power:cpu_frequency: the first rise on the CPU that a step resumed on,"
        " from its wake-up to its end; the frequency at the switch-in is that of the last event."
        " The cost supposes that all compute before the ramp goes by the clock: what waits for"
        " memory loses less.",
        figures=[ramp, later, slow, most, _at_switch_in(labels, zeros, known)],
        tables=ramps,
    )


def _lost(one: Labelled) -> list[int]:
    """Of the compute before the ramp, what it would have taken less at the higher frequency."""
    before, after = one.fields["from_khz"], one.fields["to_khz"]
    if not isinstance(before, int) or not isinstance(after, int) or not 0 <= before <= after:
        return [0] * len(one.rows)
    return [round(int(ns) * (after - before) / max(after, 1)) for ns in one.ns]


def _at_switch_in(labels: list[Labelled], zeros: list[int], known: list[int]) -> Figure:
    columns = (
        [int(steps) * khz for steps in one.steps]
        if isinstance(khz := one.fields.get("from_khz"), int)
        else zeros
        for one in labels
    )
    name = "frequency at the switch-in, mean"
    return quotient("switch_in_khz", name, added(zeros, columns), known, unit="khz", n=sum(known))


def _at_samples(data: Data) -> Answer:
    """Only what scaling_cur_freq shows at the Samples: no wake-up is tied to it."""
    seen: Counter[int] = Counter()
    for block in data.blocks:
        seen.update(block.khz)
    if not seen:
        why = data.host.missing.get("freq", "no CPU tells its frequency")
        return not_measured(
            KEY,
            QUESTION,
            f"{why}, so this machine's frequencies cannot be seen",
            "A machine with a cpufreq driver (a virtual machine has none as a rule); there " + _HOW,
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
        f"{not_observed(data, 'frequency')}; frequencies were read at the samples only",
        _HOW,
        figures,
    )
    made.how = (
        "scaling_cur_freq of every CPU at each sample (in steps of 50 MHz). It shows that"
        " frequencies differ, not that an agent's wake-up met a low one."
    )
    return made

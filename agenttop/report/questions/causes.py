"""What causes cost steps, for the questions that ask for one."""

from __future__ import annotations

from collections.abc import Sequence

from agenttop.report.blocks import CAUSE_FIELDS, Data
from agenttop.report.estimate import quotient
from agenttop.report.model import Answer, Figure, Row
from agenttop.report.questions.common import MOST_ROWS, label, no_steps, not_measured, table
from agenttop.report.wording import said, value
from agenttop.words import CAUSES, STAGES

_STEPS, _EVENTS, _NS = range(CAUSE_FIELDS)


def answer(key: str, question: str, data: Data, word: str, instead: str) -> Answer:
    """From the causes that have this word in their name, where they were observed."""
    if (cannot := no_steps(data, key, question)) is not None:
        return cannot
    known = [cause for cause in CAUSES if word in cause.name]
    if not known:
        return not_measured(key, question, "this agenttop observes no such cause", instead)
    seen = [c for c in known if any(c.name in block.observed for block in data.blocks)]
    if not seen:
        states = {state.name: state.reason for state in data.newest.causes}
        why = next((states[c.name] for c in known if states.get(c.name)), "")
        names = " and ".join(cause.name for cause in known)
        told = f"{names}: {why}" if why else f"the causes {names} were not observed"
        return not_measured(key, question, told, instead)
    agents = data.foreground() or data.agents()
    figures: list[Figure] = []
    parts, rows = [], []
    for cause in seen:
        mine = _figures(data, agents, cause.name, cause.stage, f"{cause.name}: ")
        figures += mine
        parts.append(
            f"{said(mine[0])} of steps had {cause.meaning}, {value(mine[1])} in each of those"
            f" on average and {said(mine[3])} of all {cause.stage}"
        )
        rows += [
            Row(f"{label(data, agent)}: {cause.name}", own)
            for agent in data.agents()[:MOST_ROWS]
            if (own := _figures(data, [agent], cause.name, cause.stage, ""))[0].value
        ]
    lacking = [cause.name for cause in known if cause not in seen]
    return Answer(
        key=key,
        question=question,
        state="partly measured" if lacking else "measured",
        answer="; ".join(parts) + ".",
        how="The causes as the kernel side adds them up within each step, in the time in which they"
        " were observed.",
        figures=figures,
        tables=[table("agents that had them", "agent", rows)] if len(rows) > 1 else [],
        missing=f"{' and '.join(lacking)}: not observed" if lacking else None,
        instead=instead if lacking else None,
    )


def _figures(data: Data, agents: Sequence[int], name: str, stage: str, prefix: str) -> list[Figure]:
    blocks = [at for at, block in enumerate(data.blocks) if name in block.observed]
    rows = data.rows(agents)
    steps = [rows[at].steps for at in blocks]
    in_stage = [rows[at].stages_ns[STAGES.index(stage)] for at in blocks]
    gained = [
        [
            sum(
                int(data.blocks[at].causes[agent][name][field])
                for agent in agents
                if name in data.blocks[at].causes.get(agent, {})
            )
            for at in blocks
        ]
        for field in range(CAUSE_FIELDS)
    ]
    had = sum(gained[_STEPS])
    return [
        quotient(f"{name}_ratio", f"{prefix}steps that had it", gained[_STEPS], steps,
                 n=sum(steps)),
        quotient(f"{name}_mean_ns", f"{prefix}time in such a step", gained[_NS], gained[_STEPS],
                 unit="ns", n=had),
        quotient(f"{name}_events", f"{prefix}events in such a step", gained[_EVENTS],
                 gained[_STEPS], unit="count", n=had),
        quotient(f"{name}_stage_ratio", f"{prefix}of the time of {stage}", gained[_NS], in_stage,
                 n=sum(steps)),
    ]  # fmt: skip

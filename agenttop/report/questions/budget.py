"""What does the budget of the latency windows cost an abuser and a well-behaved agent?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agenttop.model.vocabulary import SLOWPATH_STAGES
from agenttop.report.estimate import number, quotient
from agenttop.report.figure_text import plural, said
from agenttop.report.model import Answer, Figure, Row, Table
from agenttop.report.question_data import Data
from agenttop.report.questions.shared import MOST_ROWS, label, no_steps, not_measured, stage, steps
from agenttop.report.time_blocks import BUDGET_FIELDS, Block
from agenttop.store.windows import Ints

KEY = "budget"
QUESTION = "What does the window's budget cost an abuser and a well-behaved agent?"
_COLUMNS = ("tokens", "refused", "throttled", "CPUs held", "slowpath", "slowpath throttled")
#: A block belongs to the throttled time from this share on.
_MOSTLY = 0.5


@dataclass
class _Spent:
    """What an agent's budget did in each block in which it had one."""

    agent: int
    blocks: list[Block]
    #: Shape (blocks, BUDGET_FIELDS).
    rows: Ints

    @classmethod
    def of(cls, data: Data, agent: int) -> _Spent:
        blocks = [block for block in data.blocks if agent in block.budgets]
        return cls(agent, blocks, np.array([block.budgets[agent] for block in blocks]))

    def column(self, name: str) -> Ints:
        out: Ints = self.rows[:, BUDGET_FIELDS.index(name)]
        return out

    @property
    def throttled(self) -> bool:
        return bool(self.column("degraded_ns").sum() or self.column("refusals").sum())


def answer(data: Data) -> Answer:
    """Tokens, refusals, throttled time, and the slowpath with and without windows."""
    if (cannot := no_steps(data, KEY, QUESTION)) is not None:
        return cannot
    agents = sorted({agent for block in data.blocks for agent in block.budgets})
    if not agents:
        return not_measured(
            KEY,
            QUESTION,
            "the policy window was not on",
            "agenttop report --switch window --for 120 switches it on and off meanwhile;"
            " `window` can also be on while agenttop record runs.",
        )
    spent = [_Spent.of(data, agent) for agent in agents]
    abusers = [each for each in spent if each.throttled]
    others = [each for each in spent if not each.throttled]
    figures = [
        number("agents", "agents with a budget", len(spent), of="agents"),
        number("throttled", "of them throttled", len(abusers), of="agents"),
    ]
    parts = []
    for key, name, group in (("well", "well-behaved", others), ("abuser", "throttled", abusers)):
        if group:
            shared = _figures(data, group, key, f"{name}: ")
            figures += shared
            parts.append(
                f"{plural(len(group), f'{name} agent')} spent {said(shared[0])} tokens, had"
                f" {said(shared[1])} of the armings refused and"
                f" {said(shared[2])} of the time without windows"
            )
    rows = [
        Row(label(data, each.agent), _figures(data, [each], "agent", "") + _slowed(data, each))
        for each in spent[:MOST_ROWS]
    ]
    return Answer(
        key=KEY,
        question=QUESTION,
        state="measured" if abusers else "partly measured",
        answer="; ".join(parts) + ".",
        how="From the buckets' own counters while the policy window was on. An agent counts as"
        " throttled when its empty bucket refused armings at least once. Its slowpath while"
        " throttled is that of the blocks that were so for more than half of their time; blocks"
        " are not drawn at random, so a difference may have another reason.",
        figures=figures,
        tables=[Table("by agent", "agent", list(_COLUMNS), rows)],
        missing=None if abusers else "no agent emptied its bucket",
        instead=None
        if abusers
        else "An agent that wakes all the time (agenttop loop --interval-us 100) empties it.",
    )


def _figures(data: Data, group: list[_Spent], key: str, prefix: str) -> list[Figure]:
    def together(name: str) -> list[int]:
        return [int(value) for each in group for value in each.column(name)]

    times = [block.length_ns for each in group for block in each.blocks]
    grants, refusals = together("grants"), together("refusals")
    asked = [a + b for a, b in zip(grants, refusals, strict=True)]
    seconds = round(sum(times) / 1e9)
    return [
        quotient(
            f"{key}_tokens_per_s",
            f"{prefix}tokens",
            [value / 1000 for value in together("spent")],
            [ns / 1e9 for ns in times],
            unit="per_s",
            n=seconds,
            of="agent-seconds",
        ),
        quotient(
            f"{key}_refused_ratio",
            f"{prefix}armings refused",
            refusals,
            asked,
            n=sum(asked),
            of="armings",
        ),
        quotient(
            f"{key}_degraded_ratio",
            f"{prefix}time throttled",
            together("degraded_ns"),
            times,
            n=seconds,
            of="agent-seconds",
        ),
        quotient(
            f"{key}_held_cpus",
            f"{prefix}CPUs held by windows",
            together("held_ns"),
            times,
            unit="count",
            n=seconds,
            of="agent-seconds",
        ),
    ]


def _slowed(data: Data, spent: _Spent) -> list[Figure]:
    """The agent's slowpath while it had windows, and while it was throttled."""
    rows = dict(zip(map(id, data.blocks), data.rows([spent.agent]), strict=True))
    out = []
    degraded = dict(zip(map(id, spent.blocks), spent.column("degraded_ns").tolist(), strict=True))
    for key, name, throttled in (
        ("granted_slowpath_ns", "slowpath with windows", False),
        ("throttled_slowpath_ns", "while throttled", True),
    ):
        mine = [
            rows[id(block)]
            for block in spent.blocks
            if (degraded[id(block)] > _MOSTLY * block.length_ns) == throttled
        ]
        out.append(
            quotient(
                key,
                name,
                stage(mine, *SLOWPATH_STAGES),
                steps(mine),
                unit="ns",
                n=sum(steps(mine)),
                missing="never" if throttled else "always throttled",
            )
        )
    return out

"""The columns of the agents table: one table for the screen, the text output and the docs.

A column knows how to get its value from an Agent (the same name as in the
JSON where there is one), how to write it, and how to sort by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from agenttop.errors import UserError
from agenttop.model.snapshot import Agent, Stat
from agenttop.text.figures import NA, clean, count, duration, measured, percent, rate

#: Cells between columns.
GAP: Final = 1
#: Order of the agents unless the user wants another.
DEFAULT_SORT: Final = "slow_p99"
NAME_MOST: Final = 32

Value = Any


@dataclass(frozen=True)
class Column:
    """One column of the agents table."""

    key: str
    #: In the head line (heads() adds the family to the first of them).
    title: str
    #: Spoken of elsewhere ("sort by ...").
    label: str
    #: Cells, without the gap.
    width: int
    #: Of the value: "ns", "1/s", "ratio", "" (a plain number or text).
    unit: str
    #: The value; None is N/A.
    get: Callable[[Agent], Value]
    #: The cell, not yet cut or padded.
    text: Callable[[Agent], str]
    meaning: str
    #: 0 is always shown; higher numbers give way earlier on narrow screens.
    rank: int = 0
    right: bool = True
    #: The largest value comes first.
    descending: bool = True
    #: A new group of columns begins here.
    group: bool = False
    #: Needs step chains; the others can be had without BPF.
    chains: bool = True
    #: What to sort by, if not the value.
    order: Callable[[Agent], Value] | None = None
    #: Neighbours of one family share its name in the head line.
    family: str = ""


def _percentile(
    key: str, title: str, label: str, width: int, measure: str, name: str, meaning: str,
    rank: int, group: bool = False,
) -> Column:  # fmt: skip
    def stat(agent: Agent) -> Stat:
        return agent.step if measure == "step" else agent.slowpath

    return Column(
        key, title, label, width, "ns",
        lambda agent: getattr(stat(agent), name),
        lambda agent: measured(getattr(stat(agent), name), name in stat(agent).estimated),
        meaning, rank, group=group, family="STEP" if measure == "step" else "SLOW",
    )  # fmt: skip


def _name(agent: Agent) -> str:
    marks = "" if agent.alive else " (ended)"
    if agent.alive and agent.background:
        marks = " (bg)"
    return clean(agent.name, 64) + marks


def _tail(agent: Agent) -> str:
    if agent.tail.stage is None:
        return NA if agent.slowpath.p99_ns is None else "-"
    return f"{agent.tail.stage} {percent(agent.tail.ratio)}"


def mix(shares: dict[str, int], most: int = 3) -> str:
    """``net 90% child 10%``: the largest first."""
    total = sum(shares.values())
    if not total:
        return "-"
    ranked = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    return " ".join(f"{name} {percent(number / total)}" for name, number in ranked[:most])


def _source(agent: Agent) -> str:
    return NA if agent.steps is None else mix(agent.sources, 2)


def _home(agent: Agent) -> str:
    if agent.home_cpu is None:
        return NA if agent.steps is None else "-"
    return f"{agent.home_cpu} {percent(agent.home_ratio):>4}"


def _policy(agent: Agent) -> str:
    words = [f"{name} {word}".strip() for name, word in sorted(agent.policies.items())]
    return clean(" ".join(words), 64) or "-"


def _threads(agent: Agent) -> str:
    if agent.threads_tracked is None:
        return str(agent.threads)
    return f"{agent.threads_tracked}/{agent.threads}"


_ALL: Final = (
    Column("name", "AGENT", "name", 10, "", lambda a: a.name, _name,
           "name of the agent: of the process at the root of its tree unless a rule says else",
           right=False, descending=False, chains=False, order=lambda a: a.name.casefold()),
    Column("pid", "PID", "pid", 7, "", lambda a: a.pid, lambda a: str(a.pid),
           "process at the root of the tree", rank=4, descending=False, chains=False),
    Column("threads", "THR", "threads", 6, "", lambda a: a.threads, _threads,
           "threads measured / threads in the tree", rank=11, chains=False),
    Column("steps", "STEPS/S", "steps/s", 7, "1/s", lambda a: a.steps_per_s,
           lambda a: rate(a.steps_per_s), "steps of all its control-loop threads, per second"),
    _percentile("step_p50", "p50", "step p50", 8, "step", "p50_ns",
                "half of the steps are shorter", rank=6, group=True),
    _percentile("step_p99", "p99", "step p99", 8, "step", "p99_ns",
                "1 step in 100 is longer", rank=5),
    _percentile("step_p999", "p99.9", "step p99.9", 8, "step", "p999_ns",
                "1 step in 1,000 is longer", rank=8),
    _percentile("slow_p50", "p50", "slowpath p50", 8, "slowpath", "p50_ns",
                "what the kernel adds to a step: half of the steps have less", rank=3, group=True),
    _percentile("slow_p99", "p99", "slowpath p99", 8, "slowpath", "p99_ns",
                "what the kernel adds to a step: 1 in 100 has more", rank=0),
    _percentile("slow_p999", "p99.9", "slowpath p99.9", 8, "slowpath", "p999_ns",
                "what the kernel adds to a step: 1 in 1,000 has more", rank=2),
    Column("tail", "TAIL IN", "tail in", 14, "ratio", lambda a: a.tail.ratio, _tail,
           "the stage that dominates the slow steps, and its share of their slowpath", rank=1,
           right=False, group=True),
    Column("source", "SOURCE", "source mix", 18, "", lambda a: a.sources or None, _source,
           "what ended the waits, the most frequent first", rank=7, right=False,
           order=lambda a: mix(a.sources, 1) if a.sources else None, descending=False),
    Column("cpu", "CPU", "home CPU", 7, "", lambda a: a.home_cpu, _home,
           "CPU on which most steps resume, and their share", rank=5, right=False,
           descending=False),
    Column("policy", "POLICY", "policies", 12, "", lambda a: a.policies or None, _policy,
           "policies that hold this agent", rank=9, right=False, order=lambda a: len(a.policies),
           chains=False),
    Column("delay", "RUNQ", "run-queue delay", 7, "ns", lambda a: a.run_delay_ns,
           lambda a: duration(a.run_delay_ns),
           "mean wait for a CPU per time slice, from /proc/PID/task/*/schedstat", rank=10,
           group=True, chains=False),
    Column("busy", "CPU%", "CPU share", 5, "ratio", lambda a: a.cpu_ratio,
           lambda a: percent(a.cpu_ratio), "CPU time of the tree, in shares of one CPU", rank=9,
           chains=False),
    Column("samples", "STEPS", "steps", 9, "", lambda a: a.steps, lambda a: count(a.steps),
           "steps in the interval", rank=12),
    Column("unattributed", "UNATTR", "unattributed steps", 6, "", lambda a: a.unattributed,
           lambda a: count(a.unattributed),
           "steps whose wake-up was not seen, or whose waker could not be named", rank=14),
    Column("ready", "READY", "ready gates", 8, "", lambda a: a.ready, lambda a: count(a.ready),
           "gates that returned at once (level full only): a sign of saturation", rank=15),
    Column("rule", "RULE", "rule", 20, "", lambda a: a.rule, lambda a: clean(a.rule, 64),
           "what made it an agent", rank=13, right=False, descending=False, chains=False),
)  # fmt: skip

#: Key -> column, in the order of the table.
COLUMNS: Final = {column.key: column for column in _ALL}
#: Columns that hold for the steps of one name too.
BY_NAME: Final = frozenset(
    {"name", "steps", "samples", "step_p50", "step_p99", "step_p999"}
    | {"slow_p50", "slow_p99", "slow_p999"}
)


def named_rows(agent: Agent) -> list[Agent]:
    """The agent once for each name of its steps, those with most steps first.

    Of such a row only the columns BY_NAME mean anything.
    """
    return [
        msgspec.structs.replace(
            agent,
            name=f"  {name}",
            steps=named.steps,
            steps_per_s=named.steps_per_s,
            step=named.step,
            slowpath=named.slowpath,
            background=False,
            alive=True,
        )
        for name, named in agent.steps_by_name.items()
    ]


def chosen(width: int, chains: bool = True) -> list[Column]:
    """The columns that fit into ``width`` cells; those of the highest rank give way first.

    Without step chains most columns would hold N/A only: a few stay to say so.
    With them the stage queue tells more than the run-queue delay, which is not read then.
    """
    columns = [c for c in _ALL if not (chains and c.key == "delay")]
    if not chains:
        columns = [c for c in columns if not c.chains or c.rank <= 1]
    while len(columns) > 1 and needed(columns) > width:
        worst = max(columns, key=lambda c: c.rank)
        columns.remove(worst if worst.rank else columns[-1])
    return columns


def needed(columns: Iterable[Column]) -> int:
    """Cells that these columns take."""
    return sum(column.width + GAP + column.group for column in columns) - GAP


def heads(columns: Iterable[Column]) -> list[str]:
    """Titles for the head line: the first one shown of a family carries its name."""
    out, family = [], ""
    for column in columns:
        first = column.family and column.family != family
        out.append(f"{column.family} {column.title}" if first else column.title)
        family = column.family
    return out


def sort_key(text: str | None) -> tuple[str, bool]:
    """``KEY`` or ``-KEY`` (inverted) as (key, inverted). Raises UserError for an unknown one."""
    if text is None:
        return DEFAULT_SORT, False
    key, inverted = text.removeprefix("-"), text.startswith("-")
    if key not in COLUMNS:
        shown = clean(text, 40)
        raise UserError(f"--sort {shown}: no such key; there are {', '.join(COLUMNS)}")
    return key, inverted


def sort_help() -> str:
    """The text of ``--sort help``: a line per key."""
    return "\n".join(f"{c.key:<13} {c.label}: {c.meaning}" for c in _ALL)


def ordered(agents: Iterable[Agent], key: str, inverted: bool = False) -> list[Agent]:
    """Sorted by a column; agents without a value come last either way, ties by name."""
    column = COLUMNS[key]
    order = column.order or column.get
    agents = sorted(agents, key=lambda agent: (agent.name.casefold(), agent.id))
    known = [agent for agent in agents if order(agent) is not None]
    known.sort(key=order, reverse=column.descending != inverted)
    return known + [agent for agent in agents if order(agent) is None]

"""What a report is: answers with figures; the JSON output is these types as they are."""

from __future__ import annotations

from typing import Literal

import msgspec

SCHEMA_NAME = "agenttop.report"
SCHEMA_VERSION = 1

#: points: a difference of two shares, 0.01 is one percentage point.
Unit = Literal["ratio", "ns", "per_s", "count", "watts", "khz", "times", "points"]


class Base(msgspec.Struct, omit_defaults=False):
    pass


class Figure(Base):
    """A number, how sure it is and what it rests on. None is not available, never 0."""

    key: str
    name: str
    unit: Unit
    value: float | None
    #: 95 % interval, from a bootstrap over blocks of time; None where it cannot be told.
    low: float | None = None
    high: float | None = None
    #: What the figure is of: so many ``of`` (steps, wake-ups, seconds ...).
    n: int = 0
    of: str = "steps"
    #: Blocks of time that the interval rests on.
    blocks: int = 0
    #: Rests on fewer than 5 samples beyond it.
    estimated: bool = False
    #: ``value`` is a lower bound: nothing beyond it is told apart.
    over_range: bool = False
    #: Why there is no value.
    missing: str | None = None


class Row(Base):
    label: str
    figures: list[Figure]


class Table(Base):
    """The same figures of several things: agents, idle states."""

    title: str
    #: What the rows are.
    of: str
    #: What the figures of each row are.
    columns: list[str]
    rows: list[Row]


class Part(Base):
    """A part of a whole, 0..1."""

    name: str
    ratio: float


class Whole(Base):
    """Parts that add up, to be drawn as one bar."""

    title: str
    parts: list[Part]


class Answer(Base):
    """A question and what can be said to it."""

    key: str
    question: str
    state: Literal["measured", "partly measured", "not measured"]
    #: One or two sentences with the figures that matter.
    answer: str
    #: How it was measured, and what the figures do not say.
    how: str
    figures: list[Figure] = []
    tables: list[Table] = []
    wholes: list[Whole] = []
    #: Why it was not measured (or not all of it), and how it could be.
    missing: str | None = None
    instead: str | None = None


class Agent(Base):
    id: int
    name: str
    pid: int
    background: bool
    steps: int


class Point(Base):
    """A block of time: all agents that are not in the background, together."""

    #: Seconds since the start, at the block's beginning, and its length.
    start_s: float
    length_s: float
    steps: int
    p50_ns: int | None
    p99_ns: int | None
    #: Policies on in all of it; None in a block in which something was switched.
    policies: list[str] | None


class Host(Base):
    name: str
    kernel: str
    cpus: int
    level: str
    mode: str
    missing: dict[str, str]


class Trust(Base):
    """What a reader needs to believe the figures."""

    steps: int
    lost: int
    unattributed_ratio: float | None
    self_ratio: float | None
    #: Agents that were not measured as all slots were taken, at most at the same time.
    slots_full: int = 0


class Report(Base):
    schema: str
    version: int
    #: The program that made it.
    program: str
    #: "live", or the recording's name.
    source: str
    #: Seconds since the epoch at the end of what was measured.
    wall_s: float
    seconds: float
    #: Blocks of time that intervals are made from, and their usual length.
    blocks: int
    block_s: float
    host: Host
    trust: Trust
    #: Those with the most steps first.
    agents: list[Agent]
    answers: list[Answer]
    #: The slowpath over time.
    trend: list[Point]

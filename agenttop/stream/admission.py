"""Is this a Sample that an engine could have made? For those that come from files.

A Store takes memory for each agent, CPU, policy and second that it is told of,
and calculates with 64-bit numbers: a file could make it do so without bound.
The limits here are several times what any engine sends.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import numpy as np

from agenttop.collectors.bpf import layout
from agenttop.model.row_layout import CAUSE_ANNEXES, MOST_NAMES, NAMES_PER_ANNEX
from agenttop.model.sample import Histogram, Sample

#: In one Sample: twice as many as the kernel side has slots for.
MOST_AGENTS: Final = 2 * (layout.SLOTS - 1)
#: Slots of a Store (the buckets in use take memory) that agents, their names and their causes
#: take, beside what memory_limit.py allows all of them together: so many agents with causes. An
#: engine takes (SLOTS - 1) * (1 + CAUSE_ANNEXES), and one for each of its LANES - 1 names at most.
MOST_SLOTS: Final = MOST_AGENTS * (1 + CAUSE_ANNEXES)
#: In one file, one after the other: a report knows all of them, 1 kB each.
MOST_IN_ALL: Final = 100_000
#: CPU numbers lie below this.
MOST_CPUS: Final = 1024
MOST_POLICIES: Final = 64
#: Anything else that there are several of, and the length of a text and of packed counts.
MOST_ITEMS: Final = 1 << 16
MOST_TEXT: Final = 1 << 13
MOST_BYTES: Final = 1 << 14
#: Samples come ten times a second at most, and more often for a moment at switches.
PER_SECOND: Final = 20
IN_ADVANCE: Final = 256
#: Numbers and times: differences of them, and sums of some, have 64 bits.
_LARGEST: Final = 1 << 62
#: Counts of a histogram together: a million a second for three months. Sums of them, over many
#: agents and with the ratios' divisors, have 64 bits.
_MOST_COUNTED: Final = 1 << 43
#: What nothing is reckoned with: labels of causes, which the kernel side packs into words.
_LABELS: Final = ("words", "label")
#: Names that are numbers (CPUs, lines, idle states, agents) have no more digits.
_DIGITS: Final = 12


class ImplausibleError(Exception):
    """One line: what cannot be."""


class Checker:
    """Looks at the Samples of one recording, in order."""

    def __init__(self) -> None:
        self._policies: set[str] = set()
        self._lines: set[str] = set()
        self._last: Sample | None = None
        #: Agents of the newest Sample: the lanes of their names so far, and those with causes.
        self._lanes: dict[int, frozenset[int]] = {}
        self._caused: set[int] = set()
        #: Agents so far.
        self._agents = 0
        self._allowance = float(IN_ADVANCE)

    def sample(self, sample: Sample) -> None:
        """Raises ImplausibleError."""
        if self._last is None and sample.host is None:
            raise ImplausibleError("the first sample does not tell of the host")
        _walk(sample, "sample")
        self._pace(sample)
        _at_most(len(sample.agents), MOST_AGENTS, "agents")
        _at_most(len(sample.cpus), MOST_CPUS, "CPUs")
        for cpu in sample.cpus:
            if not 0 <= cpu.cpu < MOST_CPUS:
                raise ImplausibleError(f"a CPU with the number {cpu.cpu}")
        if len({cpu.cpu for cpu in sample.cpus}) < len(sample.cpus):
            raise ImplausibleError("a CPU that is there twice")
        if len({agent.id for agent in sample.agents}) < len(sample.agents):
            raise ImplausibleError("an agent that is there twice")
        self._room(sample)
        self._policies.update(policy.name for policy in sample.policies)
        _at_most(len(self._policies), MOST_POLICIES, "policies")
        self._lines.update(sample.irq_names)
        _at_most(len(self._lines), MOST_ITEMS, "interrupt lines")

    def _pace(self, sample: Sample) -> None:
        last, self._last = self._last, sample
        if not (0 <= sample.t_ns <= _LARGEST and 0 <= sample.wall_s < 1 << 36):
            raise ImplausibleError("a time that cannot be")
        if last is None or sample.t_ns <= last.t_ns or sample.seq <= last.seq:
            self._lanes, self._caused = {}, set()
            return  # the engine began anew, and so does whoever keeps Samples
        seconds = (sample.t_ns - last.t_ns) / 1e9
        self._allowance = min(self._allowance + seconds * PER_SECOND, IN_ADVANCE) - 1
        if self._allowance < 0:
            raise ImplausibleError("more samples a second than an engine makes")

    def _room(self, sample: Sample) -> None:
        """What a Store and a report keep of each agent."""
        if sample.host is not None:  # whoever keeps Samples may begin anew
            self._lanes, self._caused = {}, set()
        lanes: dict[int, frozenset[int]] = {}
        for agent in sample.agents:
            known = self._lanes.get(agent.id)
            self._agents += known is None
            known = known or frozenset()
            # No more are kept: then they need not be told apart.
            more = (one.lane for one in agent.named) if len(known) < MOST_NAMES else ()
            lanes[agent.id] = known.union(more)
        self._lanes = lanes
        self._caused = {a.id for a in sample.agents if a.causes or a.id in self._caused}
        names = sum(-(-min(len(each), MOST_NAMES) // NAMES_PER_ANNEX) for each in lanes.values())
        slots = len(lanes) + names + CAUSE_ANNEXES * len(self._caused)
        _at_most(slots, MOST_SLOTS, "histograms of agents, names and causes")
        _at_most(self._agents, MOST_IN_ALL, "agents one after the other")


def _at_most(number: int, most: int, what: str) -> None:
    if number > most:
        raise ImplausibleError(f"more than {most} {what}")


def _walk(value: Any, name: str) -> None:
    """Every number can be reckoned with, everything has a sane length."""
    kind = type(value)
    if kind is int:
        if not 0 <= value <= _LARGEST and name not in _LABELS:
            what = "below 0" if value < 0 else "of more than 62 bits"
            raise ImplausibleError(f"{name}: a number {what}")
    elif kind is float:
        if not (math.isfinite(value) and abs(value) < 1e18):
            raise ImplausibleError(f"{name}: a number that cannot be")
    elif kind is str:
        _at_most(len(value), MOST_TEXT, f"characters in {name}")
    elif kind is bytes:
        _at_most(len(value), MOST_BYTES, f"bytes in {name}")
    elif kind is list:
        _at_most(len(value), MOST_ITEMS, name)
        for item in value:
            _walk(item, name)
    elif kind is dict:
        _at_most(len(value), MOST_ITEMS, name)
        for key, item in value.items():
            if isinstance(key, str):
                # Python itself refuses to make numbers of very many digits.
                _at_most(len(key), _DIGITS if key.isdecimal() else MOST_TEXT, f"signs in {name}")
            _walk(item, name)
    elif kind is Histogram:
        _histogram(value, name)
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            _walk(getattr(value, field), field)


def _histogram(value: Histogram, name: str) -> None:
    """Packed counts are numbers too. What is no histogram at all is left out later."""
    _at_most(len(value.buckets), MOST_BYTES, f"bytes in {name}")
    _at_most(len(value.counts), MOST_BYTES, f"bytes in {name}")
    if len(value.counts) % 8 == 0:
        # In floating point sums cannot overflow; it is exact enough here.
        total = np.frombuffer(value.counts, dtype="<u8").sum(dtype=np.float64)
        if total > _MOST_COUNTED:
            raise ImplausibleError(f"{name}: more than {_MOST_COUNTED} counted")

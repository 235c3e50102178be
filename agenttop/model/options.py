"""What the engine is started with."""

from __future__ import annotations

from typing import Literal

import msgspec

from agenttop.errors import UserError
from agenttop.linux.process import printable
from agenttop.model.sample import Level
from agenttop.model.vocabulary import CAUSE_NAMES, CAUSES, LEVELS

#: auto: BPF if it can be had; raw: without task-local storage; off: /proc only.
Bpf = Literal["auto", "off", "raw"]


class EngineOptions(msgspec.Struct, forbid_unknown_fields=False):
    """What the engine has to measure, and how; all of it plain data, so that it crosses a pipe."""

    #: ``--agent``: ``KIND:VALUE`` each (patterns.py).
    agent_patterns: list[str] = []
    #: ``--agents``: a file of rules (agents.py); None: the user's own or the built-in ones.
    agents_file: str | None = None
    level: Level = "lite"
    #: Seconds between Samples.
    delay_s: float = 1.0
    bpf: Bpf = "auto"
    #: Measure the time in BPF programs (costs about 30 ns for each run of one).
    bpf_stats: bool = False
    #: Causes of stages that are observed from the start: off, lite, full or NAME[,NAME].
    causes: str = "off"
    #: Policies that are switched on from the start.
    policies: list[str] = []
    #: Nothing is written, not even to repair what a killed agenttop left.
    readonly: bool = False
    #: Policy -> parameter -> value (policies/catalog.py).
    settings: dict[str, dict[str, object]] = {}


def causes_of(spec: str) -> tuple[str, ...]:
    """The causes that ``off``, ``lite``, ``full`` or ``NAME[,NAME]`` means. Raises UserError."""
    if spec in ("", "off"):
        return ()
    if spec in LEVELS:
        return tuple(c.name for c in CAUSES if spec == "full" or c.level == "lite")
    names = [name.strip() for name in spec.split(",")]
    for name in names:
        if name not in CAUSE_NAMES:
            known = ", ".join(("off", *LEVELS, *CAUSE_NAMES))
            raise UserError(f"no cause '{printable(name, 40)}': --causes knows {known}")
    return tuple(name for name in CAUSE_NAMES if name in names)

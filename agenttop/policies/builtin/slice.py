"""slice: a shorter EEVDF slice for control-loop threads.

A thread that asks for a shorter slice has an earlier virtual deadline: when
it wakes it is picked sooner, and preempts a running one sooner, at the price
of being preempted more often itself (kernel/sched/fair.c, place_entity; the
slice per thread since 6.12).

Knob: sched_setattr(2), sched_runtime. Threads that a changed one starts
inherit it; they get the kernel's own slice back (undo.release_heirs).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from agenttop.policies.agent_threads import named
from agenttop.policies.base import Key, Settings, Targets
from agenttop.policies.knobs.base import KnobError
from agenttop.policies.knobs.sched_attr import SLICE, default_slice

DEFAULT_SLICE_US: Final = 300


class Params(msgspec.Struct, frozen=True):
    """What can be set."""

    #: The slice, us (the kernel takes 100 us to 100 ms).
    slice_us: Annotated[int, msgspec.Meta(ge=100, le=100_000)] = DEFAULT_SLICE_US


class Slice:
    """The policy."""

    name = "slice"
    key = "z"
    title = "shorter scheduler slice for control-loop threads"

    def __init__(self, params: Params | None = None) -> None:
        self._ns = (params or Params()).slice_us * 1000
        self.reset()

    def reset(self) -> None:
        self._agents: dict[int, str] = {}
        self._shorter = 0
        self._threads = 0

    def probe(self) -> str | None:
        if os.geteuid() != 0:
            return "needs root"
        default = default_slice()
        if not default:
            return "this kernel has no slice per thread (Linux 6.12 has)"
        if default <= self._ns:
            return f"the kernel's own slice, {default // 1000} us, is no longer than that"
        return None

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        settings: Settings = {}
        self._agents, self._shorter, self._threads = {}, 0, 0
        for name, agent, _ in named(targets, SLICE_KIND, held):
            key = (SLICE_KIND, name)
            self._threads += 1
            if key not in held:
                try:
                    now = SLICE.read(name)
                except KnobError:
                    now = None
                if now is not None and 0 < int(now) <= self._ns:
                    self._shorter += 1  # somebody has asked for as little already
                    continue
            settings[key] = str(self._ns)
            self._agents[agent.id] = f"{self._ns // 1000}us"
        return settings

    def detail(self) -> str:
        text = f"{self._ns / 1000:g}us instead of {default_slice() / 1000:g}us"
        if not self._threads:
            return f"{text}; no control-loop thread yet"
        return text + (f"; {self._shorter} as short already" if self._shorter else "")

    def agents(self) -> dict[int, str]:
        return self._agents


SLICE_KIND: Final = "slice"

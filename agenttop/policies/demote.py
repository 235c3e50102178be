"""demote: chosen background processes run only when nobody else wants the CPU.

Threads under SCHED_IDLE are preempted at once by any other thread that
wakes, and weigh next to nothing (sched(7)); under SCHED_BATCH they are
assumed to be CPU-bound and don't preempt others on waking. Chosen processes
only, with what they start; never an agent's, a kernel thread, process 1 or
agenttop's own.

Knob: sched_setattr(2), policy and nice. What a demoted process starts is
demoted too, and given back with it (undo.release_heirs).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from agenttop.policies.base import Key, Settings, Targets
from agenttop.policies.chosen import Chosen
from agenttop.policies.knobs import split_thread, thread_stat
from agenttop.policies.knobs_sched import POLICIES, Attr
from agenttop.procinfo import ProcInfo, printable

HOW_TO_CHOOSE: Final = "no processes chosen: --set 'demote.processes=[\"comm:RE\"]'"
KIND: Final = "sched_policy"
#: More are not a choice but a mistake.
MAX_THREADS: Final = 4096


class Params(msgspec.Struct, frozen=True):
    """What can be set."""

    #: Patterns of the processes that are demoted, as of --agent.
    processes: Annotated[list[str], msgspec.Meta(max_length=64)] = []
    #: Their policy: idle or batch.
    to: Literal["idle", "batch"] = "idle"


class Demote:
    """The policy."""

    name = "demote"
    key = "m"
    title = "chosen background processes out of the way"

    def __init__(self, params: Params | None = None) -> None:
        """Raises UserError for what is no pattern."""
        given = params or Params()
        self._processes = Chosen(given.processes)
        self._to = given.to.upper()
        self.reset()

    def reset(self) -> None:
        #: Process -> its comm, of those that are demoted.
        self._chosen: dict[int, str] = {}
        self._left: list[str] = []

    def probe(self) -> str | None:
        if os.geteuid() != 0:
            return "needs root"
        return None if self._processes else HOW_TO_CHOOSE

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        known = {split_thread(t)[1]: t for kind, t in held if kind == KIND}
        self._chosen, self._left = {}, []
        settings: Settings = {}
        for info in self._processes.find(targets):
            self._chosen[info.pid] = info.comm
            for tid in _threads(info.pid):
                if len(settings) >= MAX_THREADS:
                    self._left.append(f"more than {MAX_THREADS} threads")
                    return settings
                if value := self._value(info, tid, known.get(tid)):
                    settings[(KIND, value[0])] = value[1]
        return settings

    def _value(self, info: ProcInfo, tid: int, name: str | None) -> tuple[str, str] | None:
        """(knob's target, value) for a thread; None if it stays as it is."""
        stat = None if name else thread_stat(info.pid, tid)
        try:
            attr = Attr(tid)
        except OSError:
            return None
        if POLICIES.get(attr.policy) not in ("OTHER", "BATCH", "IDLE"):
            self._left.append(f"{printable(info.comm, 32)} {tid} (real time)")
            return None
        if name is None:
            if stat is None:
                return None
            name = f"{info.pid}/{tid}/{stat.start}"
        return name, f"{self._to}:{attr.nice}"

    def detail(self) -> str:
        if not self._chosen:
            return "none of the chosen processes runs"
        names = sorted({printable(comm, 32) for comm in self._chosen.values()})
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        text = f"{len(self._chosen)} processes to SCHED_{self._to}: {shown}"
        if self._left:
            text += f"; left alone: {', '.join(self._left[:3])}"
        return text

    def agents(self) -> dict[int, str]:
        return {}


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []

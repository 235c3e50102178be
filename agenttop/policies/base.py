"""What a policy is, and what it is told about the machine.

A policy says which value each knob should have (``wanted``); the manager
compares that with what is held, has the guardian write the difference, and
watches for drift. So a policy itself touches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from agenttop.linux.slices import Job
from agenttop.policies.guardian.journal import Key
from agenttop.policies.knobs.base import Change

__all__ = [
    "Acting",
    "Agent",
    "Change",
    "Cpu",
    "Exit",
    "Key",
    "Looking",
    "Policy",
    "Settings",
    "Targets",
    "Thread",
]

#: Knob (kind, target) -> the value that it should have.
Settings = dict[Key, str]


@dataclass(frozen=True, slots=True)
class Thread:
    """A control-loop thread: one that waits in gates."""

    tid: int
    #: Its process (thread group).
    pid: int
    #: CPU on which it ran last.
    cpu: int
    #: Steps so far (monotonic).
    steps: int = 0
    #: CPU time over wall time, recently, 0..1.
    load_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent as far as policies care."""

    id: int
    name: str
    #: All its processes, root first.
    pids: tuple[int, ...] = ()
    threads: tuple[Thread, ...] = ()
    #: CPU -> steps that resumed there so far (monotonic).
    cpu_steps: Mapping[int, int] = field(default_factory=dict)
    #: Its slot in the kernel's maps; 0: it is not measured there.
    slot: int = 0
    #: It works for nobody who waits.
    background: bool = False
    #: Whose it is; and whether root chose it in a way that nobody can fake (seats.py).
    user: int = 0
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Exit:
    """What leaving an idle state was measured to take."""

    p50_ns: int
    samples: int


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU; the ratios are shares of time over the last second or so, 0..1."""

    cpu: int
    online: bool = True
    irq_ratio: float = 0.0
    softirq_ratio: float = 0.0
    #: All that is not idle.
    busy_ratio: float = 0.0
    #: Idle state index -> measured exit.
    exits: Mapping[int, Exit] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Targets:
    """What the engine knows at a tick."""

    #: CLOCK_MONOTONIC.
    t_ns: int
    agents: tuple[Agent, ...] = ()
    cpus: tuple[Cpu, ...] = ()


class Policy(Protocol):
    """One policy. It keeps what it needs for hysteresis and touches no knob itself."""

    name: str
    #: Its key on the screen.
    key: str
    title: str

    def probe(self) -> str | None:
        """None if it can be had on this machine, else why not."""

    def reset(self) -> None:
        """Forget the hysteresis: it is being switched on, or only planned."""

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        """All knobs that should be set now; ``held`` are those that this policy holds."""

    def detail(self) -> str:
        """One line on what holds, after ``wanted``."""

    def agents(self) -> dict[int, str]:
        """Agent id -> short word for the table, after ``wanted``."""


@runtime_checkable
class Acting(Protocol):
    """A policy that also does something that is no setting: nothing holds, nothing to undo."""

    def act(self, targets: Targets) -> None:
        """Do what is due; called once a second while the policy is on, never for a plan.

        It must be bounded (some ms) and end by itself when it is not called any more.
        """


@runtime_checkable
class Looking(Protocol):
    """A policy that reads all processes, which takes long where there are very many."""

    def look(self) -> Job:
        """Read them, in pieces of well below 10 ms, for the next ``wanted``."""

"""demote: chosen background work runs only when nobody else wants the CPU.

- Threads of chosen processes, and of what they start: under SCHED_IDLE they
  are preempted at once by any other thread that wakes, and weigh next to
  nothing (sched(7)); under SCHED_BATCH they are assumed to be CPU-bound and
  don't preempt others on waking.
- Chosen cgroups: ``cpu.idle`` is the same for a whole group; or a low
  ``cpu.weight`` (v2), ``cpu.shares`` (v1).
- With ``keep_off`` both stay off the CPUs that agents use: ``cpuset.cpus`` of
  the groups, the affinity of the processes. When the agents move, it is all
  given back first and set anew a second later, so that what is restored is
  always what was found.

Nothing is chosen by itself, and never an agent's process or cgroup, a kernel
thread, process 1 or agenttop's own.

Knobs: sched_setattr(2), policy and nice; sched_setaffinity(2); cpu.idle,
cpu.weight, cpu.shares, cpuset.cpus (knobs/cgroup.py). What a demoted process
starts inherits that; a second later it is held itself (manager), so that it is
given back whatever becomes of its parent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from agenttop.linux.process import ProcInfo, printable
from agenttop.linux.slices import Job
from agenttop.policies.agent_cpus import AgentCpus
from agenttop.policies.base import Key, Settings, Targets
from agenttop.policies.knobs.base import (
    AFFINITY,
    format_cpus,
    parse_cpus,
    split_thread,
    thread_stat,
)
from agenttop.policies.knobs.cgroup import CPUSET, WEIGHTS
from agenttop.policies.knobs.sched_attr import POLICIES, Attr
from agenttop.policies.parts.chosen_cgroups import ChosenGroups, Group, pinned, threads_of, where
from agenttop.policies.parts.chosen_processes import Chosen
from agenttop.policies.setting_requests import Wishes

HOW_TO_CHOOSE: Final = (
    "no processes chosen: --set 'demote.processes=[\"comm:RE\"]' or 'demote.groups=[PATH]'"
)
KIND: Final = "sched_policy"
#: What keeps background work off CPUs.
KEEPING: Final = frozenset({"affinity", "cpuset1", "cpuset2"})
#: More are not a choice but a mistake.
MAX_THREADS: Final = 4096

_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class Params(msgspec.Struct, frozen=True):
    """What can be set."""

    #: Patterns of the processes that are demoted, as of --agent.
    processes: Annotated[list[str], msgspec.Meta(max_length=64)] = []
    #: Their policy: idle or batch; none leaves it (for keep_off alone).
    to: Literal["idle", "batch", "none"] = "idle"
    #: Paths of the cgroups that are demoted, below their mount.
    groups: Annotated[list[_Path], msgspec.Meta(max_length=64)] = []
    #: What becomes of them: cpu.idle, a low weight, or none (for keep_off alone).
    groups_to: Literal["idle", "weight", "none"] = "idle"
    #: That weight, as of cgroup v2, where 100 is everybody's; for v1 it is converted.
    weight: Annotated[int, msgspec.Meta(ge=1, le=99)] = 5
    #: Keep the chosen off the CPUs that agents use.
    keep_off: bool = False


class Demote:
    """The policy."""

    name = "demote"
    key = "m"
    title = "chosen background work out of the way"

    def __init__(self, params: Params | None = None) -> None:
        """Raises UserError for what is no pattern, and for what is no path of a cgroup."""
        self._params = params or Params()
        self._processes = Chosen(self._params.processes)
        self._groups = ChosenGroups(self._params.groups)
        self.reset()

    def reset(self) -> None:
        #: Process -> its comm, of those that are demoted.
        self._chosen: dict[int, str] = {}
        self._parts: list[str] = []
        self._cpus = AgentCpus()
        #: CPUs that no agent uses.
        self._quiet: frozenset[int] = frozenset()

    def probe(self) -> str | None:
        if os.geteuid() != 0:
            return "needs root"
        if self._groups and not self._processes:
            asked = ["cpuset"] * self._params.keep_off
            asked += ["cpu"] * (self._params.groups_to != "none")
            reasons = [found for name in asked if isinstance(found := where(name), str)]
            return "; ".join(reasons) if len(reasons) == len(asked) and reasons else None
        return None if self._processes else HOW_TO_CHOOSE

    def look(self) -> Job:
        """Read the processes, in pieces (base.Looking)."""
        return self._processes.look()

    # ----------------------------------------------------------------- what should hold

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        wishes = Wishes(held)
        keep, why_not = self._keep(targets, held) if self._params.keep_off else (False, "")
        found = self._processes.find(targets) if self._processes else []
        self._chosen = {info.pid: info.comm for info in found}
        groups = self._demote_groups(targets, wishes)
        kept = self._keep_groups(targets, held, wishes) if keep else {}
        inside = {pid for group in kept.values() for pid in group.pids}
        self._demote_processes(found, inside, keep, held, wishes)
        self._parts = self._told(groups, kept)
        if self._params.keep_off:
            off = f"kept on cpu{format_cpus(self._quiet)}, where no agent runs"
            self._parts.append(off if keep else f"on the CPUs as they were: {why_not}")
        if wishes.left:
            self._parts.append("left out: " + "".join(wishes.left_text()))
        return wishes.settings

    def _keep(self, targets: Targets, held: Mapping[Key, str]) -> tuple[bool, str]:
        """Whether to keep the chosen off the agents' CPUs now, and why not."""
        used = self._cpus.update(targets)
        online = frozenset(cpu.cpu for cpu in targets.cpus if cpu.online)
        quiet = online - used if used else frozenset()
        moved, self._quiet = quiet != self._quiet, quiet
        if not quiet:
            return False, "agents use every CPU" if used else "no agent has run yet"
        if moved and any(kind in KEEPING for kind, _ in held):
            return False, "the agents have moved"
        return True, ""

    def _demote_processes(
        self,
        found: list[ProcInfo],
        inside: set[int],
        keep: bool,
        held: Mapping[Key, str],
        wishes: Wishes,
    ) -> None:
        """``inside``: processes that their cgroup keeps off already."""
        known = {split_thread(t)[1]: t for kind, t in held if kind in (KIND, "affinity")}
        count = 0
        for info in found:
            for tid in threads_of(info.pid):
                count += 1
                if count > MAX_THREADS:
                    wishes.left.append(f"more than {MAX_THREADS} threads")
                    return
                stat = None if tid in known else thread_stat(info.pid, tid)
                name = known.get(tid) or (stat and f"{info.pid}/{tid}/{stat.start}")
                if not name:
                    continue
                if self._params.to != "none" and (value := self._attribute(info, tid, wishes)):
                    wishes.settings[KIND, name] = value
                if keep and info.pid not in inside:
                    self._keep_thread(info, name, held, wishes)

    def _attribute(self, info: ProcInfo, tid: int, wishes: Wishes) -> str | None:
        """A thread's policy and nice; None if it stays as it is."""
        try:
            attr = Attr(tid)
        except OSError:
            return None
        if POLICIES.get(attr.policy) not in ("OTHER", "BATCH", "IDLE"):
            wishes.left.append(f"{printable(info.comm, 32)} {tid} (real time)")
            return None
        return f"{self._params.to.upper()}:{attr.nice}"

    def _keep_thread(
        self, info: ProcInfo, name: str, held: Mapping[Key, str], wishes: Wishes
    ) -> None:
        key = ("affinity", name)
        if key in held:
            wishes.settings[key] = held[key]
            return
        own = parse_cpus(AFFINITY.read(name) or "")
        if not own or own <= self._quiet:
            return
        if own & self._quiet:
            wishes.settings[key] = format_cpus(own & self._quiet)
        else:
            wishes.left.append(
                f"{printable(info.comm, 32)} {split_thread(name)[1]} (pinned to cpu"
                f"{format_cpus(own)}, which agents use)"
            )

    def _demote_groups(self, targets: Targets, wishes: Wishes) -> list[Group]:
        if not self._groups or self._params.groups_to == "none":
            return []
        groups = self._groups.find("cpu", targets, wishes.left)
        for group in groups:
            kind, (file, least, _, default) = f"cpu{group.version}", WEIGHTS[group.version]
            idle = self._params.groups_to == "idle"
            # Before Linux 5.15 there is no cpu.idle.
            if idle and os.path.exists(f"{group.folder}/cpu.idle"):
                wishes.set(kind, f"cpu.idle/{group.path}", "1")
            else:
                weight = 1 if idle else self._params.weight
                value = max(least, weight * default // 100)
                wishes.lower(kind, f"{file}/{group.path}", value)
        return groups

    def _keep_groups(
        self, targets: Targets, held: Mapping[Key, str], wishes: Wishes
    ) -> dict[str, Group]:
        """The cgroups whose cpuset is asked for, by path."""
        kept: dict[str, Group] = {}
        if not self._groups:
            return kept
        for group in self._groups.find("cpuset", targets, wishes.left):
            key = (f"cpuset{group.version}", group.path)
            if key in held:
                wishes.settings[key] = held[key]
                kept[group.path] = group
                continue
            knob = CPUSET[group.version]
            own = knob.effective(group.folder)
            shown = f"cpuset of {printable(group.path, 64)}"
            if not own:
                wishes.left.append(f"{shown}: has no CPUs, or no cpuset controller")
            elif own <= self._quiet:
                wishes.left.append(f"{shown}: is {format_cpus(own)} already")
            elif not own & self._quiet:
                wishes.left.append(f"{shown}: has only CPUs that agents use")
            elif knob.read(group.path) == "":
                wishes.left.append(
                    f"{shown} refused: it has its parent's CPUs, and the kernel gives those back"
                    " only to a group without processes; choose its processes instead"
                )
            elif thread := pinned(group):
                wishes.left.append(
                    f"{shown} refused: this kernel would forget that {thread} in it has"
                    " CPUs of its own choice"
                )
            else:
                wishes.set(*key, format_cpus(own & self._quiet))
                kept[group.path] = group
        return kept

    # ----------------------------------------------------------------- on screen

    def _told(self, groups: list[Group], kept: Mapping[str, Group]) -> list[str]:
        parts = []
        if self._chosen:
            names = [printable(comm, 32) for comm in self._chosen.values()]
            to = "" if self._params.to == "none" else f" to SCHED_{self._params.to.upper()}"
            parts.append(f"{len(self._chosen)} processes{to}: {_few(names)}")
        elif self._processes:
            parts.append("none of the chosen processes runs")
        if groups:
            to = "cpu.idle" if self._params.groups_to == "idle" else f"weight {self._params.weight}"
            names = [printable(group.path, 64) for group in groups]
            parts.append(f"{len(groups)} cgroups to {to}: {_few(names)}")
        elif kept:
            parts.append(f"{len(kept)} cgroups: {_few([printable(p, 64) for p in kept])}")
        return parts

    def detail(self) -> str:
        return "; ".join(self._parts) or "nothing to demote"

    def agents(self) -> dict[int, str]:
        return {}


def _few(names: list[str]) -> str:
    names = sorted(set(names))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")

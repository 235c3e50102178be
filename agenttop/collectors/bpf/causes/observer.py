"""The causes that are observed now: their programs attached, their counters read.

The chain's programs keep the sums (common.bpf.c); what is attached here only
tells them of causes. Nothing is loaded before somebody wants a cause, and
nothing is attached while nobody does.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Final

from agenttop.collectors.bpf import layout, syscall
from agenttop.collectors.bpf.causes.cpu_power import Power
from agenttop.collectors.bpf.causes.loader import (
    CONTEXT_PROGRAMS,
    CONTEXTS,
    FOLDS,
    OPTIONAL,
    PROGRAMS,
    SOFTWARE_EVENTS,
    SUMS_OF,
    CauseLoading,
    LoadedCauses,
)
from agenttop.collectors.bpf.load.loader import LoadError
from agenttop.collectors.bpf.read.cpu_rows import CpuRows
from agenttop.collectors.procfs.frequency import no_frequency
from agenttop.linux import descriptors
from agenttop.linux.files import parse_cpulist, read_text
from agenttop.model.sample import CAUSES_LOADING, CauseState
from agenttop.model.vocabulary import CAUSE_NAMES, CAUSES

#: Programs that begin causes are attached behind those that end them; and cause_run behind
#: cause_switch.
_LAST: Final = (
    "page_fault_user",
    "page_fault_kernel",
    "direct_reclaim_begin",
    "memcg_reclaim_begin",
    "compaction_begin",
    "page_cache_miss",
    "cause_enter",
    "cause_run",
)


#: The key of the only value of a map.
_FIRST: Final = b"\0\0\0\0"


class Causes:
    """Switches causes on and off; ``loading`` is to be watched while it is not None."""

    def __init__(
        self,
        level: str,
        maps: Mapping[str, int],
        rows: CpuRows,
        power: Power,
        unavailable: str = "",
    ) -> None:
        """``unavailable``: why causes cannot be had with these maps, if so."""
        self._level = level
        self._maps = maps
        self._rows = rows
        self._power = power
        self._unavailable = unavailable
        self._no_frequency = no_frequency() or ""
        self._wanted: frozenset[str] = frozenset()
        self._loaded: LoadedCauses | None = None
        self._links: dict[str, list[int]] = {}
        self._failed: dict[str, str] = {}
        self.loading: CauseLoading | None = None
        self._contexts = False
        #: The CPUs that software events were opened on, or those that run if there are none yet.
        self._online = _online()
        #: Whether there ever was a cause to be counted.
        self.used = False

    def want(self, names: Iterable[str]) -> None:
        """Observe these and no others, as soon as their programs are in the kernel."""
        self._wanted = frozenset(names)
        self._no_frequency = no_frequency() or ""
        if self._unavailable:
            return
        self._apply()

    def follow_contexts(self, on: bool) -> None:
        """Whether contexts are followed that io_uring's user_data names, whatever is observed."""
        if on != self._contexts and not self._unavailable:
            self._contexts = on
            self._apply()

    def _apply(self) -> None:
        if self._loaded is not None:
            self._attach()
        elif (self._wanted or self._contexts) and self.loading is None:
            try:
                self.loading = CauseLoading(self._level, self._maps, self._rows)
            except LoadError as error:
                self._unavailable = str(error)

    def follow_cpus(self, online: frozenset[int]) -> None:
        """Software events belong to one CPU each: open them again where other CPUs run now."""
        if online == self._online:
            return
        self._online = online
        for name in SOFTWARE_EVENTS.keys() & self._links.keys():
            _close(self._links.pop(name))
        if self._loaded is not None:
            self._attach()

    def _tell_online(self) -> None:
        """The programs name no CPU as idle that does not run."""
        mask = sum(1 << cpu for cpu in self._online if cpu < layout.AVOIDABLE_CPUS)
        value = mask.to_bytes(layout.AVOIDABLE_CPUS // 8, "little")
        syscall.map_update(self._maps["online_cpus"], _FIRST, value)

    def finish(self) -> None:
        """Take over what ``loading`` has loaded."""
        loading, self.loading = self.loading, None
        assert loading is not None
        try:
            self._loaded = loading.result()
        except LoadError as error:
            self._unavailable = str(error)
            return
        self._failed = dict(self._loaded.refused)
        self._attach()

    def _attach(self) -> None:
        assert self._loaded is not None
        mask = sum(1 << CAUSE_NAMES.index(cause) for cause in self._wanted)
        mask |= CONTEXTS if self._contexts else 0
        syscall.map_update(self._maps["cause_wanted"], _FIRST, struct.pack("<I", mask))
        self._tell_online()
        self._power.refresh()
        needed = {name for cause in self._wanted for name in self._programs(cause)}
        if self._contexts:
            names = (*FOLDS[self._level], *CONTEXT_PROGRAMS)
            needed |= {name for name in names if name not in self._failed}
        for name in [name for name in self._links if name not in needed]:
            _close(self._links.pop(name))
        for name in sorted(needed - self._links.keys(), key=lambda name: name in _LAST):
            try:
                self._links[name] = _link(name, self._loaded.programs[name])
                self.used = True
            except OSError as error:
                said = f"could not be attached: {error.strerror or error}"
                self._failed[name] = descriptors.why(error, said)

    def _programs(self, cause: str) -> tuple[str, ...]:
        """Of a cause that can be had; none of the others."""
        if self._reason(cause):
            return ()
        names = (*FOLDS[self._level], *PROGRAMS[cause])
        return tuple(name for name in names if name not in self._failed)

    def _reason(self, cause: str) -> str:
        """Why a cause cannot be had, or empty."""
        known = (
            self._failed[name]
            for name in (*FOLDS[self._level], *PROGRAMS[cause])
            if name in self._failed and name not in OPTIONAL
        )
        missing = self._no_frequency if cause == "frequency" else ""
        return self._unavailable or next(known, "") or missing

    def unmeasured(self) -> dict[str, tuple[str, ...]]:
        """Cause -> what this kernel does not let be summed by its labels."""
        return dict(SUMS_OF[name] for name in SUMS_OF.keys() & self._failed.keys())

    def states(self, cost: bool) -> list[CauseState]:
        """Every cause, as it stands now; ``cost``: the kernel times the programs."""
        out = []
        for cause in CAUSES:
            reason = self._reason(cause.name)
            wanted = cause.name in self._wanted
            state = CauseState(cause.name, cause.stage, cause.level)
            if reason:
                state.state, state.reason = "n/a", reason
            elif wanted and self._loaded is not None:
                state.state = "on"
            else:
                state.reason = CAUSES_LOADING if wanted else "switched off"
            if cost:
                state.runs, state.run_ns = self._cost(cause.name)
            out.append(state)
        return out

    def _cost(self, cause: str) -> tuple[int, int]:
        programs = self._loaded.programs if self._loaded else {}
        runs = run_ns = 0
        for name in PROGRAMS[cause]:
            if name in programs:
                spent, count, _ = syscall.program_info(programs[name])
                runs, run_ns = runs + count, run_ns + spent
        return runs, run_ns

    def run_time_ns(self) -> int:
        """Time in the programs; grows only while the kernel measures it."""
        programs = self._loaded.programs.values() if self._loaded else ()
        return sum(syscall.program_info(fd)[0] for fd in programs)

    def recursion_misses(self) -> int:
        """Runs that the kernel skipped because the program was running on that CPU already."""
        programs = self._loaded.programs.values() if self._loaded else ()
        return sum(syscall.program_info(fd)[2] for fd in programs)

    def close(self) -> None:
        """Detach everything."""
        if self.loading is not None:
            self.loading.cancel()
            self.loading = None
        for links in self._links.values():
            _close(links)
        self._links.clear()
        if self._loaded is not None:
            _close(self._loaded.programs.values())
            self._loaded = None


def _online() -> frozenset[int]:
    return frozenset(parse_cpulist(read_text("/sys/devices/system/cpu/online") or "0"))


def _link(name: str, program: int) -> list[int]:
    if name not in SOFTWARE_EVENTS:
        return [syscall.attach_raw_tracepoint(program)]
    links: list[int] = []
    for cpu in sorted(_online()):
        try:
            links.append(syscall.attach_software_event(program, SOFTWARE_EVENTS[name], cpu))
        except OSError as error:
            if error.errno == errno.ENODEV:
                continue  # it has gone offline meanwhile
            _close(links)
            raise
    return links


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)

"""Machines of other sizes and kinds, as their kernels would show them."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, field

from agenttop.model.vocabulary import SOFTIRQS
from tests.support.trees import Tree

#: name, latency us, residency us.
State = tuple[str, int, int]
C_STATES: tuple[State, ...] = (("POLL", 0, 0), ("C1", 2, 2), ("C1E", 10, 20), ("C6", 133, 600))
E_STATES: tuple[State, ...] = (("POLL", 0, 0), ("C1", 2, 2), ("C6S", 273, 819))
LABELS = {
    "NMI": "Non-maskable interrupts",
    "LOC": "Local timer interrupts",
    "IWI": "IRQ work interrupts",
    "RES": "Rescheduling interrupts",
    "CAL": "Function call interrupts",
    "TLB": "TLB shootdowns",
    "TRM": "Thermal event interrupts",
}


def cpulist(cpus: list[int]) -> str:
    """As the kernel prints it: ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in runs) + "\n"


@dataclass
class Machine:
    """Writes itself into a tree; change it and write again to let time pass."""

    tree: Tree
    cpus: int = 2
    offline: set[int] = field(default_factory=set)
    #: Numbers that no CPU has: those that there are follow without them.
    gaps: frozenset[int] = frozenset()
    #: CPUs that could be plugged in beside them.
    possible: int = 0
    nodes: int = 0
    states: tuple[State, ...] | None = C_STATES
    #: CPUs with E_STATES instead.
    efficient: set[int] = field(default_factory=set)
    cpufreq: bool = True
    softirqs: bool = True
    #: Lines of /proc/interrupts with a queue each.
    irqs: int = 4
    tick: int = 1

    @property
    def present(self) -> list[int]:
        every = (cpu for cpu in itertools.count() if cpu not in self.gaps)
        return list(itertools.islice(every, self.cpus))

    @property
    def online(self) -> list[int]:
        return [cpu for cpu in self.present if cpu not in self.offline]

    def write(self) -> Machine:
        online = self.online
        sysfs = "sys/devices/system/cpu"
        self.tree.write(f"{sysfs}/present", cpulist(self.present))
        self.tree.write(f"{sysfs}/possible", f"0-{self.present[-1] + self.possible}\n")
        self.tree.write(f"{sysfs}/online", cpulist(online))
        for node in range(self.nodes):
            mine = [cpu for cpu in online if cpu % self.nodes == node]
            self.tree.write(f"sys/devices/system/node/node{node}/cpulist", cpulist(mine))
        if self.nodes:
            self.tree.write("sys/devices/system/node/online", f"0-{self.nodes - 1}\n")
        self.tree.write("proc/sys/kernel/hostname", "lab\n")
        self.tree.write("proc/sys/kernel/osrelease", "6.1.0-test\n")
        self._stat(online)
        self._interrupts(online)
        if self.softirqs:
            self._softirqs()
        for cpu in online:
            folder = f"{sysfs}/cpu{cpu}"
            (self.tree.root / folder).mkdir(parents=True, exist_ok=True)
            if self.states:
                self._idle(folder, cpu)
            self.tree.write(f"{folder}/power/pm_qos_resume_latency_us", 0)
            if self.cpufreq:
                self._freq(folder, cpu)
        if self.states:
            self.tree.write(f"{sysfs}/cpuidle/current_driver", "intel_idle\n")
            self.tree.write(f"{sysfs}/cpuidle/current_governor", "menu\n")
        return self

    def advance(self, idle: bool = True) -> None:
        """One tick later: what the kernel counts is written again, what is set stays."""
        self.tick += 1
        self._stat(self.online)
        self._interrupts(self.online)
        if self.softirqs:
            self._softirqs()
        for cpu in self.online if self.states and idle else ():
            self._idle(f"sys/devices/system/cpu/cpu{cpu}", cpu, moving=True)

    def remove(self, path: str) -> None:
        target = self.tree.root / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    def _stat(self, online: list[int]) -> None:
        t = self.tick
        rows = ["cpu  1 2 3 4 5 6 7 8 9 10"]
        rows += [f"cpu{c} {t * 10 + c} 1 {t * 5} {t * 80} 2 0 {t} {t * 2} 0 0" for c in online]
        self.tree.write("proc/stat", "\n".join(rows) + "\nintr 5 0 0\nctxt 99\n")

    def _interrupts(self, online: list[int]) -> None:
        rows = [" " * 9 + "".join(f"CPU{cpu:<8}" for cpu in online)]
        present = self.present
        for i in range(self.irqs):
            served = present[i % self.cpus]
            count = self.tick * 100 + i
            counts = " ".join(f"{count if cpu == served else 0:10}" for cpu in online)
            rows.append(f"{24 + i:4}: {counts}  IR-PCI-MSIX-0000:01:00.0  {i}-edge      nvme0q{i}")
        for label, description in LABELS.items():
            counts = " ".join(f"{self.tick * 1000 + cpu:10}" for cpu in online)
            rows.append(f" {label}: {counts}   {description}")
        rows += [" ERR:          7", " MIS:          0"]
        self.tree.write("proc/interrupts", "\n".join(rows) + "\n")

    def _softirqs(self) -> None:
        # A column for every possible CPU, online or not, and some more.
        possible = range(self.present[-1] + 3)
        rows = [" " * 20 + "".join(f"CPU{cpu:<8}" for cpu in possible)]
        for i, name in enumerate(SOFTIRQS):
            counts = " ".join(f"{(self.tick * 10 + cpu) * i:10}" for cpu in possible)
            rows.append(f"{name:>12}: {counts}")
        self.tree.write("proc/softirqs", "\n".join(rows) + "\n")

    def _idle(self, folder: str, cpu: int, moving: bool = False) -> None:
        states = E_STATES if cpu in self.efficient else self.states or ()
        for i, (name, latency, residency) in enumerate(states):
            base = f"{folder}/cpuidle/state{i}"
            values = {
                "name": name,
                "latency": latency,
                "residency": residency,
                "usage": self.tick * 10 + i,
                "time": self.tick * 1000 + i,
                "above": self.tick,
                "below": 0,
            }
            for file in ("usage", "time", "above") if moving else values:
                self.tree.write(f"{base}/{file}", f"{values[file]}\n")

    def _freq(self, folder: str, cpu: int) -> None:
        base = f"{folder}/cpufreq"
        self.tree.write(f"{base}/scaling_cur_freq", 2_000_000 + cpu)
        self.tree.write(f"{base}/scaling_min_freq", 800_000)
        self.tree.write(f"{base}/scaling_max_freq", 3_600_000)
        self.tree.write(f"{base}/scaling_driver", "intel_pstate\n")
        self.tree.write(f"{base}/scaling_governor", "powersave\n")

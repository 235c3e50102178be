"""cpufreq in sysfs: each CPU's frequency and its limits, kHz.

Documentation/admin-guide/pm/cpufreq.rst, "Policy Interface in sysfs".
"""

from __future__ import annotations

import glob
import os
from typing import NamedTuple

from agenttop.linux import paths
from agenttop.linux.files import KeptFile, read_text
from agenttop.linux.process import printable

#: After how many reads CPUs without a policy are looked at again (a driver may be loaded).
_RETRY = 10
#: The limits are read once in so many reads: they change when somebody sets them.
_LIMITS = 10


def no_frequency() -> str | None:
    """Why the kernel does not tell when a CPU's frequency rises; None if it does."""
    base = f"{paths.sys()}/devices/system/cpu"
    if not glob.glob(f"{base}/cpufreq/policy*"):
        return "no cpufreq driver: nothing here tells a CPU's frequency"
    driver = read_text(f"{base}/cpu0/cpufreq/scaling_driver") or ""
    # Both leave the choice to the CPU, which tells nobody (intel_pstate.rst, amd-pstate.rst).
    if driver == "amd-pstate-epp" or os.path.exists(f"{base}/intel_pstate/hwp_dynamic_boost"):
        return f"the CPUs choose their frequencies themselves ({driver}), and the kernel sees none"
    return None


class Frequency(NamedTuple):
    """kHz; None where the driver does not tell."""

    current_khz: int | None
    min_khz: int | None
    max_khz: int | None


class _Policy:
    """CPUs that share a clock share these files."""

    __slots__ = ("current", "high", "limits", "low", "reads")

    def __init__(self, folder: str) -> None:
        self.current = KeptFile(f"{folder}/scaling_cur_freq")
        self.low = KeptFile(f"{folder}/scaling_min_freq")
        self.high = KeptFile(f"{folder}/scaling_max_freq")
        self.limits: tuple[int | None, int | None] = (None, None)
        self.reads = 0

    def read(self) -> Frequency:
        if self.reads % _LIMITS == 0:
            self.limits = self.low.number(), self.high.number()
            self.low.close()
            self.high.close()
        self.reads += 1
        return Frequency(self.current.number(), *self.limits)

    def close(self) -> None:
        for file in (self.current, self.low, self.high):
            file.close()


class Freq:
    """Frequency per CPU."""

    def __init__(self, cpus: list[int]) -> None:
        self._base = f"{paths.sys()}/devices/system/cpu"
        self._cpus = cpus
        self._policies: dict[str, _Policy] = {}
        self._policy_of: dict[int, str] = {}
        self._reads = 0
        self._discover()

    def driver(self) -> str | None:
        """The frequency driver, e.g. intel_pstate; None if there is none."""
        return self._text("scaling_driver")

    def governor(self) -> str | None:
        """The frequency governor of the first CPU that has one, e.g. schedutil."""
        return self._text("scaling_governor")

    def read(self, online: frozenset[int] | None = None) -> dict[int, Frequency]:
        """CPU -> frequency; CPUs without cpufreq, or not in ``online``, are left out."""
        self._reads += 1
        if self._reads % _RETRY == 0 and len(self._policy_of) < len(self._cpus):
            self._discover()
        wanted = {c: f for c, f in self._policy_of.items() if online is None or c in online}
        values = {folder: self._policies[folder].read() for folder in set(wanted.values())}
        for folder in self._policies.keys() - values.keys():
            # The folder goes with its last CPU, and another comes when that is back.
            self._policies[folder].close()
        nothing = Frequency(None, None, None)
        return {cpu: values[f] for cpu, f in wanted.items() if values[f] != nothing}

    def _text(self, file: str) -> str | None:
        for folder in self._policies:
            if value := read_text(f"{folder}/{file}"):
                return printable(value)
        return None

    def _discover(self) -> None:
        for cpu in self._cpus:
            link = f"{self._base}/cpu{cpu}/cpufreq"
            if cpu not in self._policy_of and os.path.isdir(link):
                folder = os.path.realpath(link)
                self._policy_of[cpu] = folder
                self._policies.setdefault(folder, _Policy(folder))

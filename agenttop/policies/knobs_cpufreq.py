"""Knobs of cpufreq: a frequency domain's lowest frequency and its energy preference.

Documentation/admin-guide/pm/cpufreq.rst and intel_pstate.rst. The target is
``policyN/FILE`` under /sys/devices/system/cpu/cpufreq. The guardian imports
this module, so it stays small.
"""

from __future__ import annotations

import os
import re

from agenttop.policies.knobs import KNOBS, KnobError, reason, sys_root

_TARGET = re.compile(r"policy\d{1,5}/(scaling_min_freq|energy_performance_preference)", re.A)
_KHZ = re.compile(r"\d{1,9}", re.A)
#: Words of intel_pstate and amd_pstate, or a raw value 0..255.
PREFERENCES = ("performance", "balance_performance", "default", "balance_power", "power")


class CpuFreq:
    """See the module."""

    def valid(self, target: str, value: str) -> bool:
        if not _TARGET.fullmatch(target):
            return False
        if target.endswith("scaling_min_freq"):
            return bool(_KHZ.fullmatch(value))
        return value in PREFERENCES or bool(re.fullmatch(r"\d{1,3}", value, re.A))

    def path(self, target: str) -> str:
        return f"{sys_root()}/devices/system/cpu/cpufreq/{target}"

    label = path

    def read(self, target: str) -> str | None:
        try:
            with open(self.path(target)) as file:
                return file.read(64).strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KnobError(reason(error)) from None

    def write(self, target: str, value: str) -> None:
        try:
            fd = os.open(self.path(target), os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise KnobError(reason(error)) from None

    def same(self, a: str, b: str) -> bool:
        return a == b

    def ours(self, current: str, written: str) -> bool:
        # A driver with a table of frequencies takes the nearest one that it has.
        if current.isdecimal() and written.isdecimal():
            return abs(int(current) - int(written)) * 20 <= int(written)
        return current == written

    def drift(self, target: str, written: str, thorough: bool = True) -> str | None:
        current = self.read(target)
        return "" if current is None else None if self.ours(current, written) else current


CPUFREQ = CpuFreq()
KNOBS["cpufreq"] = CPUFREQ

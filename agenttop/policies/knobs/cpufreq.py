"""Knobs of cpufreq: a frequency domain's lowest frequency and its energy preference.

Documentation/admin-guide/pm/cpufreq.rst and intel_pstate.rst. The target is
``policyN/FILE`` under /sys/devices/system/cpu/cpufreq. The guardian imports
this module, so it stays small.
"""

from __future__ import annotations

import re

from agenttop.policies.knobs.base import sys_root
from agenttop.policies.knobs.files import FileKnob

_TARGET = re.compile(r"policy\d{1,5}/(scaling_min_freq|energy_performance_preference)", re.A)
_KHZ = re.compile(r"\d{1,9}", re.A)
#: Words of intel_pstate and amd_pstate, or a raw value 0..255.
PREFERENCES = ("performance", "balance_performance", "default", "balance_power", "power")


class CpuFreq(FileKnob):
    """See the module."""

    def valid(self, target: str, value: str) -> bool:
        if not _TARGET.fullmatch(target):
            return False
        if target.endswith("scaling_min_freq"):
            return bool(_KHZ.fullmatch(value))
        return value in PREFERENCES or bool(re.fullmatch(r"\d{1,3}", value, re.A))

    def path(self, target: str) -> str:
        return f"{sys_root()}/devices/system/cpu/cpufreq/{target}"

    def ours(self, current: str, written: str) -> bool:
        # A driver with a table of frequencies takes the nearest one that it has.
        if current.isdecimal() and written.isdecimal():
            return abs(int(current) - int(written)) * 20 <= int(written)
        return current == written


CPUFREQ = CpuFreq()

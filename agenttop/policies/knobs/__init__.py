"""One class per kernel setting: read, write, compare, restore."""

from __future__ import annotations

from agenttop.policies.knobs.base import AFFINITY, CPU_LATENCY, RESUME_LATENCY, Change, Knob
from agenttop.policies.knobs.cgroup import CGROUP_KNOBS
from agenttop.policies.knobs.cpufreq import CPUFREQ
from agenttop.policies.knobs.files import FILE_KNOBS
from agenttop.policies.knobs.sched_attr import THREAD_KNOBS

#: Every kind of setting, by the name that the journal has for it.
KNOBS: dict[str, Knob] = {
    "pm_qos": RESUME_LATENCY,
    "cpu_latency": CPU_LATENCY,
    "affinity": AFFINITY,
    "cpufreq": CPUFREQ,
    **FILE_KNOBS,
    **CGROUP_KNOBS,
    **THREAD_KNOBS,
}


def change_line(change: Change) -> str:
    """For people: ``affinity of tid 123 (name): 0-1 -> 1``."""
    return f"{KNOBS[change.kind].label(change.target)}: {change.before} -> {change.after}"

"""Facts about the host that do not change between Samples."""

from __future__ import annotations

from agenttop.collectors.procfs.cpus import ProcfsCpus
from agenttop.linux import paths
from agenttop.linux.files import read_text
from agenttop.linux.process import printable
from agenttop.model.sample import Host, Level, Mode


def host(
    cpus: ProcfsCpus,
    *,
    level: Level = "lite",
    mode: Mode = "procfs",
    missing: dict[str, str] | None = None,
    banner: str | None = None,
    no_power: str | None = None,
    cpus_every_s: float = 0.0,
) -> Host:
    """The Host, with what is missing in sysfs added to ``missing`` (group -> reason)."""
    reasons = dict(missing or {})
    idle_driver, freq_driver = cpus.idle.driver(), cpus.freq.driver()
    if not cpus.idle.states:
        reasons.setdefault("idle", "no cpuidle driver: no idle states in /sys")
    if freq_driver is None:
        reasons.setdefault("freq", "no cpufreq driver")
    if no_power is not None:
        reasons.setdefault("power", no_power)
    return Host(
        name=_kernel("hostname"),
        kernel=_kernel("osrelease"),
        cpus=len(cpus.cpus),
        cpus_every_s=cpus_every_s,
        level=level,
        mode=mode,
        idle_states=list(cpus.idle.states),
        idle_driver=idle_driver,
        idle_governor=cpus.idle.governor(),
        freq_driver=freq_driver,
        missing=reasons,
        banner=banner,
    )


def _kernel(name: str) -> str:
    return printable(read_text(f"{paths.proc()}/sys/kernel/{name}") or "?")

"""Idle states, frequency, and the files that policies write to."""

from __future__ import annotations

import glob
import os
import stat

from agenttop.collectors.procfs.frequency import Freq
from agenttop.collectors.procfs.idle import Idle
from agenttop.collectors.procfs.topology import Topology
from agenttop.doctor.report import Item, Status
from agenttop.linux import paths
from agenttop.linux.files import read_text
from agenttop.linux.process import printable

_DMA_LATENCY = "/dev/cpu_dma_latency"


def items() -> list[Item]:
    """All of them, in the order in which they are shown."""
    cpus = Topology().present()
    idle = Idle(cpus)
    return [_states(idle), _governor(idle), _freq(Freq(cpus)), _pm_qos(cpus), _latency(), _irqs()]


def _states(idle: Idle) -> Item:
    texts = [f"{state.name} {state.latency_us}us" for state in idle.states]
    return Item(
        key="idle_states",
        group="power",
        title="idle states",
        status="ok" if texts else "missing",
        detail=f"{', '.join(texts)} ({idle.driver()})" if texts else "no cpuidle driver",
        lost=None if texts else "idle residency, policy guard",
    )


def _governor(idle: Idle) -> Item:
    name = idle.governor()
    there = bool(name and idle.states)
    return Item(
        key="idle_governor",
        group="power",
        title="idle governor",
        status="ok" if there else "missing",
        detail=name if name and there else "none",
        lost=None if there else "the governor's misses",
    )


def _freq(freq: Freq) -> Item:
    driver = freq.driver()
    return Item(
        key="cpufreq",
        group="power",
        title="cpufreq",
        status="ok" if driver else "missing",
        detail=f"{driver}, governor {freq.governor()}" if driver else "no driver",
        lost=None if driver else "frequency and its limits",
    )


def _pm_qos(cpus: list[int]) -> Item:
    base = paths.sys() / "devices/system/cpu"
    files = [f"{base}/cpu{cpu}/power/pm_qos_resume_latency_us" for cpu in cpus]
    there = [file for file in files if os.path.exists(file)]
    writable = [file for file in there if os.access(file, os.W_OK)]
    status: Status = "ok" if len(writable) == len(cpus) else "limited" if writable else "missing"
    set_by_others = sum(read_text(file) not in ("0", None) for file in there)
    detail = f"{len(writable)} of {len(cpus)} CPUs' pm_qos_resume_latency_us writable"
    if set_by_others:
        detail += f", {set_by_others} in use"
    return Item(
        key="pm_qos",
        group="policies",
        title="PM QoS per CPU",
        status=status,
        detail=detail,
        lost=None if status == "ok" else "policy guard on single CPUs",
        remedy="run as root" if there and not writable and os.geteuid() != 0 else None,
    )


def _latency() -> Item:
    there = os.path.exists(_DMA_LATENCY)
    writable = os.access(_DMA_LATENCY, os.W_OK)
    return Item(
        key="cpu_dma_latency",
        group="policies",
        title=_DMA_LATENCY,
        status="ok" if writable else "missing",
        detail="writable" if writable else "not writable" if there else "not there",
        lost=None if writable else "policy guard on all CPUs at once",
        remedy="run as root" if there and not writable and os.geteuid() != 0 else None,
    )


def _irqs() -> Item:
    """By mode and access only: some lines refuse a write all the same, which shows when tried."""
    files = glob.glob(f"{glob.escape(str(paths.proc()))}/irq/[0-9]*/smp_affinity_list")
    writable = 0
    for file in files:
        try:
            open_mode = os.stat(file).st_mode & stat.S_IWUSR
        except OSError:
            continue
        writable += bool(open_mode) and os.access(file, os.W_OK)
    status: Status = "ok" if writable else "missing"
    if writable and writable < len(files):
        status = "limited"
    return Item(
        key="irq_affinity",
        group="policies",
        title="IRQ affinity",
        status=status,
        detail=f"{writable} of {len(files)} lines' files writable"
        if files
        else printable(f"no {paths.proc()}/irq"),
        lost=None if status == "ok" else "steering of the other lines" if writable else "steering",
        remedy="run as root" if files and not writable and os.geteuid() != 0 else None,
    )

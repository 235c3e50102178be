"""What the kernel-side measuring needs: BTF, BCC, tracepoints, storage."""

from __future__ import annotations

import importlib.machinery
import os
import struct
import sys
from typing import Final

from agenttop.collectors.bpf.causes.loader import OPTIONAL, PROGRAMS, lacks
from agenttop.collectors.bpf.load import source
from agenttop.collectors.bpf.load.btf import Btf, BtfError
from agenttop.collectors.bpf.load.loader import DIST_PACKAGES, LoadError
from agenttop.collectors.bpf.load.loader import bcc as import_bcc
from agenttop.collectors.bpf.read.cpu_rows import CpuRows
from agenttop.collectors.procfs.frequency import no_frequency
from agenttop.doctor.report import Item
from agenttop.doctor.system import capabilities
from agenttop.linux import paths
from agenttop.linux.process import printable, read_file
from agenttop.model.vocabulary import CAUSES

_PACKAGES: Final = (
    ({"debian", "ubuntu"}, "apt install python3-bpfcc"),
    ({"fedora", "rhel", "centos"}, "dnf install python3-bcc"),
    ({"arch"}, "pacman -S python-bcc"),
    ({"suse", "opensuse"}, "zypper install python3-bcc"),
    ({"alpine"}, "apk add py3-bcc"),
)


def items(deep: bool) -> list[Item]:
    """All of them; ``deep`` imports BCC."""
    try:
        btf = Btf.load(paths.sys() / "kernel/btf/vmlinux")
    except (BtfError, struct.error, ValueError, IndexError) as error:
        return [_lockdown(), _bcc(deep), _no_btf(str(error))]
    return [
        _lockdown(),
        _bcc(deep),
        Item(
            key="btf",
            group="bpf",
            title="BTF",
            status="ok",
            detail=str(paths.sys() / "kernel/btf/vmlinux"),
            needed=True,
        ),
        _programs(btf),
        _storage(btf),
        _ring(btf),
        _stats(),
        *_tracepoints(btf),
        *_causes(btf),
    ]


def install_command(os_release: str = "/etc/os-release") -> str:
    """How this distribution installs BCC for Python."""
    raw = (read_file(os_release, 8192) or b"").decode("utf-8", "replace")
    names: set[str] = set()
    for line in raw.splitlines():
        key, _, value = line.partition("=")
        if key in ("ID", "ID_LIKE"):
            names |= {word.partition("-")[0] for word in value.strip("\"' ").split()}
    for known, command in _PACKAGES:
        if names & known:
            return command
    return "install the distribution's BCC for Python"


def _no_btf(reason: str) -> Item:
    return Item(
        key="btf",
        group="bpf",
        title="BTF",
        status="missing",
        detail=f"no kernel types: {printable(reason, 100)} (CONFIG_DEBUG_INFO_BTF)",
        lost="step chains; tracepoints were not looked for",
        needed=True,
    )


def _lockdown() -> Item:
    raw = read_file(f"{paths.sys()}/kernel/security/lockdown", 128) or b""
    closed = b"[confidentiality]" in raw
    return Item(
        key="lockdown",
        group="bpf",
        title="lockdown",
        status="missing" if closed else "ok",
        detail="confidentiality: BPF may not read the kernel" if closed else "does not forbid BPF",
        lost="step chains" if closed else None,
        remedy="boot without lockdown=confidentiality" if closed else None,
        needed=True,
    )


def _bcc(deep: bool) -> Item:
    def item(problem: str | None, detail: str, remedy: str | None) -> Item:
        return Item(
            key="bcc",
            group="bpf",
            title="BCC for Python",
            status="missing" if problem else "ok",
            detail=printable(problem or detail, 160),
            lost="step chains" if problem else None,
            remedy=remedy if problem else None,
            needed=True,
        )

    # The order in which the loader would find them, without importing any.
    spec = importlib.machinery.PathFinder.find_spec("bcc", [*sys.path, *DIST_PACKAGES])
    if spec is None:
        return item("not installed (PyPI's bcc is something else)", "", install_command())
    where = spec.origin or "?"
    if not os.path.exists(os.path.join(os.path.dirname(where), "libbcc.py")):
        problem = f"{where} is not BCC: PyPI's bcc is something else"
        return item(problem, "", f"pip uninstall bcc, {install_command()}")
    version = ""
    if deep:
        try:
            version = f" {getattr(import_bcc(), '__version__', '')}".rstrip()
        except LoadError as error:
            return item(str(error), "", install_command())
    return item(None, f"BCC{version} in {os.path.dirname(where)}", None)


def _programs(btf: Btf) -> Item:
    """The loader's own decision, so that the doctor never promises what it would refuse."""
    try:
        plan = source.plan(btf, "lite", CpuRows.present())
    except source.UnsupportedError as error:
        return Item(
            key="programs",
            group="bpf",
            title="BPF programs",
            status="missing",
            detail=printable(str(error), 160),
            lost="step chains",
            needed=True,
        )
    return Item(
        key="programs",
        group="bpf",
        title="BPF programs",
        status="ok",
        detail=f"{plan.mode}, {len(plan.tracepoints)} tracepoints at level {plan.level}",
        needed=True,
    )


def _storage(btf: Btf) -> Item:
    there = btf.field_offset("task_struct", "bpf_storage") is not None
    return Item(
        key="task_storage",
        group="bpf",
        title="task-local storage",
        status="ok" if there else "limited",
        detail="task_struct.bpf_storage" if there else "not in this kernel (5.11 has it)",
        lost=None if there else "cheap tracing and level lite: raw tracepoints and a hash instead",
    )


def _ring(btf: Btf) -> Item:
    there = btf.field_offset("bpf_ringbuf_map", "rb") is not None
    return Item(
        key="ring_buffer",
        group="bpf",
        title="ring buffer",
        status="ok" if there else "missing",
        detail="BPF_MAP_TYPE_RINGBUF" if there else "not in this kernel (5.8 has it)",
        lost=None if there else "step chains",
        needed=True,
    )


def _stats() -> Item:
    there = os.path.exists(paths.proc() / "sys/kernel/bpf_stats_enabled")
    may = "CAP_SYS_ADMIN" in capabilities()
    return Item(
        key="bpf_stats",
        group="bpf",
        title="BPF run time",
        status="ok" if there and may else "missing",
        detail="can be asked for" if there and may else "CAP_SYS_ADMIN" if there else "no switch",
        lost=None if there and may else "what the BPF programs cost (--bpf-stats)",
        remedy=None if may else "run as root",
    )


def _tracepoints(btf: Btf) -> list[Item]:
    """One item per tracepoint; entry and exit of the same thing are one."""
    groups: dict[str, list[str]] = {}
    for name in (*source.CHAIN, *source.LIFE, *source.ENTRIES, *source.EXITS):
        groups.setdefault(_stem(name), []).append(name)
    groups["sys_enter, sys_exit"] = list(source.CALLS)
    found = []
    for title, names in groups.items():
        absent = [name for name in names if not btf.has_tracepoint(name)]
        known = (source.LOSS_WITHOUT[n] for n in names if n in source.LOSS_WITHOUT)
        loss = next(known, f"time in {title.removesuffix(' (entry, exit)')}")
        required = any(name in source.REQUIRED for name in names)
        found.append(
            Item(
                key=f"tracepoint.{title.partition(' ')[0].rstrip(',')}",
                group="events",
                title=title,
                status="missing" if absent else "ok",
                detail=f"no tracepoint {', '.join(absent)}" if absent else "tracepoint",
                lost=("step chains" if required else loss) if absent else None,
                needed=required,
            )
        )
    return found


def _causes(btf: Btf) -> list[Item]:
    """One item per cause of --causes; what observing it costs is known only while it is on."""
    storage = btf.field_offset("task_struct", "bpf_storage") is not None
    found = []
    for cause in CAUSES:
        absent = {p: said for p in PROGRAMS[cause.name] if (said := lacks(btf, p))}
        why = "no task-local storage" if not storage else ""
        why = next((said for p, said in absent.items() if p not in OPTIONAL), why)
        if not why and cause.name == "frequency":
            why = no_frequency() or ""
        without = dict.fromkeys(OPTIONAL[p] for p in absent if p in OPTIONAL)
        some = f" (without {', '.join(without)})" if without else ""
        found.append(
            Item(
                key=f"cause.{cause.name}",
                group="events",
                title=f"cause {cause.name}",
                status="missing" if why else "ok",
                detail=why or f"--causes {cause.level}: {cause.meaning}{some}",
                lost=f"{cause.meaning}, as a cause of stage {cause.stage}" if why else None,
            )
        )
    return found


def _stem(name: str) -> str:
    for suffix in ("_entry", "_exit"):
        if name.endswith(suffix) and f"{name.removesuffix(suffix)}_entry" in source.ENTRIES:
            return f"{name.removesuffix(suffix)} (entry, exit)"
    return name

"""What this machine offers to agenttop, and what is lost where something is missing.

Only looks: opens files for reading, asks for permissions, changes nothing.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from agenttop.linux.files import read_text
from agenttop.linux.paths import proc
from agenttop.linux.process import printable

SCHEMA_NAME = "agenttop.doctor"
SCHEMA_VERSION = 1

Status = Literal["ok", "limited", "missing"]
Group = Literal["system", "bpf", "events", "kernel", "power", "policies"]
#: In the order in which they are shown.
GROUPS: Final[tuple[Group, ...]] = ("system", "bpf", "events", "kernel", "power", "policies")


class Item(msgspec.Struct, kw_only=True):
    """One thing that was looked at."""

    #: Stable name for programs.
    key: str
    #: Which part of agenttop it serves.
    group: Group
    title: str
    status: Status
    #: What was found.
    detail: str = ""
    #: What agenttop cannot show or do because of it; None for ok.
    lost: str | None = None
    #: What to do about it, as short as a command; None if nothing can be done.
    remedy: str | None = None
    #: Step chains cannot be measured without it.
    needed: bool = False


class Report(msgspec.Struct, kw_only=True):
    """All items, and what they mean together."""

    schema: str = SCHEMA_NAME
    version: int = SCHEMA_VERSION
    host: str
    kernel: str
    #: Step chains can be measured.
    chains: bool
    verdict: str
    items: list[Item]

    def item(self, key: str) -> Item:
        """The item of this key. Raises KeyError."""
        for item in self.items:
            if item.key == key:
                return item
        raise KeyError(key)


def examine(deep: bool = False) -> Report:
    """Looks at everything.

    ``deep`` also imports BCC (0.2 s, 80 MB), the only proof that it works;
    the engine leaves that to its loader.
    """
    from agenttop.doctor import bpf, power, system

    items = [*system.items(), *bpf.items(deep), *power.items()]
    items.sort(key=lambda item: GROUPS.index(item.group))
    chains = not any(item.needed and item.status == "missing" for item in items)
    base = f"{proc()}/sys/kernel"
    return Report(
        host=printable(read_text(f"{base}/hostname") or "?"),
        kernel=printable(read_text(f"{base}/osrelease") or "?"),
        chains=chains,
        verdict=_verdict(items, chains),
        items=items,
    )


def _verdict(items: list[Item], chains: bool) -> str:
    if not chains:
        needed = [i for i in items if i.needed and i.status == "missing"]
        why = ", ".join(i.title for i in needed)
        return f"no step chains ({why}): agenttop shows what /proc and /sys tell"
    bad = [item for item in items if item.status != "ok"]
    if not bad:
        return "everything is there"
    missing = sum(item.status == "missing" for item in bad)
    return f"step chains can be measured; {missing} missing, {len(bad) - missing} limited"


def banner(report: Report) -> str | None:
    """One line that says what would unlock step chains and policies; None if nothing is locked."""
    blocked = [i for i in report.items if i.needed and i.status == "missing"]
    hopeless = [i for i in blocked if i.remedy is None]
    if hopeless:
        return f"no step chains: {hopeless[0].detail}; showing what /proc and /sys tell"
    remedies = list(dict.fromkeys(i.remedy for i in blocked if i.remedy))
    if remedies:
        return f"{' and '.join(remedies)} for step chains"
    privileges = report.item("privileges")
    if privileges.status != "ok" and privileges.remedy:
        return f"{privileges.remedy} for policies"
    return None

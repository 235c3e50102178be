"""vfs: file metadata (dentries, inodes) stays cached longer than file contents.

An agent's path lookups that miss the cache read the disk. The kernel is told
to prefer reclaiming page cache. Below 10 percent it would hardly free
metadata at all and may run out of memory, so that cannot be asked for.

Knob: the sysctl vm.vfs_cache_pressure, percent
(Documentation/admin-guide/sysctl/vm.rst). It shows under memory pressure only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated

import msgspec

from agenttop.policies.base import Key, Settings, Targets
from agenttop.policies.knobs.base import KnobError
from agenttop.policies.knobs.files import SYSCTL
from agenttop.policies.setting_requests import Wishes

NAME = "vm.vfs_cache_pressure"


class Params(msgspec.Struct, frozen=True):
    """What can be set."""

    #: How readily metadata is reclaimed beside page cache, percent (the kernel's default: 100).
    pressure: Annotated[int, msgspec.Meta(ge=10, le=100)] = 50


class Vfs:
    """The policy."""

    name = "vfs"
    key = "v"
    title = "file metadata stays cached"

    def __init__(self, params: Params | None = None) -> None:
        self._pressure = (params or Params()).pressure
        self.reset()

    def reset(self) -> None:
        self._detail = ""

    def probe(self) -> str | None:
        if os.geteuid() != 0:
            return "needs root"
        try:
            missing = SYSCTL.read(NAME) is None
        except KnobError as error:
            return f"{NAME}: {error}"
        return f"{NAME}: missing (no /proc/sys?)" if missing else None

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        wishes = Wishes(held)
        wishes.lower("sysctl", NAME, self._pressure)
        parts = [f"{NAME} {value}" for value in wishes.settings.values()]
        self._detail = "; ".join(parts + wishes.left_text())
        return wishes.settings

    def detail(self) -> str:
        return self._detail

    def agents(self) -> dict[int, str]:
        return {}

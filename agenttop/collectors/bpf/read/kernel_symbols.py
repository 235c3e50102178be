"""Names of kernel functions by their address, from /proc/kallsyms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

#: Addresses that are remembered at most.
_MOST: Final = 4096


class Symbols:
    """Asked for few addresses, each the beginning of a function: reads the table for new ones.

    That takes some 50 ms, so it is done once for an address; where the kernel
    hides addresses (kernel.kptr_restrict) names are None.
    """

    def __init__(self, path: Path = Path("/proc/kallsyms")) -> None:
        self._path = path
        self._names: dict[int, str | None] = {}

    def name(self, address: int) -> str | None:
        """The function that begins there."""
        if address not in self._names:
            if len(self._names) >= _MOST:
                self._names.clear()
            self._names[address] = self._find(address)
        return self._names[address]

    def _find(self, address: int) -> str | None:
        if not address:
            return None
        try:
            table = self._path.read_bytes()
        except OSError:
            return None
        found = re.search(rb"^%016x [tTwW] (\S+)" % address, table, re.MULTILINE)
        return found[1].decode(errors="replace") if found else None

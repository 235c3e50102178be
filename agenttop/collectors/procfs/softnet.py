"""/proc/net/softnet_stat: what became of received packets on each CPU.

A line per online CPU, in hexadecimal (net/core/net-procfs.c, softnet_seq_show):
packets, dropped as the backlog was full, times that net_rx_action stopped
with packets left because its budget or time was used up (time squeeze); the
thirteenth, where there is one, is the CPU's number.
"""

from __future__ import annotations

from typing import Final

from agenttop.linux import paths
from agenttop.linux.files import KeptFile
from agenttop.model.sample import Softnet

_CPU: Final = 12
_MODULUS: Final = 1 << 32


class SoftnetStat:
    """Counters per CPU."""

    def __init__(self) -> None:
        self._file = KeptFile(f"{paths.proc()}/net/softnet_stat")
        self._last: dict[int, tuple[int, ...]] = {}
        self._kept: dict[int, Softnet] = {}

    def read(self, online: frozenset[int] | None) -> dict[int, Softnet]:
        """CPU -> counters since boot; offline CPUs keep what they had.

        Empty without the file, and where its lines do not tell whose they are.
        """
        raw = self._file.read_all()
        rows = raw.splitlines() if raw else []
        for place, row in enumerate(rows):
            try:
                words = [int(word, 16) % _MODULUS for word in row.split()]
                if len(words) > _CPU:
                    cpu = words[_CPU]
                elif online is None or len(online) == len(rows):
                    cpu = sorted(online)[place] if online else place
                else:
                    continue
                counts = (words[0], words[1], words[2])
            except (IndexError, ValueError):
                continue
            self._kept[cpu] = self._gained(cpu, counts)
        return dict(self._kept)

    def _gained(self, cpu: int, counts: tuple[int, int, int]) -> Softnet:
        """The file's numbers have 32 bits and wrap."""
        old = self._kept.get(cpu)
        last, self._last[cpu] = self._last.get(cpu), counts
        if old is None or last is None:
            return Softnet(*counts)
        more = [(now - before) % _MODULUS for now, before in zip(counts, last, strict=True)]
        return Softnet(old.packets + more[0], old.dropped + more[1], old.time_squeezes + more[2])

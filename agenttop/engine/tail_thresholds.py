"""What counts as tail, per agent: thresholds that the engine gives to the kernel.

The kernel adds the stages of steps above the tail threshold (so that the
stage that dominates the tail is measured, not guessed from percentiles that
do not add up) and keeps whole the few that are among the slowest of late. How
many those are does not depend on how many steps there are: the threshold is the
slowpath that about so many steps exceeded in the last seconds, or the least of those
kept in the last half minute, whichever is larger; and between two looks of the
engine the kernel keeps a fixed number and then only what is slower than all
kept since.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agenttop.model.histogram_layout import BUCKETS
from agenttop.stats.histogram import EDGES

#: The slowest steps kept per agent (fewer each when there are many agents), and for how long, ns.
KEPT: Final = 16
KEPT_IN_ALL: Final = 512
KEPT_LEAST: Final = 4
KEPT_NS: Final = 30_000_000_000
#: The tail is the slowest 1 % of what came in about this time, ns; of many agents one is renewed
#: each tenth of a second.
RENEW_NS: Final = 5_000_000_000
RENEW_EACH_NS: Final = 100_000_000
TAIL_RATIO: Final = 0.99
#: Fewer steps than this say nothing about a tail.
MIN_STEPS: Final = 100


def kept_each(agents: int) -> int:
    """How many slow steps each of so many agents may have kept."""
    return max(KEPT_LEAST, min(KEPT, KEPT_IN_ALL // max(agents, 1)))


def renew_every_ns(agents: int) -> int:
    """How often each of so many agents is renewed, ns."""
    return max(RENEW_NS, agents * RENEW_EACH_NS)


def _no_counts() -> NDArray[np.uint32]:
    return np.zeros(BUCKETS, dtype=np.uint32)


@dataclass
class Tail:
    """The thresholds of one agent, ns."""

    slow_ns: int = 0
    tail_ns: int = 0
    _kept: list[tuple[int, int]] = field(default_factory=list)  # (slowpath, time), a heap
    #: Slowpath counts at the last renewal, and the decaying ones that the tail is taken from.
    _seen: NDArray[np.uint32] = field(default_factory=_no_counts)
    _recent: NDArray[np.uint32] = field(default_factory=_no_counts)
    _renewed_ns: int = 0
    #: Between the last two renewals about as many steps exceeded it as may be kept.
    _floor_ns: int = 0

    def keep(self, slowpath_ns: int, now_ns: int) -> None:
        """A slow step was kept whole."""
        heapq.heappush(self._kept, (slowpath_ns, now_ns))

    def update(self, now_ns: int, most: int = KEPT) -> None:
        """Renew ``slow_ns``, with ``most`` steps kept."""
        if self._kept:
            self._kept = [entry for entry in self._kept if now_ns - entry[1] < KEPT_NS]
            heapq.heapify(self._kept)
            while len(self._kept) > most:
                heapq.heappop(self._kept)
        least = self._kept[0][0] if len(self._kept) >= most else 0
        self.slow_ns = max(least, self._floor_ns)

    def due(self, now_ns: int, every_ns: int = RENEW_NS) -> bool:
        """Is it time to ``renew``?"""
        return not self.tail_ns or now_ns - self._renewed_ns >= every_ns

    def renew(self, slowpath: NDArray[np.uint32], now_ns: int, most: int = KEPT) -> None:
        """Renew ``tail_ns`` from the kernel's slowpath counts (which may have wrapped).

        And the least that ``slow_ns`` may be, with ``most`` steps kept.
        """
        came = slowpath - self._seen  # modulo 2**32, as the counts
        recent = self._recent // 2 + came
        cumulative = np.cumsum(recent, dtype=np.int64)
        total = int(cumulative[-1])
        if total < MIN_STEPS:
            return
        self._renewed_ns = now_ns
        self._recent, self._seen = recent, slowpath
        # Bucket after bucket from the slowest down, until `most` steps lie there.
        buckets = int(np.searchsorted(np.cumsum(came[::-1], dtype=np.int64), most)) + 1
        self._floor_ns = max(0, int(EDGES[max(BUCKETS - buckets, 0)]) - 1)
        bucket = int(np.searchsorted(cumulative, TAIL_RATIO * total))
        self.tail_ns = max(1, int(EDGES[bucket]))

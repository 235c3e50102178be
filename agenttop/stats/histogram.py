"""Log-linear histograms: the layout that kernel and user side share.

32 sub-buckets per power of two from 1 ns to 2**36 - 1 ns (68.7 s): the value
v < 32 has the bucket v, larger ones ``((e - 5) << 5) + (v >> (e - 5))`` with
``e = floor(log2(v))``. That makes exactly 1024 buckets; a bucket is at most
1/32 of its lower edge wide, so its middle is within 1.6 % of every value in
it. Larger values are counted in the last bucket (and by a counter of their
own in the kernel).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agenttop.model.histogram_layout import BUCKETS, MAX_EXPONENT, SUB_BITS, SUB_BUCKETS

__all__ = ["BUCKETS", "EDGES", "MAX_VALUE_NS", "Counts", "bucket_of", "empty", "lower_edge"]
__all__ += ["maximum", "percentiles", "record"]

#: Largest value with a bucket of its own, ns.
MAX_VALUE_NS: Final = (1 << (MAX_EXPONENT + 1)) - 1

Counts = NDArray[np.uint64]


def bucket_of(value_ns: int) -> int:
    """Bucket index of a value in ns; negative values count as 0, too large ones as the last."""
    if value_ns < SUB_BUCKETS:
        return max(value_ns, 0)
    exponent = value_ns.bit_length() - 1
    if exponent > MAX_EXPONENT:
        return BUCKETS - 1
    shift = exponent - SUB_BITS
    return (shift << SUB_BITS) + (value_ns >> shift)


def lower_edge(bucket: int) -> int:
    """Smallest value in ns that falls into the bucket."""
    if bucket < SUB_BUCKETS:
        return bucket
    shift = (bucket >> SUB_BITS) - 1
    return (SUB_BUCKETS + (bucket & (SUB_BUCKETS - 1))) << shift


#: Lower edges of all buckets and, last, the end of the last one, ns (shape: BUCKETS + 1).
EDGES: Final[NDArray[np.int64]] = np.array(
    [lower_edge(i) for i in range(BUCKETS)] + [MAX_VALUE_NS + 1], dtype=np.int64
)


def percentiles(counts: Counts, ratios: Sequence[float]) -> list[int | None]:
    """Values in ns at the given ratios (0..1) of the counted values.

    Interpolates by rank inside the bucket; None for an empty histogram.
    ``counts`` has the shape (BUCKETS,).
    """
    cumulative = np.cumsum(counts, dtype=np.int64)
    total = int(cumulative[-1])
    if total == 0:
        return [None] * len(ratios)
    out: list[int | None] = []
    for ratio in ratios:
        # The nearest-rank definition: the smallest value with at least
        # ratio * total values at or below it.
        rank = max(1, int(np.ceil(ratio * total - 1e-9)))
        bucket = int(np.searchsorted(cumulative, rank))
        before = int(cumulative[bucket - 1]) if bucket else 0
        inside = int(cumulative[bucket]) - before
        low, high = int(EDGES[bucket]), int(EDGES[bucket + 1])
        out.append(low + int((high - low) * (rank - before - 0.5) / inside))
    return out


def maximum(counts: Counts) -> int | None:
    """Largest value in ns that the highest used bucket can hold; None when empty.

    At most 1/32 above the true maximum (as HdrHistogram reports it).
    """
    used = np.flatnonzero(counts)
    return int(EDGES[int(used[-1]) + 1]) - 1 if len(used) else None


def record(counts: Counts, value_ns: int, times: int = 1) -> None:
    """Count a value (in ns) in place."""
    counts[bucket_of(value_ns)] += np.uint64(times)


def empty(*shape: int) -> Counts:
    """A zeroed array of histograms, shape (*shape, BUCKETS)."""
    return np.zeros((*shape, BUCKETS), dtype=np.uint64)

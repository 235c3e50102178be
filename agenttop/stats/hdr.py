"""Histograms for other tools: HdrHistogram's compressed, base64-coded format (V2)."""

from __future__ import annotations

from typing import Final

import numpy as np
from hdrh.histogram import HdrHistogram

from agenttop.stats.histogram import EDGES, MAX_VALUE_NS
from agenttop.stats.sparse_counts import Ints

#: Two significant digits: as fine as our own buckets.
DIGITS: Final = 2


def encode(counts: Ints, zeros: int = 0) -> str:
    """Counts per bucket (histogram.py) and further values of 0, as HdrHistogram V2 in base64.

    Values in ns; each bucket's samples stand at its middle.
    """
    out = HdrHistogram(1, MAX_VALUE_NS, DIGITS)
    if zeros:
        out.record_value(0, zeros)
    for bucket in np.flatnonzero(counts).tolist():
        middle = (int(EDGES[bucket]) + int(EDGES[bucket + 1]) - 1) // 2
        out.record_value(middle, int(counts[bucket]))
    coded = out.encode()
    return coded.decode("ascii") if isinstance(coded, bytes) else str(coded)

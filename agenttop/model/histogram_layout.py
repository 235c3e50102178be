"""The size of the histograms, apart from histogram.py so that the loader need not import numpy."""

from typing import Final

SUB_BITS: Final = 5
SUB_BUCKETS: Final = 1 << SUB_BITS
MAX_EXPONENT: Final = 35
BUCKETS: Final = (MAX_EXPONENT - SUB_BITS) * SUB_BUCKETS + 2 * SUB_BUCKETS
#: Where the last bucket begins, ns. It has all larger values too: of one that is told to lie in
#: it, no more is known than that it is at least so large.
LAST_NS: Final = (2 * SUB_BUCKETS - 1) << (MAX_EXPONENT - SUB_BITS)

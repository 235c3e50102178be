"""The size of the histograms, apart from histogram.py so that the loader need not import numpy."""

from typing import Final

SUB_BITS: Final = 5
SUB_BUCKETS: Final = 1 << SUB_BITS
MAX_EXPONENT: Final = 35
BUCKETS: Final = (MAX_EXPONENT - SUB_BITS) * SUB_BUCKETS + 2 * SUB_BUCKETS

"""How late this machine wakes a real-time thread that sleeps: its p99 in us.

python -m bench.bare GAP_US SECONDS
"""

from __future__ import annotations

import os
import sys
import time


def main() -> None:
    """Sleeps of GAP_US each, for SECONDS."""
    gap_us, seconds = int(sys.argv[1]), float(sys.argv[2])
    late: list[int] = []
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        due = time.monotonic_ns() + gap_us * 1000
        time.sleep(gap_us / 1e6)
        late.append(time.monotonic_ns() - due)
    print(sorted(late)[len(late) * 99 // 100] / 1000)


if __name__ == "__main__":
    main()

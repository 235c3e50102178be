"""The guardian stays off the CPUs that windows open on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WALK = """
import os
from agenttop.policies.guardian.cpu_choice import PERIOD_S, Aside

allowed = sorted(os.sched_getaffinity(0))
first, second = allowed[:2]
aside = Aside()
seen = []

def after(now, wanted=True, **openings):
    for cpu, count in ((first, openings.get("one", 0)), (second, openings.get("other", 0))):
        for _ in range(count):
            aside.opened(cpu)
    aside.update(wanted, now)
    here = os.sched_getaffinity(0)
    seen.append((first in here, second in here))

after(10.0)
after(10.0, one=3)
after(10.0 + PERIOD_S / 2, other=9)
after(10.1 + PERIOD_S, one=1)
after(10.2 + 2 * PERIOD_S)
after(11.0 + 3 * PERIOD_S, wanted=False)
print(seen)
"""


def test_it_goes_where_the_fewest_windows_open_and_anywhere_without_windows() -> None:
    if len(os.sched_getaffinity(0)) != 2:
        pytest.skip("needs two CPUs, so that one of them is avoided")
    out = subprocess.run(
        [sys.executable, "-c", WALK], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    both, first, second = (True, True), (True, False), (False, True)
    # Not moved before the period is over; kept where it is without openings.
    assert out.strip() == str([both, second, second, first, first, both])

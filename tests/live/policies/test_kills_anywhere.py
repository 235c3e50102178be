"""Engine and guardian killed and stopped at random moments, each kind of knob applied.

A smaller number of what ``python -m bench kills`` does a thousand times.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from agenttop.policies.knobs import KNOBS
from bench.kills import WAYS, kills
from tests.support.policy_rig import machine_lock, needs_root

pytestmark = needs_root

#: Each of the 12 ways three times, in 5 turns of the 7 modes; in the long tier 21 and 36.
ROUNDS = [36, pytest.param(252, marks=pytest.mark.long)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_nothing_differs_after_kills_whatever_is_applied(rounds: int, tmp_path: Path) -> None:
    hits: Counter[str] = Counter()
    ways: Counter[str] = Counter()
    with machine_lock(), kills(tmp_path / "kills") as run:
        for number in range(rounds):
            done = run.round(number)
            assert not done.differences, done
            assert done.seconds is not None, done
            hits.update(done.hit)
            ways[done.way] += bool(done.hit)
        kinds = run.all_kinds
    print(f"kills while a kind of knob was applied: {dict(hits)}")
    assert all(hits[kind] >= rounds // 36 for kind in kinds), (kinds, hits)
    assert all(ways[way] for way in WAYS), ways
    # Every kind that is a file is tried on a fixture tree, whatever this machine lacks.
    tried = {kind.partition(" ")[0] for kind in kinds}
    assert set(KNOBS) - tried <= {"uclamp_min", "affinity", "slice", "kthread", "cpu_latency"}

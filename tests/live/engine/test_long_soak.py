"""A short ``python -m bench soak``: agents come and go, CPU is scarce, the view is stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.soak import MOST_AGE_S, MOST_MB, soak
from tests.support.engines import needs_bpf

pytestmark = [pytest.mark.bpf, pytest.mark.measures, pytest.mark.long]

SECONDS = 60
#: What a view takes more at the end than after a third of the time, MB: its window and its trends
#: of 600 s have not been filled by then.
MORE_MB = 15.0


def test_a_view_stays_small_and_shows_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_bpf()
    monkeypatch.setenv("AGENTTOP_STATE", str(tmp_path / "state"))
    found = soak(SECONDS, screen=False)
    memory = [mb for _, mb in found.memory["headless"]]
    assert found.peak["headless"] <= MOST_MB
    assert memory[-1] - memory[len(memory) // 3] <= MORE_MB
    # It was stopped for ten seconds, and shows what is now.
    assert found.during["stopped"] > 5
    assert all(age <= MOST_AGE_S for age in found.after.values()), found.after

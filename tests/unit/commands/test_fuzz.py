"""Damaged input of every kind through whatever reads it: a line or a result, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenttop.store.store import Store
from bench import fuzz


def told(lots: fuzz.Lots) -> str:
    return "\n".join(text for _, text in lots.found.tracebacks.values())


@pytest.mark.parametrize("kind", dict.fromkeys(fuzz.TURNS))
def test_no_input_of_its_kind_ends_in_a_traceback(kind: str, tmp_path: Path) -> None:
    lots = fuzz.Lots(tmp_path)
    count = {"report": 60, "view": 60, "json": 120, "text": 120, "trace": 120, "file": 120}
    lots.run([fuzz.TURNS.index(kind)], count.get(kind, 400))
    assert lots.found.inputs[kind] == count.get(kind, 400)
    assert not told(lots)


@pytest.mark.long
def test_no_input_of_many_ends_in_a_traceback(tmp_path: Path) -> None:
    lots = fuzz.Lots(tmp_path)
    lots.run(range(1000, 1200))
    assert lots.found.inputs.total() == 200 * fuzz.LOT
    assert not told(lots)


def test_a_traceback_is_found_and_its_input_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Store, **how: object) -> None:
        raise KeyError("seeded")

    monkeypatch.setattr(Store, "snapshot", broken)
    lots = fuzz.Lots(tmp_path)
    lots.run([fuzz.TURNS.index("text")], 20)
    assert "KeyError: 'seeded'" in told(lots)
    (kept,) = tmp_path.glob("agenttop-fuzz-text-*")
    assert kept.read_bytes().startswith(fuzz.MAGIC)


def test_everyone_gets_a_twentieth_at_least() -> None:
    assert len(fuzz.TURNS) == 20
    assert {*fuzz.READERS, *fuzz.SOURCES} == set(fuzz.TURNS)


def test_the_same_number_is_the_same_input(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        lots = fuzz.Lots(tmp_path)
        lots.run([fuzz.TURNS.index("text")], 50)
        made.append((lots.found.inputs, lots.found.refused))
    assert made[0] == made[1]

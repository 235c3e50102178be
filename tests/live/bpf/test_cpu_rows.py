"""Rows for the CPUs that are there: what they cost, gaps between them, CPUs that come later."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.load import source
from agenttop.collectors.bpf.load.btf import Btf, BtfError
from agenttop.collectors.bpf.read.cpu_rows import CpuRows
from agenttop.collectors.bpf.read.tracer import Tracer
from tests.live.bpf.test_causes import observe
from tests.support.tracing import caused, load, measured, run_loop

STEPS = 100
#: Causes that look at what CPUs do.
OBSERVED = ("idle", "ran_meanwhile", "avoidable_wait", "interrupt", "softirq", "block", "io_uring")
#: What a row of each array of CPUs has at most, B.
ROW_BYTES = 512 << 10


@contextmanager
def present(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: str, possible: str = "0-1"
) -> Iterator[None]:
    """The kernel says that these CPUs are plugged in."""
    folder = tmp_path / "devices/system/cpu"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "present").write_text(f"{cpus}\n")
    (folder / "possible").write_text(f"{possible}\n")
    with monkeypatch.context() as patched:
        patched.setenv("AGENTTOP_SYS", str(tmp_path))
        yield


def memory(tracer: Tracer) -> int:
    """Kernel memory of the maps, B."""
    told = (Path(f"/proc/self/fdinfo/{fd}").read_text() for fd in tracer._loaded.maps.values())
    return sum(int(re.findall(r"memlock:\s+(\d+)", text)[0]) for text in told)


@given(st.sets(st.integers(0, 600), min_size=1))
def test_each_cpu_that_is_there_has_a_row_of_its_own(cpus: set[int]) -> None:
    rows = CpuRows(cpus)
    assert [rows.row(cpu) for cpu in sorted(cpus)] == list(range(len(cpus)))
    table = [int.from_bytes(row, "little") for row in rows.table()]
    assert len(table) == rows.span == max(cpus) + 1
    for cpu, row in enumerate(table):
        # Beyond the last row there is nothing in any array, whatever it is multiplied by.
        assert row == (len(cpus) if cpu not in cpus else rows.row(cpu))
    assert rows.row(max(cpus) + 1) is None
    assert rows.gaps == (sorted(cpus) != list(range(len(cpus))))


def test_programs_are_the_same_however_many_cpus_could_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        btf = Btf.load()
    except BtfError as error:
        pytest.skip(str(error))
    texts = set()
    for possible in ("0-1", "0-254"):
        with present(tmp_path, monkeypatch, "0-1", possible):
            rows = CpuRows.present()
            texts.add(source.plan(btf, "lite", rows).text)
            texts.add(source.cause_text(btf, "lite", rows, ""))
    assert len(texts) == 2, "one of the chain, one of the causes"
    assert not any("PERCPU" in text for text in texts), "a per-CPU map is for all possible CPUs"


def test_what_a_cpu_writes_is_whole_cache_lines() -> None:
    for fields in (layout.CPU_FIELDS, layout.POWER_FIELDS):
        assert layout.dtype(fields).itemsize % layout.CPU_ALIGN == 0


live = pytest.mark.bpf


@live
@pytest.mark.long
def test_memory_grows_by_the_cpus_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for cpus, possible in (("0-1", "0-1"), ("0-1", "0-254"), ("0-9", "0-254")):
        with present(tmp_path, monkeypatch, cpus, possible):
            tracer = load("lite")
        found[cpus, possible] = memory(tracer)
        tracer.close()
    assert found["0-1", "0-254"] == found["0-1", "0-1"]
    more = found["0-9", "0-254"] - found["0-1", "0-254"]
    assert 8 * ROW_BYTES // 4 < more < 8 * ROW_BYTES


@live
@pytest.mark.long
@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two CPUs")
def test_gaps_in_the_numbers_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPUs of this machine and one far beyond, so that the rows go by the table."""
    with present(tmp_path, monkeypatch, "0-1,70", "0-254"):
        tracer = load("lite")
        try:
            assert tracer.cpu_rows.gaps
            observe(tracer, *OBSERVED)
            for cpu in (0, 1):
                slot, truth = run_loop(tracer, "--steps", STEPS, "--cpu", cpu)
                steps = int(tracer.rows([slot])["steps"][0])
                assert steps >= truth["slept_step"]["count"] > STEPS / 2
                assert tracer.cpu_steps(slot) == {str(cpu): steps}
                assert caused(tracer, slot).found.steps == steps
            raw = tracer.cpus()
            assert (raw["softirq_count"].sum(axis=1) > 0).tolist() == [True, True, False]
            assert tracer.losses(raw)["new_cpu"] == 0
            refused = [state for state in tracer.causes.states(False) if "refused" in state.reason]
            assert not refused
        finally:
            tracer.close()


@live
@pytest.mark.parametrize(
    ("there", "later"),
    [
        pytest.param(0, 1, id="beyond"),
        pytest.param(1, 0, id="below", marks=pytest.mark.long),
    ],
)
@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two CPUs")
def test_steps_on_a_cpu_that_came_later_are_counted_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, later: int
) -> None:
    with present(tmp_path, monkeypatch, str(there)):
        tracer = load("lite")
    try:
        slot, truth = run_loop(tracer, "--steps", STEPS, "--cpu", there)
        assert measured(tracer, slot).steps >= truth["slept_step"]["count"]
        assert tracer.losses(tracer.cpus())["new_cpu"] == 0
        slot, truth = run_loop(tracer, "--steps", STEPS, "--cpu", later)
        assert measured(tracer, slot).steps < STEPS / 10
        lost = tracer.losses(tracer.cpus())["new_cpu"]
        assert lost + measured(tracer, slot).steps >= truth["slept_step"]["count"] > STEPS / 2
        # And nobody's histograms or cells were written in their place.
        assert not tracer.windows.held_cpus(0)
        assert not tracer.histograms(slot, full=True) or measured(tracer, slot).steps
    finally:
        tracer.close()

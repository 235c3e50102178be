"""Knobs and giving them back: real threads, and a fixture tree for PM QoS."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.policies.guardian.journal import Hold, ticks
from agenttop.policies.guardian.undo import undo
from agenttop.policies.knobs import base
from agenttop.policies.knobs.base import (
    AFFINITY,
    RESUME_LATENCY,
    CpuLatency,
    KnobError,
    format_cpus,
    parse_cpus,
    thread_stat,
)
from tests.support.policy_rig import Victim, needs_two_cpus, victims

pytestmark = pytest.mark.live


@pytest.fixture
def victim() -> Iterator[Victim]:
    with victims() as victim:
        yield victim


def thread(pid: int, tid: int) -> str:
    stat = thread_stat(pid, tid)
    assert stat is not None
    return f"{pid}/{tid}/{stat.start}"


def hold(kind: str, target: str, original: str, *ours: str) -> Hold:
    return Hold("test", kind, target, original, list(ours), ticks())


@given(st.frozensets(st.integers(0, 300)))
def test_cpu_lists_come_back(cpus: frozenset[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus


@pytest.mark.parametrize("text", ["x", "3-1", "-1", "0-99999999", "1,,x"])
def test_what_is_no_cpu_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_cpus(text)


# --------------------------------------------------------------------------- PM QoS


@pytest.fixture
def qos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "devices/system/cpu/cpu0/power/pm_qos_resume_latency_us"
    file.parent.mkdir(parents=True)
    file.write_text("0\n")
    monkeypatch.setenv("AGENTTOP_SYS", str(tmp_path))
    return file


def test_pm_qos_goes_back_if_it_is_still_ours(qos: Path) -> None:
    RESUME_LATENCY.write("cpu0", "n/a")
    assert RESUME_LATENCY.read("cpu0") == "n/a"
    outcome = undo(hold("pm_qos", "cpu0", "0", "20", "n/a"))
    assert outcome.settled
    assert not outcome.foreign
    assert qos.read_text() == "0"


class Device:
    """/dev/cpu_dma_latency with another request of ``effective`` us: a file that says so."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.write_bytes(bytes(4))
        self.effective = 0
        self.path = path
        monkeypatch.setattr(base, "CPU_LATENCY_DEVICE", str(path))
        monkeypatch.setattr(os, "pread", lambda *_: struct.pack("=i", self.effective))

    @property
    def open(self) -> int:
        """How many descriptors of this process are its."""
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum(os.path.lexists(one) and os.readlink(one) == str(self.path) for one in links)


def test_a_latency_that_was_refused_leaves_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, knob = Device(tmp_path / "latency", monkeypatch), CpuLatency()
    device.effective = 200
    with pytest.raises(KnobError, match="holds 200 us"):
        knob.write("all", "20")
    assert (knob.read("all"), device.open) == ("none", 0)
    device.effective = 0
    knob.write("all", "20")
    device.effective = 15
    with pytest.raises(KnobError, match="holds 15 us"):
        knob.write("all", "10")
    # The request that was there is there again.
    assert (knob.read("all"), device.open) == ("20", 1)
    assert device.path.read_bytes()[-4:] == struct.pack("=i", 20)
    knob.write("all", "none")
    assert device.open == 0


def test_pm_qos_of_somebody_else_is_left(qos: Path) -> None:
    qos.write_text("100\n")
    outcome = undo(hold("pm_qos", "cpu0", "0", "n/a"))
    assert outcome.foreign
    assert "now 100" in outcome.text
    assert qos.read_text() == "100\n"


def test_a_cpu_that_has_gone_is_settled(qos: Path) -> None:
    assert RESUME_LATENCY.read("cpu7") is None
    assert undo(hold("pm_qos", "cpu7", "0", "n/a")).settled
    with pytest.raises(KnobError):
        RESUME_LATENCY.write("cpu7", "0")


def test_a_knob_that_cannot_be_written_stays_to_be_restored(qos: Path) -> None:
    qos.unlink()
    qos.mkdir()
    outcome = undo(hold("pm_qos", "cpu0", "0", "n/a"))
    assert not outcome.settled


@pytest.mark.parametrize(
    ("stricter", "laxer"), [("n/a", "1"), ("5", "20"), ("1000", "0"), ("n/a", "0")]
)
def test_which_limit_is_stricter(stricter: str, laxer: str) -> None:
    assert RESUME_LATENCY.tolerance(stricter) < RESUME_LATENCY.tolerance(laxer)


# --------------------------------------------------------------------------- affinity


@needs_two_cpus
def test_affinity_of_one_thread_goes_there_and_back(victim: Victim) -> None:
    tid = victim.tids()[-1]
    before = victim.masks()
    target = thread(victim.pid, tid)
    original = AFFINITY.read(target)
    assert original is not None
    home = str(min(before[tid]))
    AFFINITY.write(target, home)
    assert victim.masks() == {**before, tid: {int(home)}}
    assert AFFINITY.drift(target, home) is None
    outcome = undo(hold("affinity", target, original, home))
    assert f"{home} -> {original}" in outcome.text
    assert victim.masks() == before


@needs_two_cpus
def test_affinity_that_somebody_else_set_is_left(victim: Victim) -> None:
    tid = victim.tids()[-1]
    target = thread(victim.pid, tid)
    low, high = sorted(os.sched_getaffinity(tid))[:2]
    os.sched_setaffinity(tid, {high})
    assert AFFINITY.drift(target, str(low)) == str(high)
    outcome = undo(hold("affinity", target, f"{low},{high}", str(low)))
    assert outcome.foreign
    assert "left as it is" in outcome.text
    assert os.sched_getaffinity(tid) == {high}


@needs_two_cpus
def test_affinity_that_a_thread_chooses_while_it_is_restored_stays(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    tid = victim.tids()[-1]
    target = thread(victim.pid, tid)
    before = AFFINITY.read(target)
    assert before is not None
    low, high = sorted(os.sched_getaffinity(tid))[:2]
    AFFINITY.write(target, str(low))
    replace = AFFINITY.replace

    def chosen_since(target: str, current: str, value: str) -> bool:
        os.sched_setaffinity(tid, {high})
        return replace(target, current, value)

    monkeypatch.setattr(AFFINITY, "replace", chosen_since)
    outcome = undo(hold("affinity", target, before, str(low)))
    assert outcome.foreign
    assert "left as it is" in outcome.text
    assert os.sched_getaffinity(tid) == {high}


@needs_two_cpus
def test_a_reused_thread_id_is_another_thread(victim: Victim) -> None:
    tid = victim.tids()[-1]
    pid, _, start = thread(victim.pid, tid).split("/")
    earlier = f"{pid}/{tid}/{int(start) - 1}"
    before = os.sched_getaffinity(tid)
    assert AFFINITY.read(earlier) is None
    assert AFFINITY.drift(earlier, "0") == ""
    AFFINITY.write(earlier, str(min(before)))
    outcome = undo(hold("affinity", earlier, "0", format_cpus(before)))
    assert outcome.settled
    assert os.sched_getaffinity(tid) == before


def test_a_thread_that_has_ended_is_settled(victim: Victim) -> None:
    target = thread(victim.pid, victim.tids()[-1])
    victim.process.kill()
    victim.process.wait()
    outcome = undo(hold("affinity", target, "0", "0"))
    assert outcome.settled
    assert "has ended" in outcome.text


@needs_two_cpus
def test_what_the_kernel_did_when_the_home_went_offline_is_undone(
    victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The home, CPU 9, is not online, and the kernel has put the thread elsewhere.
    root = tmp_path / "devices/system/cpu"
    root.mkdir(parents=True)
    for name in ("online", "present", "possible"):
        (root / name).write_text(format_cpus(os.sched_getaffinity(0)) + "\n")
    monkeypatch.setenv("AGENTTOP_SYS", str(tmp_path))
    tid = victim.tids()[-1]
    original = format_cpus(os.sched_getaffinity(tid))
    os.sched_setaffinity(tid, {min(os.sched_getaffinity(tid))})
    outcome = undo(hold("affinity", thread(victim.pid, tid), original, "9"))
    assert not outcome.foreign
    assert format_cpus(os.sched_getaffinity(tid)) == original


def test_a_hostile_thread_name_shows_as_text(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'\\x1b[31m)(] x', 0, 0, 0);"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        label = AFFINITY.label(thread(process.pid, process.pid))
        assert label == f"affinity of tid {process.pid} (?[31m)(] x)"
        process.communicate()

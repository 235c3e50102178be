"""agenttop loop: every gate and source, its own figures, errors, and what it leaves behind."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.errors import UserError
from agenttop.workloads import gates, uring
from agenttop.workloads.blockfile import candidates, in_memory
from agenttop.workloads.exact_stats import Record, evaluate, figures
from tests.support.loops import ENDINGS, PATIENCE_S, alive, command, loop, processes, stop, until

STEPS = 60
PAIRS = [(gate, source) for gate, sources in gates.TABLE.items() for source in sources]


def needs(gate: str, source: str) -> None:
    """Skips, with the reason, where the machine lacks what the pair needs."""
    if gate == "io_uring" or source == "io_worker" or (gate, source) == ("epoll", "block"):
        try:
            uring.Uring().close()
        except UserError as error:
            pytest.skip(str(error))
    if source in ("block", "io_worker") and all(map(in_memory, candidates())):
        pytest.skip("no directory on a disk")


@pytest.fixture
def disk() -> Iterator[str]:
    """A directory on a real disk's file system, empty."""
    for place in candidates():
        if not in_memory(place) and os.access(place, os.W_OK):
            with TemporaryDirectory(dir=place) as directory:
                yield directory
            return
    pytest.skip("no directory on a disk")


def refused(*options: object) -> str:
    """The one line of an exit with code 2."""
    done = subprocess.run(
        command(*options), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("agenttop: ")
    return lines[0]


def in_order(measure: dict[str, Any]) -> bool:
    values = [measure[key] for key in ("p50_ns", "p99_ns", "p999_ns", "max_ns")]
    if measure["count"] == 0:
        return values == [None] * 4 and measure["sum_ns"] == 0
    return values == sorted(values) and values[0] >= 0 and values[-1] <= measure["sum_ns"]


@pytest.mark.parametrize(("gate", "source"), PAIRS)
def test_every_pair_measures_its_own_steps(gate: str, source: str) -> None:
    needs(gate, source)
    with loop(
        "--gate", gate, "--source", source, "--interval-us", 800, "--compute-us", 50,
        "--steps", STEPS,
    ) as started:  # fmt: skip
        result = started.run()
    assert (result["gate"], result["source"], result["pid"]) == (gate, source, started.pid)
    assert result["steps"] == result["gate_ns"]["count"] == STEPS
    assert result["compute"]["count"] == STEPS - 1
    # Only a gate that slept begins a step (the last gate's has no end).
    assert STEPS - result["ready"] - 1 <= result["step"]["count"] <= STEPS - result["ready"]
    assert all(in_order(result[measure]) for measure in ("step", "gate_ns", "compute"))
    assert result["compute"]["p50_ns"] >= 50_000
    # Between the gates lies compute and nothing else: they add up to the nanosecond.
    assert result["wall_ns"] == result["gate_ns"]["sum_ns"] + result["compute"]["sum_ns"]
    assert result["step"]["sum_ns"] <= result["wall_ns"]
    assert result["slept_step"]["count"] == max(STEPS - result["ready"] - 1, 0)
    longest = result["step"]["max_ns"] or 0  # None: the disk was done before each wait.
    assert result["step"]["sum_ns"] <= result["slept_step"]["sum_ns"] + longest
    if source in gates.PACED:
        late = result["lateness"]
        assert 0 < late["count"] <= STEPS
        assert 0 < late["p50_ns"] <= late["max_ns"]
        assert result["wall_ns"] >= (STEPS - 1) * 800_000 * 0.9
        # It did sleep, and not only once: a loop that spins would show here.
        assert result["ready"] <= STEPS // 2
    else:
        assert result["lateness"] is None


@pytest.mark.parametrize("opt_in", ["marker", "sched_setattr"])
def test_opting_in_leaves_the_loop_working(opt_in: str) -> None:
    with loop("--gate", "sleep", "--steps", 20, "--opt-in", opt_in) as started:
        assert started.run()["steps"] == 20


def test_name_and_cpu_are_taken() -> None:
    cpu = max(os.sched_getaffinity(0))
    with loop("--source", "ipc", "--steps", 5, "--name", "my agent]", "--cpu", cpu) as started:
        assert Path(f"/proc/{started.pid}/comm").read_text() == "my agent]\n"
        assert os.sched_getaffinity(started.pid) == {cpu}
        assert started.run()["steps"] == 5


def test_the_time_ends_a_loop() -> None:
    with loop("--for", 0.3, "--interval-us", 1000) as started:
        result = started.run()
    assert 0 < result["steps"] < 1000
    assert result["wall_ns"] >= 0.2e9


def test_the_time_ends_a_wait_longer_than_it() -> None:
    with loop("--for", 0.1, "--interval-us", 3_600_000_000) as started:
        result = started.run()
    assert (result["steps"], result["wall_ns"], result["gate_ns"]["p50_ns"]) == (0, 0, None)


def test_text_names_each_measure_and_unknown_lateness() -> None:
    done = subprocess.run(
        command("--gate", "wait", "--source", "child", "--steps", 5),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    assert {"step", "gate", "compute", "lateness", "slept"} <= set(rows)
    assert "N/A" in rows["lateness"]


# What is refused.


@pytest.mark.parametrize(
    ("gate", "source"),
    [(gate, source) for gate in gates.TABLE for source in gates.SOURCES
     if source not in gates.TABLE[gate]],
)  # fmt: skip
def test_impossible_pairs_name_the_possible_ones(gate: str, source: str) -> None:
    with pytest.raises(UserError) as error:
        gates.validate(gates.Plan(gate, source))
    text = str(error.value)
    assert f"gate {gate} cannot wait for source {source}" in text
    assert all(possible in text for possible in gates.TABLE)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--gate", "sleep", "--source", "tcp"], "sleep: timer"),
        (["--gate", "select"], "select"),
        (["--interval-us", "0"], "--interval-us"),
        (["--interval-us", "nan"], "--interval-us"),
        (["--steps", "0"], "--steps"),
        (["--steps", "many"], "--steps"),
        (["--for", "-1"], "--for"),
        (["--name", "x" * 16], "--name"),
        (["--cpu", "99999"], "CPU 99999"),
        (["--source", "ipc", "--peer-cpu", "99999"], "CPU 99999"),
        (["--file", "/tmp"], "--file"),
        (["--gate", "read", "--source", "block", "--file", "/dev/null"], "/dev/null"),
        (["--gate", "read", "--source", "block", "--file", "/no/such"], "/no/such"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], says: str) -> None:
    assert says in refused(*options)


def test_memory_is_no_disk() -> None:
    if not os.path.isdir("/dev/shm") or in_memory("/dev/shm") != "tmpfs":
        pytest.skip("no tmpfs at /dev/shm")
    line = refused("--gate", "read", "--source", "block", "--file", "/dev/shm")
    assert "tmpfs" in line


def test_the_starter_may_vanish_before_the_first_step() -> None:
    with loop("--steps", 5) as started:
        _, stderr = started.process.communicate(timeout=PATIENCE_S)
    assert started.process.returncode == 2
    assert stderr.count("\n") == 1


# What is left behind: nothing.


def test_a_file_is_read_and_not_changed(disk: str) -> None:
    path = Path(disk, "data")
    content = os.urandom(64 << 10)
    path.write_bytes(content)
    with loop("--gate", "read", "--source", "block", "--file", path, "--steps", 20) as started:
        assert started.run()["steps"] == 20
    assert path.read_bytes() == content


def test_the_temporary_file_has_no_name(disk: str) -> None:
    with loop("--gate", "read", "--source", "block", "--file", disk, "--steps", 20) as started:
        assert os.listdir(disk) == []
        assert started.run()["steps"] == 20
    assert os.listdir(disk) == []


def running(interval_ns: int) -> set[int]:
    """The peers of loops with this (unusual) interval."""
    return {pid for pid in processes(holding=str(interval_ns)) if b"peer.py" in _cmdline(pid)}


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def in_tree(pid: int, root: int) -> bool:
    while pid > 1:
        if pid == root:
            return True
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        pid = int(stat.rpartition(")")[2].split()[1])
    return False


@pytest.mark.parametrize("source", ["ipc", "tcp", "kworker", "signal"])
@pytest.mark.parametrize("number", ENDINGS)
def test_the_peer_lives_outside_the_tree_and_ends_with_the_loop(source: str, number: int) -> None:
    gate = "poll" if source == "signal" else "epoll"
    interval_ns = 2_000_000 + os.getpid()
    with loop(
        "--gate", gate, "--source", source, "--interval-us", interval_ns / 1000, "--for", 60
    ) as started:
        (peer,) = running(interval_ns)
        assert not in_tree(peer, started.pid)
        assert Path(f"/proc/{peer}/comm").read_text() == "atpeer\n"
        before = _switches(started.pid)
        started.go()
        assert until(lambda: _switches(started.pid) > before + 10)
        stdout, stderr = stop(started.process, number)
    if number != signal.SIGKILL:
        result = json.loads(stdout)
        assert (started.process.returncode, stderr) == (0, "")
        assert 0 < result["steps"] < 60_000
        slept = result["steps"] - result["ready"]
        assert slept - 1 <= result["step"]["count"] <= slept
    assert until(lambda: not alive(peer))


def _switches(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.parametrize("source", ["ipc", "tcp", "kworker", "signal"])
def test_a_killed_peer_is_one_line(source: str) -> None:
    gate = "poll" if source == "signal" else "epoll"
    interval_ns = 3_000_000 + os.getpid()
    with loop(
        "--gate", gate, "--source", source, "--interval-us", interval_ns / 1000, "--for", 60
    ) as started:
        (peer,) = running(interval_ns)
        os.kill(peer, signal.SIGKILL)
        started.go()
        _, stderr = started.process.communicate(timeout=PATIENCE_S)
    assert started.process.returncode == 2
    assert stderr.count("\n") == 1
    assert "peer" in stderr


def test_a_stopped_child_loop_leaves_no_process() -> None:
    with loop("--gate", "epoll", "--source", "child", "--for", 60) as started:
        session = os.getsid(started.pid)
        before = _switches(started.pid)
        started.go()
        assert until(lambda: _switches(started.pid) > before + 10)
        stdout, _ = stop(started.process)
    assert json.loads(stdout)["steps"] > 0
    assert until(lambda: not any(_cmdline(pid) == b"true\0" for pid in processes(session=session)))


# The figures.


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=3000))
def test_percentiles_are_the_nearest_rank(values: list[int]) -> None:
    result = figures(values)
    for per_mille, found in ((500, result.p50_ns), (990, result.p99_ns), (999, result.p999_ns)):
        assert found in values
        below = sum(value <= found for value in values)
        assert below >= math.ceil(len(values) * per_mille / 1000)
        smaller = [value for value in values if value < found]
        assert len(smaller) < math.ceil(len(values) * per_mille / 1000)
    assert (result.count, result.sum_ns, result.max_ns) == (len(values), sum(values), max(values))


def test_a_hand_made_record() -> None:
    record = Record(5)
    for index, (enter, leave, origin) in enumerate(
        [(100, 150, 140), (170, 180, 160), (200, 260, 210)]
    ):
        record.enter[index], record.leave[index], record.origin[index] = enter, leave, origin
    record.slept[:3] = b"\1\0\1"
    record.gates = 3
    result = evaluate(record, 1, 2, "epoll", "timer")
    assert (result.steps, result.wall_ns) == (3, 160)
    assert (result.step.count, result.step.sum_ns, result.step.max_ns) == (1, 70, 70)
    assert (result.gate_ns.count, result.gate_ns.sum_ns) == (3, 120)
    assert (result.compute.count, result.compute.sum_ns) == (2, 40)
    # The second gate did not sleep: for lite the first step lasts until the third.
    assert (result.ready, result.slept_step.count, result.slept_step.sum_ns) == (1, 1, 100)
    # The second expiry lay before its gate: nobody was waiting for it.
    assert result.lateness is not None
    assert (result.lateness.count, result.lateness.sum_ns) == (2, 60)


def test_a_record_without_gates() -> None:
    result = evaluate(Record(5), 1, 2, "epoll", "block")
    assert (result.steps, result.wall_ns, result.step.p50_ns) == (0, 0, None)
    assert result.lateness is None

"""record, replay and report on the live kernel and on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agenttop.stream.recording import Recording, Writer
from agenttop.stream.replay import Replay
from tests.support.engines import needs_bpf
from tests.support.live_terminal import ROOT, LivePty, live
from tests.support.loops import PATIENCE_S, Loop, loop, until
from tests.support.policy_rig import needs_root
from tests.support.synth import Synth


def environ(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "AGENTTOP_STATE": str(tmp_path / "state")}


def start(tmp_path: Path, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "agenttop", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ(tmp_path),
    )


def run(tmp_path: Path, *arguments: object) -> tuple[str, str]:
    """A command that must end well: what it says on stdout and stderr."""
    process = start(tmp_path, *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.decode(), err.decode()


@pytest.fixture
def agent() -> Iterator[Loop]:
    with loop("--source", "timer", "--interval-us", 500, "--for", 100) as one:
        one.go()
        yield one


# --------------------------------------------------------------------------- record


@pytest.mark.bpf
def test_snapshot_and_report_of_a_recording_agree(tmp_path: Path, agent: Loop) -> None:
    needs_bpf()
    path = tmp_path / "a.rec"
    _, told = run(
        tmp_path, "record", "-o", path, "--for", 6, "-d", 0.5, "--agent", f"pid:{agent.pid}"
    )
    assert str(path) in told
    assert told.count("\n") == 1
    shot: dict[str, Any] = json.loads(
        run(tmp_path, "snapshot", "--from", path, "--format", "json")[0]
    )
    report: dict[str, Any] = json.loads(run(tmp_path, "report", path, "--format", "json")[0])
    (seen,) = shot["agents"]
    assert seen["steps"] > 1000
    assert report["trust"]["steps"] == seen["steps"]
    assert report["seconds"] * 1e9 == pytest.approx(shot["interval_ns"])
    assert report["blocks"] >= 4
    sums = {name: seen["stages"][name]["sum_ns"] for name in ("ipi", "idle_exit", "queue")}
    answers = {answer["key"]: answer for answer in report["answers"]}
    figures = {f["key"]: f for answer in report["answers"] for f in answer["figures"]}
    assert figures["placement_ratio"]["value"] == pytest.approx(
        (sums["ipi"] + sums["queue"]) / sum(sums.values())
    )
    assert figures["placement_ratio"]["n"] == seen["steps"]
    assert figures["placement_ratio"]["low"] is not None
    assert figures["timer_ratio"]["value"] > 0.95
    assert figures["worker_ratio"]["value"] < 0.05
    assert answers["budget"]["state"] == "not measured"


@pytest.mark.bpf
@pytest.mark.measures
def test_a_live_report_observes_page_faults(tmp_path: Path) -> None:
    needs_bpf()
    with loop("--cause", "minor_fault", "--interval-us", 2000, "--for", 60) as one:
        one.go()
        out, _ = run(
            tmp_path, "report", "--for", 6, "--format", "json", "--agent", f"pid:{one.pid}"
        )
    answer = next(a for a in json.loads(out)["answers"] if a["key"] == "faults")
    assert answer["state"] == "measured"
    figures = {figure["key"]: figure for figure in answer["figures"]}
    assert figures["minor_fault_ratio"]["value"] >= 0.95
    assert figures["minor_fault_ratio"]["n"] > 500
    assert figures["minor_fault_mean_ns"]["value"] > 0
    assert figures["major_fault_ratio"]["value"] < 0.05


@pytest.mark.long
@pytest.mark.bpf
@needs_root
def test_a_live_report_switches_a_policy_and_gives_it_back(tmp_path: Path, agent: Loop) -> None:
    needs_bpf()
    before = os.sched_getaffinity(agent.pid)
    out, _ = run(
        tmp_path, "report", "--switch", "home", "--for", 26, "--format", "json",
        "--agent", f"pid:{agent.pid}",
    )  # fmt: skip
    answer = next(a for a in json.loads(out)["answers"] if a["key"] == "window")
    (table,) = answer["tables"]
    assert table["title"] == "home: off and on"
    for figure in table["rows"][0]["figures"]:
        assert figure["value"] is not None
        assert figure["n"] > 1000
    assert os.sched_getaffinity(agent.pid) == before


def grows(path: Path) -> None:
    """Wait until there is more in it than the first Sample."""
    assert until(lambda: path.exists() and path.stat().st_size > 500)
    first = path.stat().st_size
    assert until(lambda: path.stat().st_size > 2 * first)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_recording_well(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.rec"
    process = start(tmp_path, "record", "-o", path, "--no-bpf", "-d", 0.1)
    grows(path)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (0 if number == signal.SIGINT else 128 + number)
    assert b"Traceback" not in err
    with Recording(path) as recording:
        assert len(list(recording)) > 1
        assert not recording.cut


def test_what_was_recorded_before_a_kill_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    process = start(tmp_path, "record", "-o", path, "--no-bpf", "-d", 0.1)
    grows(path)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    with Recording(path) as recording:
        assert len(list(recording)) > 1
        assert recording.cut
    assert "AGENTS" in run(tmp_path, "snapshot", "--from", path)[0]


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    path.write_text("precious")
    process = start(tmp_path, "record", "-o", path, "--no-bpf", "--for", 1)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert b"exists already" in err
    assert err.count(b"\n") == 1
    assert path.read_text() == "precious"


def test_into_a_pipe_that_a_report_reads(tmp_path: Path) -> None:
    first = start(tmp_path, "record", "-o", "-", "--no-bpf", "--for", 1, "-d", 0.2)
    assert first.stdout is not None
    done = subprocess.run(
        [sys.executable, "-m", "agenttop", "snapshot", "--from", "/dev/stdin"],
        stdin=first.stdout,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environ(tmp_path),
    )
    first.communicate(timeout=PATIENCE_S)
    assert (done.returncode, done.stderr, first.returncode) == (0, "", 0)
    assert "agenttop" in done.stdout


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    process = start(tmp_path, "record", "-o", "/dev/full", "--no-bpf", "--for", 5)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert err == b"agenttop: the recording ends early: No space left on device\n"


# --------------------------------------------------------------------------- replay


def write(path: Path, samples: int, *, end: bool = True) -> None:
    with path.open("wb", buffering=0) as file:
        writer = Writer(file)
        for sample in Synth().samples(samples):
            writer.add(sample)
        if end:
            writer.close()


def replay(
    tmp_path: Path, path: Path, *arguments: str
) -> contextlib.AbstractContextManager[LivePty]:
    return live("replay", str(path), *arguments, env={"AGENTTOP_STATE": str(tmp_path / "state")})


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_replay_is_the_screen_and_stays_at_the_end(tmp_path: Path, whole: bool) -> None:
    path = tmp_path / "a.rec"
    write(path, 30, end=whole)
    with live(
        "replay", str(path), "--speed", "20", env={"AGENTTOP_STATE": str(tmp_path)}
    ) as screen:
        screen.until("toolcaller")
        screen.until("the recording ends here")
        if not whole:
            assert "cut" in screen.seen()
        screen.type("g")  # nothing can be switched
        screen.until("readonly")
        assert screen.alive()
        screen.type("q")
        assert screen.wait(PATIENCE_S) == 0
        assert screen.settings_now() == screen.settings


def test_a_replay_of_a_damaged_file_ends_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    write(path, 10)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 60] + bytes(60))
    with live(
        "replay", str(path), "--speed", "50", env={"AGENTTOP_STATE": str(tmp_path)}
    ) as screen:
        assert screen.wait(PATIENCE_S) == 2
        time.sleep(0.2)  # until what it said last has been read
        assert "damaged after" in screen.seen()
        assert b"Traceback" not in screen.output
        assert screen.settings_now() == screen.settings


def test_a_sample_after_centuries_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    first, second = Synth().samples(2)
    second.t_ns = 1 << 62
    with path.open("wb", buffering=0) as file, contextlib.closing(Writer(file)) as writer:
        writer.add(first)
        writer.add(second)
    played = Replay(path, speed=0.1)
    try:
        assert until(lambda: bool(played.read()))
        played._thread.join(0.3)
        assert played._thread.is_alive()
    finally:
        played.close()


@pytest.mark.long
def test_leaving_in_the_middle_of_a_replay(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    write(path, 300)
    with replay(tmp_path, path) as screen:
        screen.until("coder")
        screen.type("q")
        assert screen.wait(PATIENCE_S) == 0


def test_a_replay_without_a_terminal_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    write(path, 12)
    out, _ = run(tmp_path, "replay", path)
    assert "over 11.0 s" in out
    assert "toolcaller" in out

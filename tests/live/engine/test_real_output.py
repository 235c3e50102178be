"""What the commands print about real agents on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agenttop.model.vocabulary import SLOWPATH_STAGES, STAGES
from agenttop.policies.catalog import POLICIES
from tests.support.engines import needs_bpf
from tests.support.loops import loop

pytestmark = pytest.mark.bpf


def run(tmp_path: Path, *arguments: str) -> str:
    """An agenttop command's stdout; it must end well and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "agenttop", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "AGENTTOP_STATE": str(tmp_path / "state")},
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("level", ["full", pytest.param("lite", marks=pytest.mark.long)])
def test_json_fits_its_schema_and_adds_up(tmp_path: Path, level: str) -> None:
    needs_bpf()
    schema = json.loads(run(tmp_path, "schema"))
    with loop("--source", "tcp", "--interval-us", 500, "--for", 60) as one:
        one.go()
        text = run(
            tmp_path, "snapshot", "--for", "3", "--format", "json", "--level", level,
            "--agent", f"pid:{one.pid}",
        )  # fmt: skip
    snapshot: dict[str, Any] = json.loads(text)
    jsonschema.validate(snapshot, schema)
    assert (snapshot["schema"], snapshot["version"]) == ("agenttop.snapshot", 1)
    assert snapshot["host"]["level"] == level
    (agent,) = snapshot["agents"]
    assert one.pid in agent["pids"]
    assert agent["steps"] > 500
    stages = agent["stages"]
    assert set(stages) == set(STAGES)
    assert (stages["return"] is None) == (level == "lite")
    measured = {name: stage for name, stage in stages.items() if stage is not None}
    assert sum(s["sum_ns"] for s in measured.values()) == agent["step"]["sum_ns"]
    slow = sum(s["sum_ns"] for name, s in measured.items() if name in SLOWPATH_STAGES)
    assert slow == agent["slowpath"]["sum_ns"]
    for stat in (agent["step"], agent["slowpath"], *measured.values()):
        assert stat["count"] == agent["steps"]
        assert stat["p50_ns"] <= stat["p99_ns"] <= stat["p999_ns"] <= stat["max_ns"]
    assert agent["sources"]["net"] > 0.9 * agent["steps"]
    # Some machines do not tell of each switch-in (README).
    assert snapshot["trust"]["lost"] == snapshot["trust"]["drops"]["switch_in"]
    assert sum(cpu["irq"]["per_s"] for cpu in snapshot["cpus"]) > 0
    busiest = max(snapshot["cpus"], key=lambda cpu: cpu["softirq"]["per_s"])
    assert busiest["softirqs"]["NET_RX"]["per_s"] > 100
    assert busiest["softirqs"]["NET_RX"]["ratio"] > 0
    lines = [name for cpu in snapshot["cpus"] for name in cpu["irqs"] if name[0].isdigit()]
    # "36 virtio1-req.0": the number alone tells nobody anything.
    assert all(" " in name for name in lines), lines
    assert {p["name"] for p in snapshot["policies"]} == set(POLICIES)


def test_text_names_the_agent_and_its_stages(tmp_path: Path) -> None:
    needs_bpf()
    with loop("--name", "textloop", "--interval-us", 500, "--for", 60) as one:
        one.go()
        text = run(tmp_path, "snapshot", "--for", "2", "--agent", "comm:^textloop$")
    assert "textloop" in text
    assert all(stage in text for stage in STAGES)
    assert "timer 100%" in text


def test_batch_prints_as_many_blocks_as_asked(tmp_path: Path) -> None:
    out = run(tmp_path, "-b", "-n", "3", "-d", "0.3", "--no-bpf")
    assert out.count("agenttop 0.1.0") == 3


def test_plain_agenttop_without_a_terminal_is_a_snapshot(tmp_path: Path) -> None:
    out = run(tmp_path, "--no-bpf", "--agent", f"pid:{os.getpid()}")
    assert "N/A" in out
    assert "without BPF" in out

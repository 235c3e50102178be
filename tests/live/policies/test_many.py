"""An agent with more processes than a Sample names: policies know them all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agenttop.engine.agent_registry import MAX_PIDS
from agenttop.model.sample import Command, PolicyStatus, Sample
from tests.support.engines import agent, engine, needs_bpf
from tests.support.policy_rig import machine_lock, needs_root

pytestmark = [pytest.mark.bpf, needs_root]

#: Starts a program so many times, tells of it, and ends them with its own input.
AGENT = """
import subprocess, sys
tools = [subprocess.Popen([sys.argv[1], "300"]) for _ in range(int(sys.argv[2]))]
print("ready", flush=True)
sys.stdin.read()
for tool in tools:
    tool.kill()
"""
TOOLS = MAX_PIDS + 10


def test_its_tools_are_not_demoted_as_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_bpf()
    monkeypatch.setenv("AGENTTOP_STATE", str(tmp_path / "state"))
    tool = shutil.copy(shutil.which("sleep") or "/bin/sleep", tmp_path / "manytool")
    started = [sys.executable, "-c", AGENT, str(tool), str(TOOLS)]
    with (
        machine_lock(),
        subprocess.Popen([tool, "300"]) as other,
        subprocess.Popen(started, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tree,
    ):
        try:
            assert tree.stdout is not None
            assert tree.stdout.readline() == b"ready\n"
            settings = {"demote": {"processes": ["comm:manytool"]}}
            with engine(agent_patterns=[f"pid:{tree.pid}"], settings=settings) as running:
                running.measuring()
                seen = running.until(lambda s: tracked(s, tree.pid) > TOOLS)
                found = agent(seen, tree.pid)
                assert found is not None
                assert len(found.pids) == MAX_PIDS
                running.client.send(Command(kind="policy", name="demote", on=True))
                seen = running.until(lambda s: demote(s).state == "on")
                assert demote(seen).tids == [other.pid]
                assert os.sched_getscheduler(other.pid) == os.SCHED_IDLE
        finally:
            other.kill()
            assert tree.stdin is not None
            tree.stdin.close()


def tracked(sample: Sample, pid: int) -> int:
    found = agent(sample, pid)
    return found.threads_tracked if found else 0


def demote(sample: Sample) -> PolicyStatus:
    return next(policy for policy in sample.policies if policy.name == "demote")

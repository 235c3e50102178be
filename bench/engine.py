"""What the engine takes: CPU and memory at 1 Hz with 100 agents and 20,000 steps a second."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from agenttop.model.options import EngineOptions
from agenttop.model.sample import Sample
from agenttop.stream.engine_client import EngineClient
from bench.pingpong import compile_c
from bench.processes import cpu_s, rss_mb
from bench.report import Report

AGENTS, RATE = 100, 200
WARM_S, MEASURE_S = 8, 10


def run(report: Report, rounds: int) -> None:
    """CPU in percent of one core; the loader has ended by then."""
    cpu: list[float] = []
    memory: list[float] = []
    steps: list[float] = []
    frames: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        program = compile_c(Path(__file__).with_name("agents.c"), Path(folder))
        seconds = WARM_S + rounds * MEASURE_S + 10
        crowd = subprocess.Popen([str(program), str(AGENTS), str(RATE), str(seconds)])
        client = EngineClient(EngineOptions(agent_patterns=["comm:^benchagent$"]))
        try:
            last = _drain(client, WARM_S)
            assert last is not None
            for _ in range(rounds):
                before, started, known = cpu_s(client.pid), time.monotonic(), last
                last = _drain(client, MEASURE_S) or last
                spent = cpu_s(client.pid) - before
                cpu.append(100 * spent / (time.monotonic() - started))
                memory.append(rss_mb(client.pid))
                done = sum(a.steps for a in last.agents) - sum(a.steps for a in known.agents)
                steps.append(done * 1e9 / (last.t_ns - known.t_ns))
                frames.append(float(len(last.agents)))
        finally:
            client.close()
            crowd.kill()
            crowd.wait()
    report.add("agents", "", frames, AGENTS, at_least=True)
    report.add("steps a second", "1/s", steps, 0.9 * AGENTS * RATE, at_least=True)
    report.add("engine CPU", "% core", cpu, 1.0)
    report.add("engine resident", "MB", memory, 60.0)


def _drain(client: EngineClient, seconds: float) -> Sample | None:
    last = None
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for sample in client.samples(until):
            last = sample
    return last

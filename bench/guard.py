"""Does the guard help? A timer loop with the guard off and on in turns, in one engine."""

from __future__ import annotations

import subprocess
import time

import numpy as np

from agenttop.model.histogram_layout import BUCKETS
from agenttop.model.options import EngineOptions
from agenttop.model.sample import Command, Sample
from agenttop.stats.histogram import percentiles
from agenttop.stream.engine_client import EngineClient
from bench.processes import agenttop
from bench.report import Report

#: Time in each state; the first part of it is not looked at.
BLOCK_S, SETTLE_S = 5.0, 1.5


class Slowpath:
    """The slowpath counts of the one agent, kept up to date from the Samples."""

    def __init__(self, client: EngineClient, policy: str = "guard") -> None:
        self._client = client
        self._policy = policy
        self._counts = np.zeros(BUCKETS, dtype=np.int64)
        self._state = ""

    def follow(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for sample in self._client.samples(until):
                self._take(sample)

    def _take(self, sample: Sample) -> None:
        for policy in sample.policies:
            if policy.name == self._policy:
                self._state = f"{policy.state} {policy.detail}"
        for agent in sample.agents:
            found = agent.histograms.get("slowpath")
            if found:
                where = np.frombuffer(found.buckets, dtype="<u2")
                self._counts[where] = np.frombuffer(found.counts, dtype="<u8")

    def block(self, on: bool) -> list[int]:
        """p50 and p99 of the slowpath, ns, in a block with the policy on or off."""
        self._client.send(Command(kind="policy", name=self._policy, on=on))
        self.follow(SETTLE_S)
        if self._state.startswith("on") != on:
            raise RuntimeError(f"{self._policy} is '{self._state}', not {'on' if on else 'off'}")
        before = self._counts.copy()
        self.follow(BLOCK_S)
        counts = (self._counts - before).astype(np.uint64)
        return [value or 0 for value in percentiles(counts, [0.5, 0.99])]


def run(report: Report, rounds: int) -> None:
    """Ratio off to on per pair of blocks, and off again to off before."""
    seconds = rounds * 3 * (BLOCK_S + SETTLE_S) + 30
    loop = subprocess.Popen(
        agenttop("loop", "--source", "timer", "--name", "benchloop", "--for", int(seconds)),
        stdout=subprocess.DEVNULL,
    )
    client = EngineClient(EngineOptions(agent_patterns=[f"pid:{loop.pid}"], delay_s=0.5))
    p50s: dict[str, list[float]] = {"off": [], "on": [], "again": []}
    p99s: dict[str, list[float]] = {"off": [], "on": [], "again": []}
    try:
        slowpath = Slowpath(client)
        slowpath.follow(5.0)
        for _ in range(rounds):
            for name in ("off", "on", "again"):
                p50, p99 = slowpath.block(name == "on")
                p50s[name].append(p50)
                p99s[name].append(p99)
    finally:
        client.close()
        loop.kill()
        loop.wait()
    for name, values in p50s.items():
        report.add(f"slowpath p50, guard {name}", "us", [v / 1000 for v in values])
    report.add(
        "slowpath p50, off over on",
        "x",
        [off / on for off, on in zip(p50s["off"], p50s["on"], strict=True)],
        1.6,
        at_least=True,
    )
    report.add(
        "slowpath p50, off again over off",
        "x",
        [again / off for again, off in zip(p50s["again"], p50s["off"], strict=True)],
        note="1 means that off brings it back",
    )
    report.add(
        "slowpath p99, off over on",
        "x",
        [off / on for off, on in zip(p99s["off"], p99s["on"], strict=True)],
    )

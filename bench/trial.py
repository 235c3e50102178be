"""Are the verdicts of trials right? A/A trials, and trials in which the workload is 50 us slower.

Two parts. *Recorded*: two real ``agenttop loop`` processes (a peer over a
socket pair, 0.5 ms between completions; one of them computes 50 us in every
step) run at the same time, and the engine records their real blocks by BPF
once. From that recording, trials are put together as the schedule does it:
rounds of three neighbouring blocks in random order. "On" is the undelayed
loop's block in an A/A trial and the delayed loop's block of the same second
otherwise; "off" is always the undelayed loop's. So the noise and its
correlation in time are the machine's own; what is repeated hundreds of times
is the choice of the labels and of the stretch of the recording, and the
verdicts are judged by the product's own code. Since the stretches overlap the
trials are not independent, though their labels are.

*Live*: some trials from end to end, with the schedule, a real engine and a
loop that is made slower or not at the schedule's command (or ignores it).
They are few, so their shares are reported and held against no limit.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agenttop.model.options import EngineOptions
from agenttop.model.sample import Command, PolicyStatus
from agenttop.stats.before_after import Counts
from agenttop.stats.permutation_test import Compared, Sides, compare
from agenttop.store.store import Store
from agenttop.store.toggles import COMPARED, Moment, counts
from agenttop.stream.engine_client import EngineClient
from agenttop.trial.plan import Plan
from agenttop.trial.trial import Trial, overall
from bench.processes import agenttop
from bench.report import Report

Measures = Mapping[str, Mapping[str, Compared]]

DELAY_US = 50
ROUNDS = 8
#: The recording: so many blocks of a second, and trials made from it.
BLOCKS, BLOCK_S = 90, 1.0
TRIALS = {"A/A": 600, "delay": 200}
#: Live trials: short, so that several fit into minutes.
LIVE_ROUNDS, LIVE_BLOCK_S, LIVE_SETTLE_S = 6, 0.6, 0.2

#: Sleeps half a millisecond, then computes for as long as the file says.
SWITCHABLE = """
import mmap, sys, time
with open(sys.argv[1], "r+b") as file:
    delay = memoryview(mmap.mmap(file.fileno(), 8)).cast("q")
while True:
    time.sleep(0.0005)
    end = time.monotonic_ns() + delay[0]
    while time.monotonic_ns() < end:
        pass
"""


def run(report: Report, rounds: int) -> None:
    """Shares of false and of found differences; ``rounds`` live trials of each kind."""
    base, slow = record()
    random = np.random.default_rng(1)
    for kind, name, on, limit in (
        ("A/A", "A/A trials called better or worse", base, 0.05),
        ("delay", f"trials that find {DELAY_US} us more", slow, 0.95),
    ):
        trials, at_least = TRIALS[kind], kind == "delay"
        seen = found if at_least else differs
        share = np.mean([seen(recorded_trial(base, on, random)) for _ in range(trials)])
        report.add(f"{name}, recorded", "share", [float(share)], limit, at_least, f"of {trials}")
    for name, delay_us in (("A/A", 0), (f"{DELAY_US} us", DELAY_US)):
        seen = found if delay_us else differs
        share = np.mean([seen(live_trial(delay_us, seed)) for seed in range(rounds)])
        said = "found" if delay_us else "called better or worse"
        report.add(f"live {name} trials {said}", "share", [float(share)], note=f"of {rounds}")


def differs(measures: Measures) -> bool:
    """Is any figure of the trial called better or worse?"""
    return overall(measures) in ("better", "worse", "mixed")


def found(measures: Measures) -> bool:
    """Is the delay called what it is, a longer step?

    The slowpath may be shorter by it for good reasons: a CPU that computes
    does not sleep as deeply.
    """
    return any(one.verdict == "worse" for one in measures["step"].values())


# --------------------------------------------------------------------------- recorded


def record() -> tuple[dict[str, Counts], dict[str, Counts]]:
    """Blocks of the undelayed and of the delayed loop: measure -> (blocks, BUCKETS)."""
    seconds = int(BLOCKS * BLOCK_S) + 30
    options = ["--source", "ipc", "--interval-us", 500, "--for", seconds]
    loops = [
        subprocess.Popen(
            agenttop("loop", *options, "--compute-us", compute), stdout=subprocess.DEVNULL
        )
        for compute in (0, DELAY_US)
    ]
    client = EngineClient(
        EngineOptions(agent_patterns=[f"pid:{loop.pid}" for loop in loops], delay_s=BLOCK_S)
    )
    store = Store()
    moments: list[Moment] = []
    try:
        end = time.monotonic() + seconds
        while len(moments) < BLOCKS and time.monotonic() < end:
            for sample in client.samples(end):
                store.feed(sample)
                measured = all(agent.steps > 100 for agent in sample.agents)
                if len(sample.agents) == len(loops) and measured and store.history.moments:
                    moments.append(store.history.moments[-1])
        snapshot = store.snapshot()
        assert snapshot is not None
        ids = {agent.pid: agent.id for agent in snapshot.agents}
    finally:
        client.close()
        for loop in loops:
            loop.kill()
            loop.wait()
    # The first ticks began before the loops did.
    kept = moments[3:]
    base, slow = (counts(kept, ids[loop.pid]) for loop in loops)
    return base, slow


def recorded_trial(
    base: dict[str, Counts], on: dict[str, Counts], random: np.random.Generator
) -> Measures:
    """What a trial shows on a stretch of the recording."""
    length = 3 * ROUNDS
    start = int(random.integers(len(base["step"]) - length + 1))
    # Which of each three neighbours is on, and which off (the third is the control).
    order = np.array([random.permutation(3) for _ in range(ROUNDS)])
    where = start + 3 * np.arange(ROUNDS)[:, None] + order
    sides = {
        name: Sides(off=base[name][where[:, 0]], on=on[name][where[:, 1]]) for name in COMPARED
    }
    return compare(sides)


# --------------------------------------------------------------------------- live


def live_trial(delay_us: int, seed: int) -> Measures:
    """What a trial shows whose policy slows the loop down by so much."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "delay")
        Path(path).write_bytes(bytes(8))
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
            loop = subprocess.Popen([sys.executable, "-c", SWITCHABLE, path])
            try:
                return _live_trial(loop.pid, shared, delay_us, seed)
            finally:
                loop.kill()
                loop.wait()


def _live_trial(pid: int, shared: mmap.mmap, delay_us: int, seed: int) -> Measures:
    status = PolicyStatus("delay", "x", "a slower loop", "off")

    def send(command: Command) -> None:
        shared[:8] = int(command.on * delay_us * 1000).to_bytes(8, sys.byteorder)
        status.state = "on" if command.on else "off"
        status.since_ns = time.monotonic_ns()

    client = EngineClient(EngineOptions(agent_patterns=[f"pid:{pid}"], delay_s=0.1))
    store = Store()
    plan = Plan(("delay",), LIVE_ROUNDS, LIVE_BLOCK_S, LIVE_SETTLE_S, seed)
    trial = Trial(plan, [status], send)
    end = time.monotonic() + 3 * trial.plan.seconds + 30
    try:
        while not trial.finished and time.monotonic() < end:
            for sample in client.samples(end):
                store.feed(sample)
                if sample.agents and sample.agents[0].steps > 100:
                    sample.policies = [status]
                    trial.take(sample, store.history.moments[-1])
        snapshot = store.snapshot()
        assert snapshot is not None
        result = trial.result({a.id: a.name for a in snapshot.agents}, store.host)
        return result.agents[0].measures
    finally:
        client.close()

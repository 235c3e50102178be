"""Causes between the wake-up and the run, on the live kernel against loops that meet them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.causes.labels import Details
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.collectors.procfs.frequency import no_frequency
from agenttop.model.sample import CauseCounters, DetailCounters
from agenttop.text.cause_labels import label_text
from agenttop.workloads.run_delays import HOG_NAME
from tests.live.bpf.test_causes import observe, p50
from tests.support.loops import until
from tests.support.tracing import LEVELS, Measured, caused, load, run_loop

STEPS = 250
#: The loop's timer, us: longer than the hog's turn.
SLOW = ("--interval-us", 4000)
#: The size of a cause against the loop's own clock.
NEAR = 0.05
#: What a percentile can be off besides: a histogram's bucket is 6 % wide.
BUCKET = 0.03
IDLE_FOLDERS = Path("/sys/devices/system/cpu")
WAITS = ("placement", "ran_meanwhile", "avoidable_wait")


@pytest.fixture(scope="module", params=LEVELS)
def tracer(request: pytest.FixtureRequest) -> Iterator[Tracer]:
    tracer = load(request.param)
    yield tracer
    tracer.close()


class Watched(NamedTuple):
    """A loop that was an agent, and its own figures."""

    found: Measured
    causes: dict[str, CauseCounters]
    labels: dict[str, list[DetailCounters]]
    explained: dict[str, int]
    own: dict[str, Any]

    def steps(self, cause: str) -> int:
        return self.causes[cause].steps if cause in self.causes else 0

    def most(self, cause: str) -> DetailCounters:
        return max(self.labels[cause], key=lambda one: one.sum_ns)


def watched(tracer: Tracer, *options: object, first: Callable[[], None] = lambda: None) -> Watched:
    """``first`` is done right before the loop begins."""
    slot, own = run_loop(tracer, *options, first=first)
    found, causes, explained, labels = caused(tracer, slot)
    made = Watched(found, causes, labels, explained, own)
    for stage, ns in made.explained.items():
        assert ns <= made.found.stage_ns[stage]
    for name in causes:
        # What is told by label is what is told in all.
        assert sum(label.sum_ns for label in labels[name]) == causes[name].sum_ns
    return made


def near(value: int, own: int) -> bool:
    return abs(value - own) <= max(own * (NEAR + BUCKET), 2000)


def two_cpus() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")


# --------------------------------------------------------------------------- the run queue


@pytest.mark.bpf
@pytest.mark.measures
def test_who_ran_while_a_step_waited_is_named(tracer: Tracer) -> None:
    observe(tracer, *WAITS)
    seen = watched(tracer, "--cause", "ran_meanwhile", "--steps", STEPS, *SLOW)
    assert seen.steps("ran_meanwhile") >= 0.95 * seen.found.steps
    label = seen.most("ran_meanwhile")
    assert label.label == {"comm": HOG_NAME, "kind": "task"}
    assert label.steps >= 0.95 * seen.found.steps
    mean = seen.own["caused"]["sum_ns"] / seen.own["caused"]["count"]
    assert label.sum_ns / label.steps == pytest.approx(mean, rel=NEAR, abs=2000)
    assert near(p50(seen.causes["ran_meanwhile"]), seen.own["caused"]["p50_ns"])
    # It may not run elsewhere: nothing about that was avoidable, and it stayed where it was.
    assert seen.steps("avoidable_wait") <= 0.05 * seen.found.steps
    assert seen.steps("placement") <= 0.05 * seen.found.steps


def idle_us(cpu: int) -> int:
    """Time that a CPU has spent in its idle states, by the driver's own account."""
    files = IDLE_FOLDERS.glob(f"cpu{cpu}/cpuidle/state*/time")
    return sum(int(file.read_text()) for file in files)


@pytest.mark.bpf
@pytest.mark.measures
def test_a_wait_beside_an_idle_cpu_is_avoidable(tracer: Tracer) -> None:
    two_cpus()
    hogged, other = sorted(os.sched_getaffinity(0))[:2]
    if len(os.sched_getaffinity(0)) > 2 or not idle_us(other):
        pytest.skip("which CPU is idle can be told of two CPUs with idle states only")
    observe(tracer, *WAITS)
    before: list[tuple[int, int]] = []
    for _ in range(6):
        seen = watched(
            tracer,
            *("--cause", "avoidable_wait", "--steps", STEPS, *SLOW),
            first=lambda: before.append((time.monotonic_ns(), idle_us(other))),
        )
        since, idle = before[-1]
        # So long the other CPU was not idle, the loop's way to its begin and from its end included.
        busy = time.monotonic_ns() - since - 1000 * (idle_us(other) - idle)
        if busy <= 0.05 * seen.own["wall_ns"]:
            break
    else:
        pytest.skip("the other CPU was never idle: this machine is busy")
    # Some the other CPU fetches before they have waited.
    own = seen.own["caused"]
    assert own["count"] >= 0.5 * STEPS
    # A step's wait, of 300 us or more, can be free of idle time only while it is busy.
    assert seen.steps("avoidable_wait") >= 0.95 * own["count"] - busy / 300_000
    assert seen.most("avoidable_wait").label == {"cpu": hogged, "idle_cpu": other}
    # Some that it fetched before they had waited for long are named too.
    found, short = seen.causes["avoidable_wait"].sum_ns, 300_000 * STEPS
    assert (1 - NEAR) * own["sum_ns"] - busy <= found <= (1 + NEAR) * own["sum_ns"] + short
    assert seen.causes["avoidable_wait"].sum_ns <= seen.causes["ran_meanwhile"].sum_ns


@pytest.mark.bpf
def test_an_offline_cpu_is_not_one_that_was_idle(tracer: Tracer) -> None:
    """As the programs are told: this machine's CPUs stay online."""
    two_cpus()
    hogged, *others = sorted(os.sched_getaffinity(0))
    observe(tracer, *WAITS)
    try:
        tracer.causes.follow_cpus(frozenset({hogged}))
        seen = watched(tracer, "--cause", "avoidable_wait", "--steps", STEPS, *SLOW)
    finally:
        tracer.causes.follow_cpus(frozenset({hogged, *others}))
    assert seen.steps("ran_meanwhile") >= 0.5 * seen.found.steps
    assert seen.steps("avoidable_wait") == 0


@pytest.mark.bpf
@pytest.mark.measures
def test_a_step_that_came_to_another_cpu_is_named_with_both(tracer: Tracer) -> None:
    two_cpus()
    one, other = sorted(os.sched_getaffinity(0))[:2]
    observe(tracer, *WAITS)
    seen = watched(tracer, "--cause", "placement", "--steps", STEPS, *SLOW)
    moved = seen.own["caused"]["count"]
    assert moved >= 0.5 * STEPS
    assert 0.95 * moved <= seen.steps("placement") <= 1.05 * moved
    found = {(d.label["from_cpu"], d.label["to_cpu"]): d for d in seen.labels["placement"]}
    assert {(one, other), (other, one)} <= found.keys()
    for label in (found[one, other], found[other, one]):
        assert 0.4 * moved <= label.steps <= 0.6 * moved
        assert label.sums["ipi_ns"] <= seen.found.stage_ns["ipi"]
        assert label.sums["moved_steps"] <= label.steps
    assert seen.causes["placement"].sum_ns <= seen.found.stage_ns["queue"]


@pytest.mark.bpf
@pytest.mark.measures
def test_nothing_is_named_where_the_cpu_is_free(tracer: Tracer) -> None:
    observe(tracer, *WAITS)
    cpu = max(os.sched_getaffinity(0))
    for _ in range(6):
        before = idle_us(cpu)
        seen = watched(tracer, "--cpu", cpu, "--steps", STEPS, *SLOW)
        if (idle_us(cpu) - before) * 1000 >= 0.98 * seen.own["wall_ns"]:
            break
    else:
        pytest.skip("the CPU was never free: this machine is busy")
    for cause in WAITS:
        assert seen.steps(cause) <= 0.05 * seen.found.steps


# --------------------------------------------------------------------------- idle states


@contextmanager
def never_idle(cpu: int) -> Iterator[None]:
    """The CPU has something to do whenever nobody else wants it."""
    script = f"""
import os
os.sched_setaffinity(0, {{{cpu}}})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
print("busy", flush=True)
while True:
    pass
"""
    busy = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert busy.stdout is not None
        assert busy.stdout.readline() == b"busy\n"
        yield
    finally:
        busy.kill()
        busy.communicate()


@pytest.mark.bpf
@pytest.mark.measures
def test_the_idle_state_that_a_step_met_is_named(tracer: Tracer) -> None:
    cpu = max(os.sched_getaffinity(0))
    states = sorted(IDLE_FOLDERS.glob(f"cpu{cpu}/cpuidle/state*"))
    if not states:
        pytest.skip("no cpuidle driver")
    observe(tracer, "idle")
    kinds = ("above", "below")
    for _ in range(6):
        before = [[int((state / kind).read_text()) for state in states] for kind in kinds]
        idle = idle_us(cpu)
        seen = watched(tracer, "--cpu", cpu, "--steps", STEPS, "--interval-us", 2000)
        idle = idle_us(cpu) - idle
        after = [[int((state / kind).read_text()) for state in states] for kind in kinds]
        if 1000 * idle >= 0.9 * seen.own["wall_ns"]:
            break
    else:
        pytest.skip("the CPU was never idle: this machine is busy")
    met = int(seen.found.counts["idle_exit"].sum())
    assert met >= 0.5 * seen.found.steps
    # The first may have begun to sleep before it was looked at.
    assert 0.95 * met <= seen.steps("idle") <= met
    whole = seen.found.stage_ns["idle_exit"]
    assert 0.95 * whole <= seen.causes["idle"].sum_ns <= whole
    for label in seen.labels["idle"]:
        number = label.label["state"]
        assert isinstance(number, int)
        assert label.label["name"] == (states[number] / "name").read_text().strip()
        assert label.label["promised_ns"] == int((states[number] / "latency").read_text()) * 1000
        # The driver counts each miss on this CPU, whoever wakes it.
        for kind, name in enumerate(("too_deep", "too_shallow")):
            assert label.sums[name] <= after[kind][number] - before[kind][number]
    if tracer.level == "lite":
        return  # which sees nothing of the way back from the gate
    # By the loop's own clock: it is part of what the loop is late by, which the stages add up to.
    (slow,) = seen.found.at("slowpath", 0.5)
    late = seen.own["lateness"]["p50_ns"]
    # Reading the clock behind the gate takes its time too.
    off = NEAR + BUCKET
    assert late * (1 - off) - 6000 <= slow <= late * (1 + off)


@pytest.mark.bpf
def test_no_idle_state_is_named_on_a_cpu_that_is_never_idle(tracer: Tracer) -> None:
    observe(tracer, "idle")
    cpu = max(os.sched_getaffinity(0))
    with never_idle(cpu):
        seen = watched(tracer, "--cpu", cpu, "--steps", STEPS)
    assert seen.found.steps >= 0.9 * STEPS
    assert seen.steps("idle") <= 0.05 * seen.found.steps


# --------------------------------------------------------------------------- frequency


@pytest.mark.bpf
def test_without_a_driver_frequencies_say_why(tracer: Tracer) -> None:
    reason = no_frequency()
    if reason is None:
        pytest.skip("this machine has a cpufreq driver that tells of its frequencies")
    tracer.causes.want(["frequency"])
    if tracer.causes.loading is not None:
        tracer.causes.finish()
    (state,) = [one for one in tracer.causes.states(cost=False) if one.name == "frequency"]
    assert (state.state, state.reason) == ("n/a", reason)


@pytest.mark.parametrize(
    ("driver", "hwp", "told"),
    [("acpi-cpufreq", False, True), ("intel_pstate", True, False), ("amd-pstate-epp", 0, False)],
)
def test_frequencies_that_the_cpu_chooses_are_not_told(
    driver: str, hwp: bool, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "devices/system/cpu"
    (base / "cpufreq/policy0").mkdir(parents=True)
    (base / "cpu0/cpufreq").mkdir(parents=True)
    (base / "cpu0/cpufreq/scaling_driver").write_text(driver + "\n")
    if hwp:
        (base / "intel_pstate").mkdir()
        (base / "intel_pstate/hwp_dynamic_boost").write_text("0\n")
    monkeypatch.setenv("AGENTTOP_SYS", str(tmp_path))
    assert (no_frequency() is None) == told


@pytest.fixture
def ramping(
    tracer: Tracer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], None]]:
    """As if there were a driver: what the tracepoint's program would note is noted by hand."""
    base = tmp_path / "devices/system/cpu"
    for cpu in range(tracer.power.live.size):
        (base / f"cpu{cpu}/cpufreq").mkdir(parents=True)
        (base / f"cpu{cpu}/cpufreq/scaling_driver").write_text("acpi-cpufreq\n")
        (base / f"cpu{cpu}/cpufreq/scaling_cur_freq").write_text("796000\n")
    (base / "cpufreq/policy0").mkdir(parents=True)
    monkeypatch.setenv("AGENTTOP_SYS", str(tmp_path))
    observe(tracer, "frequency")
    live = tracer.power.live

    def ramp(every_ns: int) -> None:
        now, number = time.monotonic_ns(), layout.RAMPS_KEPT
        live["ramp_from"] = 796_000
        live["ramp_to"] = 2_000_000
        live["ramp_at"] = [now + every_ns * at for at in range(number)]

    yield ramp
    tracer.causes.want(())
    live["khz"] = 0
    live["ramp_at"] = 0


@pytest.mark.bpf
@pytest.mark.measures
def test_a_ramp_behind_the_wake_up_is_named(tracer: Tracer, ramping: Callable[[int], None]) -> None:
    # One comes in each step, and not more than are kept come in all.
    every, steps = 20_000_000, layout.RAMPS_KEPT // 2 - 2
    seen = watched(
        tracer,
        *("--interval-us", 40_000, "--compute-us", 30_000, "--steps", steps),
        first=lambda: ramping(every),
    )
    if seen.own["wall_ns"] > every * layout.RAMPS_KEPT or seen.own["ready"]:
        pytest.skip("the loop came too late: this machine is busy")
    assert seen.steps("frequency") >= 0.95 * seen.found.steps
    label = seen.most("frequency")
    assert label.label == {"from_khz": 800_000, "to_khz": 2_000_000}
    assert label.steps == label.events == seen.steps("frequency")
    # The wait for the CPU counts from the wake-up to the ramp, and computing alone to the cause.
    assert 0 < label.sum_ns <= label.sums["wake_to_ramp_ns"]
    assert label.sums["wake_to_ramp_ns"] <= label.sum_ns + sum(
        seen.found.stage_ns[stage] for stage in ("ipi", "idle_exit", "queue")
    )
    # The first of them counts.
    assert label.max_ns <= every
    assert seen.explained["compute"] == 0


@pytest.mark.bpf
def test_steps_without_a_ramp_have_their_frequency(
    tracer: Tracer, ramping: Callable[[int], None]
) -> None:
    ramping(0)  # before any of the steps
    seen = watched(tracer, "--compute-us", 50, "--steps", STEPS)
    assert "frequency" not in seen.causes
    (label,) = seen.labels["frequency"]
    assert label.label == {"from_khz": 800_000, "to_khz": None}
    # A switch-in that the kernel did not tell of has none.
    assert 0.9 * seen.found.steps <= label.steps <= seen.found.steps
    assert (label.events, label.sum_ns) == (0, 0)


# --------------------------------------------------------------------------- labels


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=5, max_size=5))
def test_any_name_of_who_ran_is_fit_to_be_seen(words: list[int]) -> None:
    label = Details.ran_meanwhile(words)
    assert label_text("ran_meanwhile", label).isprintable()
    assert label["kind"] in layout.RAN


def test_a_kernel_thread_is_told_as_ps_does() -> None:
    assert label_text("ran_meanwhile", {"comm": "ksoftirqd/0", "kind": "kernel"}) == "[ksoftirqd/0]"
    assert label_text("frequency", {"from_khz": 800_000, "to_khz": None}) == "800MHz and no rise"


@pytest.mark.bpf
def test_nothing_looks_back_while_nobody_wants_it(tracer: Tracer) -> None:
    observe(tracer)
    seen = watched(tracer, "--cause", "ran_meanwhile", "--steps", 50, *SLOW)
    assert seen.causes == {}
    assert until(lambda: not Path(f"/proc/{seen.own['pid']}").exists())

"""What disks did for a step, on the live kernel, against /sys/block and the loop's own files."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.model.sample import DetailCounters
from agenttop.model.vocabulary import CAUSES
from agenttop.workloads.blockfile import BLOCK
from agenttop.workloads.cause_makers import READ_BYTES
from tests.live.bpf.test_causes import observe
from tests.support.disks import DiskReads
from tests.support.tracing import LEVELS, caused, load, run_loop

# Other tests write to the same disk.
pytestmark = [pytest.mark.bpf, pytest.mark.alone]

STEPS = 400


@pytest.fixture(scope="module", params=LEVELS)
def tracer(request: pytest.FixtureRequest) -> Iterator[Tracer]:
    tracer = load(request.param)
    yield tracer
    tracer.close()


class Seen:
    """A loop that was an agent, and the labels of a cause in it."""

    def __init__(self, tracer: Tracer, *options: object) -> None:
        slot, self.own = run_loop(tracer, *options)
        self.found, self.causes, explained, self._labels = caused(tracer, slot)
        for stage, ns in explained.items():
            assert ns <= self.found.stage_ns[stage]
        for cause in CAUSES:
            if cause.name in self.causes:
                assert self.causes[cause.name].sum_ns <= self.found.stage_ns[cause.stage]

    def labels(self, cause: str, **wanted: object) -> list[DetailCounters]:
        """Those whose fields have these values."""
        return [
            one
            for one in self._labels.get(cause, [])
            if all(one.label[name] == value for name, value in wanted.items())
        ]

    def steps(self, cause: str) -> int:
        return self.causes[cause].steps if cause in self.causes else 0


class LoopDevice:
    """A disk of our own: nobody else reads it, and its own counters are the truth."""

    def __init__(self, name: str) -> None:
        self.path = f"/dev/{name}"
        self.name = name

    def reads(self) -> tuple[int, int]:
        """Completed reads, and their time in ms (Documentation/block/stat.rst)."""
        words = Path(f"/sys/block/{self.name}/stat").read_text().split()
        return int(words[0]), int(words[3])


@pytest.fixture
def disk() -> Iterator[LoopDevice]:
    if shutil.which("losetup") is None:
        pytest.skip("no losetup")
    backing = Path(f"/var/tmp/agenttop-test-{os.getpid()}.img")
    try:
        backing.write_bytes(os.urandom(8 << 20))
        made = subprocess.run(
            ["losetup", "--find", "--show", "--direct-io=on", backing],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            pytest.skip(f"no loop device: {made.stderr.strip()}")
        path = made.stdout.strip()
        try:
            yield LoopDevice(os.path.basename(path))
        finally:
            subprocess.run(["losetup", "--detach", path], check=True)
    finally:
        backing.unlink(missing_ok=True)


@pytest.mark.parametrize("gate", ["read", "epoll", "io_uring"])
@pytest.mark.measures
def test_the_request_that_a_gate_waited_for(tracer: Tracer, gate: str) -> None:
    observe(tracer, "block")
    disks = DiskReads()
    seen = Seen(tracer, "--gate", gate, "--source", "block", "--steps", STEPS)
    disks.needed(STEPS)
    by_disk = seen.found.sources["block"]
    assert by_disk >= 0.5 * seen.found.steps
    assert by_disk * 0.95 <= seen.steps("block") <= seen.found.steps
    gates = seen.labels("block", role="gate", operation="read")
    (label,) = [one for one in gates if one.steps >= 0.95 * by_disk]
    assert Path(f"/sys/class/block/{label.label['device']}").exists()
    assert label.events == label.steps
    assert label.sums["size_bytes"] == BLOCK * label.steps
    for part in ("queue_ns", "device_ns", "wake_ns"):
        assert label.sums[part] > 0
    # What is waited for lies between the request's begin and its completion.
    assert label.sum_ns <= label.sums["queue_ns"] + label.sums["device_ns"]
    if tracer.level == "full" and gate == "read":
        # The gate waits for nothing else.
        assert label.sum_ns >= 0.8 * seen.found.stage_ns["wait"] * label.steps / seen.found.steps


@pytest.mark.measures
def test_queue_and_device_time_are_the_disks_own(tracer: Tracer, disk: LoopDevice) -> None:
    observe(tracer, "block", "block_in_compute")
    options = ("--cause", "block_in_compute", "--file", disk.path, "--interval-us", 5000)
    for _ in range(3):
        reads, ms = disk.reads()
        seen = Seen(tracer, *options, "--steps", STEPS)
        reads, ms = disk.reads()[0] - reads, disk.reads()[1] - ms
        own = seen.labels("block_in_compute", device=disk.name, operation="read")
        own += seen.labels("block", device=disk.name, operation="read")
        events = sum(one.events for one in own)
        assert 0.9 * seen.found.steps <= events <= reads
        # Those of steps that found their gate ready, as somebody else had the CPU, do not count.
        if events >= 0.98 * reads:
            break
    else:
        # Where the machine is that busy, each of those reads is one such step by the loop's count.
        assert events >= 0.98 * reads - seen.own["ready"]
    took = sum(one.sums["queue_ns"] + one.sums["device_ns"] for one in own)
    # The disk's own counter also has the time that waking took.
    assert took / events == pytest.approx(ms * 1e6 / reads, rel=0.05)


def test_a_kernel_thread_that_completes_is_the_disk_all_the_same(
    tracer: Tracer, disk: LoopDevice
) -> None:
    observe(tracer, "block")
    seen = Seen(tracer, "--gate", "read", "--source", "block", "--file", disk.path, "--steps", 500)
    assert seen.steps("block") >= 0.95 * seen.found.steps
    gates = seen.labels("block", device=disk.name, role="gate")
    assert sum(one.steps for one in gates) >= 0.95 * seen.found.steps


def test_a_read_in_compute_is_no_gates(tracer: Tracer) -> None:
    observe(tracer, "block", "block_in_compute")
    seen = Seen(tracer, "--cause", "block_in_compute", "--steps", STEPS, "--interval-us", 4000)
    (label,) = seen.labels("block_in_compute", operation="read")
    assert label.steps >= 0.95 * seen.found.steps
    assert label.sums["size_bytes"] <= READ_BYTES * STEPS
    assert label.sums["size_bytes"] >= 0.5 * READ_BYTES * label.steps
    assert seen.steps("block") <= 0.05 * seen.found.steps
    # Nor background: somebody waited.
    aside = seen.labels("block", role="background", operation="read")
    assert sum(one.events for one in aside) <= 0.1 * seen.found.steps


@pytest.mark.measures
def test_a_page_that_is_read_explains_its_time_once(tracer: Tracer) -> None:
    observe(tracer, "page_cache_miss", "block_in_compute")
    seen = Seen(tracer, "--cause", "page_cache_miss", "--steps", STEPS)
    missed = min(seen.own["caused"]["count"], seen.found.steps)
    assert missed >= 0.8 * STEPS
    assert seen.steps("page_cache_miss") >= 0.95 * missed
    # A disk may be done before the thread has gone to sleep.
    assert 0.5 * missed <= seen.steps("block_in_compute") <= seen.found.steps


def test_writes_that_nobody_waits_for_are_background(tracer: Tracer) -> None:
    observe(tracer, "block", "block_in_compute")
    seen = Seen(tracer, "--cause", "background_write", "--steps", STEPS)
    aside = seen.labels("block", role="background", operation="write")
    assert sum(one.events for one in aside) == pytest.approx(STEPS, rel=0.05)
    assert sum(one.sums["size_bytes"] for one in aside) == pytest.approx(STEPS * BLOCK, rel=0.1)
    assert all(one.steps == one.sum_ns == 0 for one in aside)
    assert sum(one.sums["device_ns"] for one in aside) > 0
    assert seen.steps("block") <= 0.05 * seen.found.steps
    assert seen.steps("block_in_compute") <= 0.05 * seen.found.steps


def test_no_disk_is_named_for_a_timer(tracer: Tracer) -> None:
    observe(tracer, "block", "block_in_compute")
    seen = Seen(tracer, "--compute-us", 20, "--steps", STEPS)
    assert seen.found.steps >= 0.95 * STEPS
    assert seen.steps("block") <= 0.01 * STEPS
    assert seen.steps("block_in_compute") <= 0.01 * STEPS
    assert sum(one.events for one in seen.labels("block")) <= 0.05 * STEPS

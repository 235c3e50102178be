"""Traces for Perfetto: written by us, read back with the published schema."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agenttop.flight import protobuf_writer
from agenttop.flight.perfetto_trace import trace
from agenttop.flight.recorder import Flight, Heat, Who
from agenttop.model.sample import Exemplar, Sample
from agenttop.model.vocabulary import SLOWPATH_STAGES, STAGE_TARGETS_NS, STAGES
from agenttop.store.store import Store
from tests.support.engines import needs_bpf
from tests.support.loops import loop
from tests.support.perfetto_reader import Read, Slice, pb2, read
from tests.support.synth import Synth

SECOND = 1_000_000_000


def flown(samples: list[Sample], keep_s: float = 1e6) -> Flight:
    store, flight = Store(), Flight(keep_s)
    for sample in samples:
        store.feed(sample)
        flight.feed(sample, store)
    return flight


def one(**fields: object) -> Exemplar:
    """A step of agent 1 from 1,000 to 2,000 us whose stages took 100, 10, ... us."""
    given_: dict[str, object] = {
        "agent": 1, "t_ns": 2_000_000, "tid": 11, "cpu": 1, "gate": "epoll_wait", "source": "ipc",
        "stages_ns": [100_000, 10_000, 60_000, 20_000, 0, 210_000, None, 600_000],
        "waker": "other [77]", "pid": 10, "waker_tid": 77, "waker_cpu": 0,
    }  # fmt: skip
    return Exemplar(**{**given_, **fields})  # type: ignore[arg-type]


def of_steps(*steps: Exemplar) -> Flight:
    flight = Flight()
    flight.t_ns, flight.wall_s = 3_000_000, 1_763_680_000.0
    flight.agents = {1: Who("coder", "comm:coder", 10), 2: Who("other", "comm:other", 77)}
    flight.steps.extend(steps)
    return flight


def check_step(found: Slice, step: Exemplar) -> None:
    """The slice says what the step was, to the nanosecond."""
    times = [value or 0 for value in step.stages_ns]
    assert found.begin == step.t_ns - sum(times)
    assert found.end == step.t_ns
    assert found.name == f"step {step.gate}"
    expected, at = [], found.begin
    for stage, took in zip(STAGES, times, strict=True):
        if took:
            expected.append((stage, at, at + took))
        at += took
    assert [(c.name, c.begin, c.end) for c in found.children] == expected
    slow = sum(times[STAGES.index(stage)] for stage in SLOWPATH_STAGES)
    assert (found.args["step_ns"], found.args["slowpath_ns"]) == (sum(times), slow)
    assert found.args["gate"] == step.gate
    assert found.args["source"] == (step.source or "unattributed")
    assert found.args["waker"] == (step.waker or "not known")
    assert found.args["cpu"] == step.cpu
    assert ("return" in found.args) == (step.stages_ns[STAGES.index("return")] is None)
    for child in found.children:
        target = STAGE_TARGETS_NS.get(child.name)
        assert child.args.get("target_p99_ns") == target
        if target is not None:
            assert child.args["over_target"] is (child.end - child.begin > target)


# --------------------------------------------------------------------------- the wire format


@given(st.integers(-(1 << 63), (1 << 64) - 1), st.text(), st.floats(allow_nan=False))
def test_fields_are_read_as_they_were_written(value: int, text: str, real: float) -> None:
    annotation = pb2.DebugAnnotation()
    annotation.ParseFromString(protobuf_writer.number(3, value) + protobuf_writer.string(10, text))
    assert annotation.uint_value == value % (1 << 64)
    assert annotation.name == text.encode("utf-8", "replace").decode()
    annotation.ParseFromString(protobuf_writer.double(5, real))
    assert annotation.double_value == real
    event = pb2.TrackEvent()
    event.ParseFromString(protobuf_writer.number(30, value) + protobuf_writer.fixed64(47, value))
    assert event.counter_value % (1 << 64) == list(event.flow_ids)[0] == value % (1 << 64)  # noqa: RUF015


# --------------------------------------------------------------------------- what it says


def test_a_step_is_a_slice_with_its_stages_in_it() -> None:
    step = one()
    found = read(trace(of_steps(step)))
    (mine,) = found.steps()
    check_step(mine, step)
    assert mine.children[2].args["over_target"] is True  # softirq: 60 of 50 us
    assert mine.children[1].args["over_target"] is False  # irq: 10 of 10 us
    track = found.tracks[mine.track]
    assert (track.thread.pid, track.thread.tid) == (10, 11)
    process = found.tracks[track.parent_uuid].process
    assert (process.pid, process.process_name) == (10, "coder")


def test_times_are_monotonic_and_tied_to_the_time_of_day() -> None:
    found = read(trace(of_steps(one())))
    assert found.primary == pb2.BUILTIN_CLOCK_MONOTONIC
    assert found.clocks == {
        pb2.BUILTIN_CLOCK_MONOTONIC: 3_000_000,
        pb2.BUILTIN_CLOCK_REALTIME: 1_763_680_000 * SECOND,
    }


def test_stages_stand_on_the_cpu_that_ran_them() -> None:
    found = read(trace(of_steps(one())))
    names = {
        found.name(each.track): [s.name for s in found.on(each.track)]
        for each in found.slices
        if each.category == "cpu"
    }
    assert names == {"CPU 0": ["irq: coder", "softirq: coder"], "CPU 1": ["queue: coder"]}
    unknown = read(trace(of_steps(one(waker_cpu=None))))
    assert {unknown.name(s.track) for s in unknown.slices if s.category == "cpu"} == {"CPU 1"}


@pytest.mark.parametrize(
    ("fields", "track"),
    [
        ({}, "other [77]"),
        ({"waker_tid": None, "waker": "irq 25 virtio1-req.0"}, "CPU 0"),
        ({"waker_tid": None, "waker_cpu": None, "waker": "NET_RX"}, "NET_RX"),
    ],
)
def test_a_flow_leads_from_the_waker_to_the_wake_up(fields: dict[str, object], track: str) -> None:
    found = read(trace(of_steps(one(**fields))))
    (wake,) = found.instants
    assert (wake.name, wake.begin) == ("wakes coder", 1_170_000)
    assert found.name(wake.track) == track
    (target,) = [each for each in found.slices if each.ends_flows]
    assert (target.name, target.begin) == ("ipi", wake.begin)
    assert target.ends_flows == wake.flows
    assert len(wake.flows) == 1


def test_a_waker_that_has_steps_itself_is_drawn_on_its_own_track() -> None:
    waker = one(agent=2, tid=77, pid=77, waker="", waker_tid=None)
    found = read(trace(of_steps(one(), waker)))
    (wake,) = found.instants
    assert found.tracks[wake.track].thread.tid == 77


def test_a_thread_number_that_is_used_again_has_a_track_in_each_process() -> None:
    later = one(agent=2, pid=77, t_ns=9_000_000)
    # Each wakes itself: the track is that of the one who had the number then.
    steps = [replace(step, waker_tid=11) for step in (one(), later)]
    found = read(trace(of_steps(*steps)))
    threads = [found.tracks[each.track].thread for each in found.steps()]
    assert [(thread.pid, thread.tid) for thread in threads] == [(10, 11), (77, 11)]
    wakers = [found.tracks[wake.track].thread.pid for wake in found.instants]
    assert wakers == [10, 77]


def test_a_wake_up_that_was_not_seen_has_no_flow() -> None:
    step = one(waker="", waker_tid=None, waker_cpu=None, source=None,
               stages_ns=[900_000, 0, 0, 0, 0, 0, None, 100_000])  # fmt: skip
    found = read(trace(of_steps(step)))
    check_step(found.steps()[0], step)
    assert not found.instants
    assert not any(each.ends_flows for each in found.slices)


def test_steps_one_after_the_other_share_a_track_and_do_not_nest() -> None:
    second = one(t_ns=3_000_000)
    found = read(trace(of_steps(second, one())))
    assert [each.begin for each in found.steps()] == [1_000_000, 2_000_000]
    assert len({each.track for each in found.steps()}) == 1
    assert {each.name for each in found.steps()[0].children} <= set(STAGES)


def test_counters_and_toggles_of_a_run() -> None:
    synth = Synth()
    samples = synth.samples(4)
    synth.toggle("guard")
    samples += synth.samples(3)
    flight = flown(samples)
    found = read(trace(flight))
    coder = next(k for k in found.counters if found.name(k) == "coder slowpath p99")
    expected = [(t.from_ns, t.p99_ns) for t in flight.tails if t.agent == 1]
    assert found.counters[coder] == expected
    assert len(expected) == 6
    assert found.tracks[coder].counter.unit == pb2.CounterDescriptor.UNIT_TIME_NS
    heat = {found.name(k): v for k, v in found.counters.items() if "interrupts" in found.name(k)}
    assert sorted(heat) == [f"CPU {cpu} interrupts and softirqs" for cpu in (0, 1)]
    assert all(0 < percent < 100 for values in heat.values() for _, percent in values)
    (switch,) = [each for each in found.instants if each.category == "policy"]
    assert switch.name == "guard on"
    assert switch.begin == samples[4].policies[0].since_ns
    assert found.kernel == "6.18.0"


def test_agents_without_steps_count_as_none_not_as_a_percentile_of_0() -> None:
    synth = Synth(mode="procfs")
    found = read(trace(flown(synth.samples(3))))
    assert not any("p99" in found.name(track) for track in found.counters)


@given(st.lists(st.builds(
    lambda t, tid, cpu, stages, waker: one(
        t_ns=t, tid=tid, cpu=cpu, stages_ns=stages, waker_tid=waker, waker=str(waker or "")),
    st.integers(0, 1 << 40), st.integers(1, 3), st.integers(0, 2),
    st.lists(st.integers(0, 1 << 20) | st.none(), min_size=8, max_size=8),
    st.none() | st.integers(1, 4),
), max_size=12))  # fmt: skip
def test_whatever_the_steps_they_nest(steps: list[Exemplar]) -> None:
    """Also such as never overlap in one thread, but a damaged recording may claim anything."""
    steps = [step for step in steps if step.t_ns >= sum(s or 0 for s in step.stages_ns)]
    found = read(trace(of_steps(*steps)))
    slices = found.steps()
    assert len(slices) == len(steps)
    for each in slices:
        at = (each.begin, each.end, each.args["cpu"], found.tracks[each.track].thread.tid)
        same = [s for s in steps if (s.t_ns - sum(x or 0 for x in s.stages_ns), s.t_ns) == at[:2]]
        assert same, "a step that nobody made"
        if len(same) == 1:
            check_step(each, same[0])
    for each in found.slices:
        for child in each.children:
            assert each.begin <= child.begin <= child.end <= each.end
            assert each.category == "step"  # only stages lie within something


def test_hostile_names_stay_text() -> None:
    flight = of_steps(one(waker="\x1b[2J\udcff [77]", gate="epoll\nwait"))
    flight.agents[1] = Who("\x1b]0;x\x07" + "a" * 5000, "r", 10)
    found = read(trace(flight))
    names = [found.name(track) for track in found.tracks] + [s.name for s in found.slices]
    assert all(name.isprintable() and len(name) < 200 for name in names)


# --------------------------------------------------------------------------- what is gathered


def test_the_flight_recorder_forgets_what_is_old() -> None:
    samples = Synth().samples(40)
    flight = flown(samples, keep_s=10)
    oldest = samples[-1].t_ns - 10 * SECOND
    # A Sample's steps lie within the second before it.
    assert all(step.t_ns >= oldest - SECOND for step in flight.steps)
    assert {tail.t_ns for tail in flight.tails} == {s.t_ns for s in samples if s.t_ns >= oldest}
    kept = [e for s in samples for e in s.exemplars if e.t_ns >= oldest]
    assert all(step in flight.steps for step in kept)


def test_a_new_run_of_the_engine_begins_anew() -> None:
    synth = Synth()
    before = synth.samples(5)
    synth.restart()
    flight = flown([*before, *synth.samples(2)])
    assert {tail.t_ns for tail in flight.tails} == {synth.t_ns}
    assert not {id(e) for s in before for e in s.exemplars} & {id(e) for e in flight.steps}


def test_heat_is_a_share_of_the_time() -> None:
    flight = flown(Synth().samples(3))
    assert all(isinstance(each, Heat) and 0 < each.ratio < 1 for each in flight.heat)
    assert {each.cpu for each in flight.heat} == {0, 1}


# --------------------------------------------------------------------------- the command


def agenttop(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agenttop", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trace"], "-o"),
        (["trace", "-o", ""], "the name of a file"),
        (["trace", "-o", "/no/such/folder/x"], "/no/such/folder/x"),
        (["trace", "-o", "/tmp/x", "--for", "0"], "--for"),
        (["trace", "-o", "/tmp/x", "--agent", "nonsense"], "nonsense"),
        (["trace", "-o", "/tmp/x", "--from", "/no/such/recording"], "/no/such/recording"),
        (["trace", "-o", "/tmp/x", "--no-bpf"], "without step chains"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    arguments = [a.replace("/tmp/x", str(tmp_path / "x")) for a in arguments]
    done = agenttop(*arguments, AGENTTOP_STATE=str(tmp_path / "state"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.long
@pytest.mark.bpf
def test_live_trace_of_a_loop_and_of_its_recording(tmp_path: Path) -> None:
    needs_bpf()
    state = str(tmp_path / "state")
    file, recording = tmp_path / "a.perfetto-trace", tmp_path / "a.rec"
    with loop("--name", "traced", "--source", "ipc", "--interval-us", 500, "--for", 60) as mine:
        mine.go()
        common = ("--agent", "comm:^traced$", "-d", 0.5)
        done = agenttop("trace", "-o", file, "--for", 3, *common, AGENTTOP_STATE=state)
        assert done.returncode == 0, done.stderr
        done = agenttop("record", "-o", recording, "--for", 3, *common, AGENTTOP_STATE=state)
        assert done.returncode == 0, done.stderr
    check_live(read(file.read_bytes()), mine.pid)

    again = tmp_path / "b.perfetto-trace"
    done = agenttop("trace", "-o", again, "--from", recording)
    assert done.returncode == 0, done.stderr
    from agenttop.stream.recording import Recording

    with Recording(recording) as samples:
        kept = [e for sample in samples for e in sample.exemplars]
    found = check_live(read(again.read_bytes()), mine.pid)
    by_time = {(s.begin, s.end): s for s in found.steps()}
    for step in kept:
        times = sum(value or 0 for value in step.stages_ns)
        check_step(by_time[step.t_ns - times, step.t_ns], step)


def check_live(found: Read, pid: int) -> Read:
    """What must hold of any trace of the loop."""
    steps = found.steps()
    assert steps
    assert {found.tracks[each.track].thread.pid for each in steps} == {pid}
    assert {each.args["source"] for each in steps} & {"ipc"}
    # A thread does one step at a time: no second track was needed.
    assert all(found.tracks[each.track].thread.tid for each in steps)
    wakes = {flow: each.begin for each in found.instants for flow in each.flows}
    ends = {flow: each.begin for each in found.slices for flow in each.ends_flows}
    assert set(ends) <= set(wakes)
    assert ends
    assert all(wakes[flow] == ends[flow] for flow in ends)
    assert any(found.name(track) == "traced slowpath p99" for track in found.counters)
    return found

"""Causes from the Sample to the Snapshot, its text and its JSON, and on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenttop.cli import main
from agenttop.errors import UserError
from agenttop.model.options import causes_of
from agenttop.model.sample import (
    CauseCounters,
    CauseState,
    Command,
    DetailCounters,
    Histogram,
    Sample,
)
from agenttop.model.snapshot import Snapshot
from agenttop.model.vocabulary import CAUSE_NAMES, CAUSES, DETAILS, STAGES
from agenttop.render.cause_text import cause_lines, state_lines
from agenttop.render.snapshot_json import encode
from agenttop.stats.histogram import bucket_of
from agenttop.store.store import Store
from agenttop.text.cause_labels import label_facts
from tests.support.engines import engine, needs_bpf
from tests.support.loops import loop
from tests.support.synth import Synth


def one_cause(value_ns: int, steps: int) -> CauseCounters:
    histogram = Histogram(
        np.array([bucket_of(value_ns)], "<u2").tobytes(), np.array([steps], "<u8").tobytes()
    )
    return CauseCounters(steps, 2 * steps, steps * value_ns, histogram)


def with_causes(sample: Sample, steps: int, value_ns: int = 5000) -> Sample:
    """The sample of an engine that has seen so many steps with faults, in the first agent."""
    sample.causes = [CauseState(c.name, c.stage, c.level, "on") for c in CAUSES]
    sample.causes[1].state, sample.causes[1].reason = "off", "switched off"
    sample.agents[0].causes = {"minor_fault": one_cause(value_ns, steps)} if steps else {}
    explained = sample.agents[0].explained_stage_ns
    explained[STAGES.index("compute")] = steps * value_ns
    return sample


def snapshot_of(*steps: int) -> Snapshot:
    source, store = Synth(), Store()
    for number in steps:
        store.feed(with_causes(source.sample(), number))
    found = store.snapshot()
    assert found is not None
    return found


def test_only_what_was_gained_counts() -> None:
    snapshot = snapshot_of(1000, 1000, 1300)
    fault = snapshot.agents[0].causes["minor_fault"]
    assert fault is not None
    assert (fault.count, fault.events, fault.sum_ns) == (300, 600, 300 * 5000)
    assert fault.stage == "compute"
    assert fault.p50_ns == pytest.approx(5000, rel=0.04)
    left = snapshot.agents[0].unexplained_ns["compute"]
    compute = snapshot.agents[0].stages["compute"]
    assert compute is not None
    assert left == compute.sum_ns - 300 * 5000


def test_a_cause_that_begins_later_counts_from_its_beginning() -> None:
    fault = snapshot_of(0, 0, 40).agents[0].causes["minor_fault"]
    assert fault is not None
    assert fault.count == 40


def test_not_observed_is_none_and_not_seen_is_zero() -> None:
    agents = snapshot_of(0, 0).agents
    for agent in agents:
        assert agent.causes["major_fault"] is None
        fault = agent.causes["minor_fault"]
        assert fault is not None
        assert (fault.count, fault.p50_ns) == (0, None)


def labelled(sample: Sample, *steps: int) -> Sample:
    """The sample of an engine that has seen so many steps by each of these timers' CPUs."""
    with_causes(sample, 0)
    one = one_cause(2000, sum(steps))
    one.details = [
        DetailCounters(
            [3 << 32, cpu],
            {"line": None, "vector": "local_timer", "name": None, "cpu": cpu},
            number,
            number,
            number * 2000,
            9000,
            {"softirq_steps": cpu, "run_ns": 6000, "runs": 2},
        )
        for cpu, number in enumerate(steps)
        if number
    ]
    sample.agents[0].causes = {"interrupt": one}
    sample.agents[0].explained_stage_ns[STAGES.index("irq")] = sum(steps) * 2000
    return sample


def test_labels_count_what_they_gained_and_those_left_out_gained_nothing() -> None:
    source, store = Synth(), Store()
    store.feed(labelled(source.sample(), 100))
    store.feed(labelled(source.sample(), 130, 50))
    snapshot = store.snapshot()
    assert snapshot is not None
    cause = snapshot.agents[0].causes["interrupt"]
    assert cause is not None
    assert [(one.text, one.steps, one.sum_ns) for one in cause.details] == [
        ("local_timer, cpu 1", 50, 100_000),
        ("local_timer, cpu 0", 30, 60_000),
    ]
    assert [one.sums for one in cause.details] == [
        {"softirq_steps": 1, "run_ns": 6000, "runs": 2},
        {"softirq_steps": 0, "run_ns": 0, "runs": 0},
    ]
    assert [one.facts for one in cause.details] == ["the whole handler 3.00µs", ""]
    assert cause.details[0].label["cpu"] == 1
    third = labelled(source.sample(), 130, 60)
    third.agents[0].causes["interrupt"].details = third.agents[0].causes["interrupt"].details[1:]
    store.feed(third)
    snapshot = store.snapshot()
    assert snapshot is not None
    cause = snapshot.agents[0].causes["interrupt"]
    assert cause is not None
    assert [one.steps for one in cause.details] == [60, 30]
    irq = snapshot.agents[0].stages["irq"]
    assert irq is not None
    assert snapshot.agents[0].unexplained_ns["irq"] == max(irq.sum_ns - 90 * 2000, 0)
    lines = "\n".join(cause_lines(snapshot, snapshot.agents[0]))
    assert "60 x local_timer, cpu 1, 2" in lines
    written = json.loads(encode(snapshot))["agents"][0]["causes"]["interrupt"]["details"]
    assert [one["label"]["vector"] for one in written] == ["local_timer"] * 2


def test_what_the_kernel_does_not_tell_of_a_label_is_none_and_not_zero() -> None:
    source, store = Synth(), Store()
    for steps in (10, 30):
        sample = labelled(source.sample(), steps)
        for one in sample.agents[0].causes["interrupt"].details:
            del one.sums["softirq_steps"]
        store.feed(sample)
    snapshot = store.snapshot()
    assert snapshot is not None
    cause = snapshot.agents[0].causes["interrupt"]
    assert cause is not None
    assert cause.details[0].sums == {"softirq_steps": None, "run_ns": 0, "runs": 0}
    assert cause.details[0].facts == ""


def test_labels_leave_the_window_with_their_ticks() -> None:
    source, store = Synth(), Store(window_ns=3_000_000_000)
    for number in range(8):
        store.feed(labelled(source.sample(), 100, 50 if number else 0))
    snapshot = store.snapshot()
    assert snapshot is not None
    cause = snapshot.agents[0].causes["interrupt"]
    assert cause is not None
    assert cause.details == []


def test_what_came_with_a_label_is_told_as_means() -> None:
    timer = {"slack_used_ns": 40_000, "slack_ns": 200_000, "late_ns": 8_000, "late_idle_ns": 0}
    assert label_facts("timer", 4, 4, timer) == "used 10.0µs of 50.0µs slack, late 2.00µs"
    polls = {"polls": 4, "packets": 10, "poll_ns": 8_000, "exhausted_polls": 1, "backlog_polls": 0}
    assert (
        label_facts("network", 5, 5, polls)
        == "polls of 2.5 packets in 2.00µs, 25% used up their budget"
    )
    work = {"queued_ns": 9_000, "queued_steps": 3, "run_ns": 20_000}
    block = {"queued_ns": 600, "bytes": 4096}
    assert label_facts("block", 2, 3, block) == "queued 200ns"
    assert label_facts("workqueue", 10, 10, work) == "queued 3.00µs, ran 2.00µs"
    for cause, known in DETAILS.items():
        assert label_facts(cause, 0, 0, dict.fromkeys(known.sums, 0)).isprintable()
        assert label_facts(cause, 7, 7, dict.fromkeys(known.sums, 1 << 62)).isprintable()


words = st.lists(st.integers(0, (1 << 64) - 1), max_size=6)
fields = st.dictionaries(
    st.sampled_from(("line", "vector", "name", "cpu", "x")) | st.text(max_size=5),
    st.none() | st.text(max_size=40) | st.integers(-(1 << 63), (1 << 63) - 1),
    max_size=5,
)


@settings(deadline=None)
@given(st.sampled_from(sorted(DETAILS)), st.lists(st.tuples(words, fields), max_size=80))
def test_any_label_becomes_a_line_of_text(
    cause: str, labels: list[tuple[list[int], dict[str, str | int | None]]]
) -> None:
    source, store = Synth(agents=1), Store()
    for steps in (0, 5):
        sample = with_causes(source.sample(), 0)
        one = one_cause(2000, 5 + steps)
        one.details = [DetailCounters(w, label, steps, 1, 1, 1) for w, label in labels]
        sample.agents[0].causes = {cause: one}
        store.feed(sample)
    snapshot = store.snapshot()
    assert snapshot is not None
    stat = snapshot.agents[0].causes[cause]
    if not labels:
        return
    assert stat is not None
    assert 0 < len(stat.details) <= 65
    for told in stat.details:
        assert told.text.isprintable()
        assert set(told.label) <= set(DETAILS[cause].label)
    encode(snapshot)


def test_without_chains_there_are_no_causes() -> None:
    source, store = Synth(), Store()
    for _ in range(2):
        store.feed(source.sample())
    snapshot = store.snapshot()
    assert snapshot is not None
    assert snapshot.cause_states == []
    assert cause_lines(snapshot, snapshot.agents[0]) == []


def test_text_names_causes_and_what_they_leave() -> None:
    snapshot = snapshot_of(10, 30)
    text = cause_lines(snapshot, snapshot.agents[0])
    assert [line.split()[0] for line in text if "fault" in line] == ["minor_fault"]
    assert any("rest of compute" in line for line in text)
    assert any(line.startswith("  none: ") for line in text)
    assert max(map(len, text)) <= 110
    states = state_lines(snapshot)
    assert any("major_fault" in line and "not measured: switched off" in line for line in states)
    assert any("minor_fault" in line and "cost not measured" in line for line in states)


def test_json_has_every_cause() -> None:
    written = json.loads(encode(snapshot_of(10, 30)))
    assert list(written["agents"][0]["causes"]) == list(CAUSE_NAMES)
    assert written["agents"][0]["causes"]["minor_fault"]["count"] == 20
    assert written["agents"][0]["causes"]["major_fault"] is None
    assert {state["name"] for state in written["cause_states"]} == set(CAUSE_NAMES)


def test_specifications() -> None:
    assert causes_of("off") == ()
    assert causes_of("full") == CAUSE_NAMES
    assert set(causes_of("lite")) == {c.name for c in CAUSES if c.level == "lite"}
    assert causes_of("major_fault, minor_fault") == ("minor_fault", "major_fault")


@given(st.text())
def test_any_text_is_causes_or_one_clear_line(spec: str) -> None:
    said = "--causes"
    try:
        assert set(causes_of(spec)) <= set(CAUSE_NAMES)
    except UserError as error:
        said = str(error)
    assert "--causes" in said
    assert said.isprintable()


def test_a_wrong_cause_is_told_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["snapshot", "--causes", "gremlins"]) == 2
    assert "no cause 'gremlins'" in capsys.readouterr().err
    assert main(["snapshot", "--causes", "lite", "--no-bpf"]) == 2
    assert "needs BPF" in capsys.readouterr().err


@pytest.mark.bpf
def test_causes_are_switched_while_the_engine_runs() -> None:
    needs_bpf()
    with (
        loop("--cause", "minor_fault", "--for", 30, "--name", "atcaused") as one,
        engine(agent_patterns=[f"pid:{one.pid}"]) as running,
    ):
        sample = running.measuring()
        assert not any(state.state == "on" for state in sample.causes)
        running.client.send(Command("causes", name="minor_fault"))
        running.until(lambda s: any(state.state == "on" for state in s.causes))
        one.go()
        running.until(lambda s: any("minor_fault" in agent.causes for agent in s.agents))
        running.until(lambda s: True)
        snapshot = running.store.snapshot()
        assert snapshot is not None
        fault = snapshot.agents[0].causes["minor_fault"]
        assert fault is not None
        assert fault.count > 0
        running.client.send(Command("causes", name="off"))
        running.until(lambda s: not any(state.state == "on" for state in s.causes))
        seen = running.until(lambda s: True).agents[0].causes["minor_fault"].steps
        assert running.until(lambda s: True).agents[0].causes["minor_fault"].steps == seen
        running.client.send(Command("causes", name="gremlins"))
        running.until(lambda s: any("gremlins" in event.text for event in s.events))


@pytest.mark.bpf
def test_labels_come_through_the_engine_with_their_names() -> None:
    needs_bpf()
    with (
        loop("--source", "tcp", "--for", 30, "--name", "atlabels") as one,
        engine(agent_patterns=[f"pid:{one.pid}"]) as running,
    ):
        running.measuring()
        running.client.send(Command("causes", name="socket,network,timer"))
        running.until(lambda s: any(state.state == "on" for state in s.causes))
        one.go()
        running.until(lambda s: any("socket" in agent.causes for agent in s.agents))
        running.until(lambda s: True)
        snapshot = running.store.snapshot()
        assert snapshot is not None
        (agent,) = [agent for agent in snapshot.agents if agent.steps]
        network, ends = agent.causes["network"], agent.causes["socket"]
        assert network is not None
        assert ends is not None
        assert network.details[0].text == "lo, loopback"
        assert "packets in" in network.details[0].facts
        assert ends.details[0].text.startswith("tcp 127.0.0.1:")
        # Steps go on between the reading of the one and of the other.
        assert sum(label.steps for label in ends.details) == pytest.approx(ends.count, abs=50)
        assert ends.details[0].steps >= 0.9 * ends.count
        assert "wait" not in agent.unexplained_ns
        assert agent.unexplained_ns["softirq"] < agent.stages["softirq"].sum_ns  # type: ignore[union-attr]

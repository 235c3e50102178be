"""Reports: the questions that causes answer, against made-up truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenttop.model.sample import CauseCounters, CauseState, DetailCounters, Sample
from agenttop.report.builder import build
from tests.support.synth import Synth
from tests.unit.report.test_report import answers, cut
from tests.unit.stream.test_recording import read, written


def test_causes_are_told_where_they_were_observed() -> None:
    samples = Synth(agents=1).samples(20)
    states = [CauseState("minor_fault", "compute", "lite", "on")]
    for second, sample in enumerate(samples):
        sample.causes = states if second >= 10 else []
        if second > 10:
            steps = (sample.agents[0].steps - samples[10].agents[0].steps) // 4
            sample.agents[0].causes = {
                "minor_fault": CauseCounters(steps, 3 * steps, 2_000 * steps)
            }
    found = answers(build(cut(samples), "live"))["faults"]
    figures = {figure.key: figure.value for figure in found.figures}
    assert figures["minor_fault_ratio"] == pytest.approx(0.25, rel=0.01)
    assert figures["minor_fault_mean_ns"] == pytest.approx(2_000)
    assert figures["minor_fault_events"] == pytest.approx(3)
    assert found.state == "partly measured"
    assert found.missing == "major_fault: not observed"


def test_metadata_has_its_cold_share() -> None:
    samples = Synth(agents=1).samples(12)
    for second, sample in enumerate(samples):
        # The cold ones were observed for a part of the time.
        names = ("file_metadata", "cold_metadata") if second > 3 else ("file_metadata",)
        sample.causes = [CauseState(name, "compute", "full", "on") for name in names]
        sample.agents[0].causes["file_metadata"] = CauseCounters(
            50 * second, 200 * second, 1_000_000 * second
        )
        sample.agents[0].causes["cold_metadata"] = CauseCounters(
            5 * max(second - 3, 0), 10 * max(second - 3, 0), 600_000 * max(second - 3, 0)
        )
    found = answers(build(cut(samples), "live"))["metadata"]
    figures = {figure.key: figure for figure in found.figures}
    assert figures["cold_ratio"].value == pytest.approx(0.05)
    assert figures["cold_time_ratio"].value == pytest.approx(0.6)
    assert figures["cold_ratio"].n == 7 * 200  # from when they were on at both ends
    assert figures["file_metadata_events"].value == pytest.approx(4)
    assert "Cold were 5.0%" in found.answer


def test_metadata_without_its_cold_share() -> None:
    samples = Synth(agents=1).samples(12)
    for sample in samples:
        sample.causes = [CauseState("file_metadata", "compute", "full", "on")]
    found = answers(build(cut(samples), "live"))["metadata"]
    assert "cold_ratio" not in {figure.key for figure in found.figures}
    assert (found.state, found.missing) == ("partly measured", "cold_metadata: not observed")


def caused(samples: list[Sample], causes: dict[str, list[DetailCounters]]) -> list[Sample]:
    """Each second as many more steps with these labels of causes as they say."""
    for second, sample in enumerate(samples):
        sample.causes = [CauseState(cause, "queue", "lite", "on") for cause in causes]
        for cause, labels in causes.items():
            details = [
                DetailCounters(
                    one.words,
                    one.label,
                    *(second * value for value in (one.steps, one.events, one.sum_ns)),
                    one.max_ns,
                    {name: second * value for name, value in one.sums.items()},
                )
                for one in labels
            ]
            events = sum(one.events for one in details)
            ns = sum(one.sum_ns for one in details)
            # What is told by a label alone (no rise) is no step of the cause.
            sample.agents[0].causes[cause] = CauseCounters(events, events, ns, details=details)
    return samples


def test_placement_tells_what_was_avoidable_and_who_ran() -> None:
    hogs = [
        ("hog", 20, 4_000_000),
        ("[kworker]", 10, 100_000),
        ("a", 5, 3),
        ("\x1b[31m", 3, 50_000),
    ]
    samples = caused(
        Synth(agents=1).samples(12),
        {
            "placement": [
                DetailCounters(
                    [0, 1], {"from_cpu": 0, "to_cpu": 1}, 10, 10, 10_000, 0,
                    {"ipi_ns": 20_000, "moved_steps": 1},
                )
            ],
            "avoidable_wait": [
                DetailCounters([0, 1], {"cpu": 0, "idle_cpu": 1}, 5, 5, 500_000, 0)
            ],
            "ran_meanwhile": [
                DetailCounters([at], {"comm": name, "kind": "task"}, steps, steps, ns, 0)
                for at, (name, steps, ns) in enumerate(hogs)
            ],
        },
    )  # fmt: skip
    found = answers(build(cut(samples), "live"))["placement"]
    figures = {figure.key: figure for figure in found.figures}
    made = figures["moved_ratio"].n
    assert figures["moved_ratio"].value == pytest.approx(10 * 11 / made, rel=0.01)
    assert figures["avoidable_mean_ns"].value == pytest.approx(100_000)
    assert (figures["avoidable_mean_ns"].n, figures["avoidable_ratio"].n) == (5 * 11, made)
    tables = {table.title: table for table in found.tables}
    rows = tables["who ran while steps waited"].rows
    assert [row.label for row in rows][:2] == ["hog", "[kworker]"]
    assert len(rows) == 3
    assert rows[2].label.isprintable()
    assert rows[0].figures[2].value == pytest.approx(200_000)
    move = {figure.key: figure.value for figure in tables["to another CPU"].rows[0].figures}
    assert move["move_ipi_ns"] == pytest.approx(2000)
    assert move["moved_waiting_ratio"] == pytest.approx(0.1)
    assert (found.state, found.missing) == ("measured", None)


def test_a_recording_may_have_any_label(tmp_path: Path) -> None:
    label = [DetailCounters([(1 << 64) - 1] * 5, {}, 20, 20, 4_000_000, 0)]
    samples = caused(Synth(agents=1).samples(12), {"ran_meanwhile": label})
    read_back = read(tmp_path / "a.rec", written(samples))
    found = answers(build(cut(read_back), "file"))["placement"]
    table = next(one for one in found.tables if one.title == "who ran while steps waited")
    assert [row.label for row in table.rows] == ["others"]


def test_placement_says_what_was_not_observed() -> None:
    found = answers(build(cut(Synth().samples(12)), "live"))["placement"]
    assert found.state == "partly measured"
    assert "idle while a step waited" in (found.missing or "")
    assert "avoidable_ratio" not in {figure.key for figure in found.figures}


def test_ramps_have_their_share_and_their_cost() -> None:
    rises = [(800_000, None, 60, 0, 0), (800_000, 2_000_000, 20, 2_000_000, 10_000_000),
             (2_000_000, 3_000_000, 20, 3_000_000, 4_000_000)]  # fmt: skip
    samples = caused(
        Synth(agents=1).samples(12),
        {
            "frequency": [
                DetailCounters(
                    [before, after or 0], {"from_khz": before, "to_khz": after},
                    steps, steps if after else 0, ns, 0, {"wake_to_ramp_ns": wake},
                )
                for before, after, steps, ns, wake in rises
            ]
        },
    )  # fmt: skip
    found = answers(build(cut(samples), "live"))["frequency"]
    figures = {figure.key: figure for figure in found.figures}
    assert figures["ramp_ratio"].value == pytest.approx(0.4)
    assert figures["ramp_ratio"].n == 100 * 11
    assert figures["wake_to_ramp_mean_ns"].value == pytest.approx(350_000)
    # 2 ms at 0.8 instead of 2 GHz, 3 ms at 2 instead of 3 GHz, of 40 steps.
    assert figures["cost_mean_ns"].value == pytest.approx((1_200_000 + 1_000_000) / 40)
    assert figures["switch_in_khz"].value == pytest.approx(0.8 * 800_000 + 0.2 * 2_000_000)
    assert "800MHz to 2.00GHz" in {row.label for row in found.tables[0].rows}
    assert found.state == "measured"


def test_deferred_completion_from_its_causes() -> None:
    samples = caused(
        Synth(agents=1).samples(12),
        {
            "workqueue": [
                DetailCounters(
                    [1], {"function": "flush_to_ldisc", "thread": None}, 30, 30, 900_000, 0,
                    {"queued_ns": 600_000, "queued_steps": 20, "run_ns": 300_000},
                )
            ],
            "timer": [
                DetailCounters(
                    [2], {"function": "hrtimer_wakeup", "kind": "hrtimer"}, 10, 10, 50_000, 0,
                    {"slack_used_ns": 400_000, "slack_ns": 500_000, "late_ns": 70_000},
                )
            ],
            "softirq": [
                DetailCounters(
                    [3], {"vector": "NET_RX", "cpu": 0}, 10, 10, 50_000, 0,
                    {"raised_ns": 30_000, "ksoftirqd_steps": 1},
                )
            ],
        },
    )  # fmt: skip
    found = answers(build(cut(samples), "live"))["deferred"]
    figures = {figure.key: figure.value for figure in found.figures}
    assert figures["queued_mean_ns"] == pytest.approx(30_000)
    assert figures["work_mean_ns"] == pytest.approx(10_000)
    assert figures["timer_late_mean_ns"] == pytest.approx(7_000)
    assert figures["timer_slack_used_mean_ns"] == pytest.approx(40_000)
    assert figures["softirq_raised_mean_ns"] == pytest.approx(3_000)
    assert figures["softirq_thread_ratio"] == pytest.approx(0.1)
    works = next(table for table in found.tables if table.title == "work of kernel threads")
    assert works.rows[0].label == "work flush_to_ldisc"
    assert (found.state, found.missing) == ("measured", None)

"""How much of a step is waking an idle CPU, and do the idle states keep their promise?"""

from __future__ import annotations

import numpy as np

from agenttop.model.vocabulary import DETAILS, SLOWPATH_STAGES
from agenttop.report.estimate import nothing, percentile, quotient
from agenttop.report.figure_text import said, value
from agenttop.report.model import Answer, Figure, Row, Table
from agenttop.report.question_data import Data
from agenttop.report.questions.cause_figures import gained, summed
from agenttop.report.questions.shared import (
    RUN,
    by_agent,
    main_rows,
    no_steps,
    stage,
    steps,
    table,
    tail,
    tail_steps,
)
from agenttop.store.snapshot_builder import Named

KEY = "idle_exit"
QUESTION = "What does waking an idle CPU cost a step?"


def answer(data: Data) -> Answer:
    """idle_exit's share, what each state's exit takes, and the governor's misses."""
    if (cannot := no_steps(data, KEY, QUESTION)) is not None:
        return cannot
    rows, left_out = main_rows(data)
    made = sum(steps(rows))
    share = quotient(
        "idle_exit_ratio",
        "idle_exit of the slowpath",
        stage(rows, "idle_exit"),
        stage(rows, *SLOWPATH_STAGES),
        n=made,
    )
    counts = data.counts("idle_exit")
    all_steps = data.counts("step").sum(axis=1)
    met = quotient(
        "idle_met_ratio",
        "steps that found their CPU idle",
        counts[:, 1:].sum(axis=1),
        all_steps,
        n=int(all_steps.sum()),
    )
    mean = quotient(
        "idle_exit_mean_ns",
        "idle_exit, mean of all steps",
        stage(rows, "idle_exit"),
        steps(rows),
        unit="ns",
        n=made,
    )
    p99 = percentile("idle_exit_p99_ns", "idle_exit, p99", counts, "p99")
    slow = quotient(
        "idle_exit_tail_ratio",
        "idle_exit of the slowest steps' wake-up to run",
        tail(rows, "idle_exit"),
        tail(rows, *RUN),
        n=tail_steps(rows),
        of="slow steps",
    )
    wrong = _chosen(data)
    tables = _states(data) + by_agent(data, "by agent", _agent)
    missing = data.host.missing.get("idle")
    return Answer(
        key=KEY,
        question=QUESTION,
        state="measured" if data.host.idle_states else "partly measured",
        answer=f"{said(met)} of steps found their CPU idle; leaving it took {value(mean)} a step"
        f" on average, p99 {value(p99)}, and {said(share)} of the slowpath.",
        how="The stage idle_exit: from the wake-up's arrival until the target CPU has left its"
        f" idle state, of the agents' steps{left_out}. The states' exits are of all agents' wake-"
        "ups; promised is what the cpuidle driver says in sysfs; too deep and too shallow are the"
        " governor's own counters above and below.",
        figures=[share, slow, met, mean, p99, *wrong],
        tables=tables,
        missing=missing and f"idle states: {missing}",
        instead="A cpuidle driver; on a virtual machine the host's idle states stay hidden."
        if missing
        else None,
    )


def _chosen(data: Data) -> list[Figure]:
    """Steps that met a wrongly chosen state, where the kernel tells of each."""
    found = gained(data, "idle")
    missed = {name: summed(data, "idle", name) for name in DETAILS["idle"].sums}
    if found is None or not any(map(sum, missed.values())):
        return []
    return [
        quotient(
            f"{key}_steps_ratio",
            f"idle state {key.replace('_', ' ')}, of the steps that met one",
            wrong,
            found.had,
            n=sum(found.had),
        )
        for key, wrong in missed.items()
    ]


def _agent(rows: list[Named], agent: int) -> list[Figure]:
    made = sum(steps(rows))
    return [
        quotient(
            "idle_exit_ratio",
            "of the slowpath",
            stage(rows, "idle_exit"),
            stage(rows, *SLOWPATH_STAGES),
            n=made,
        ),
        quotient(
            "idle_exit_mean_ns", "mean", stage(rows, "idle_exit"), steps(rows), unit="ns", n=made
        ),
    ]


def _states(data: Data) -> list[Table]:
    rows = []
    for at, state in enumerate(data.host.idle_states):
        spent, time, entered, above, below, exits = [], [], [], [], [], []
        for block in data.blocks:
            mine = [states[at] for states in block.idle.values() if at < len(states)]
            spent.append(sum(int(row[1]) for row in mine))
            time.append(block.length_ns * len(mine))
            entered.append(sum(int(row[0]) for row in mine))
            above.append(sum(int(row[2]) for row in mine))
            below.append(sum(int(row[3]) for row in mine))
            exits.append(block.exits.row(at))
        entries = sum(entered)
        seconds = round(data.seconds)
        promised = Figure(
            "promised_ns", "promised exit", "ns", float(state.latency_us * 1000), of="driver"
        )
        counts = np.array(exits)
        figures = [
            quotient("time_ratio", "time in it", spent, time, n=seconds, of="seconds"),
            promised,
            percentile("exit_p50_ns", "measured, p50", counts, "p50", of="wake-ups"),
            percentile("exit_p99_ns", "p99", counts, "p99", of="wake-ups"),
        ]
        for key, name, missed in (
            ("above_ratio", "too deep", above),
            ("below_ratio", "too shallow", below),
        ):
            if data.above_known:
                figures.append(quotient(key, name, missed, entered, n=entries, of="entries"))
            else:
                figures.append(nothing(key, name, "ratio", "the kernel does not count it"))
        rows.append(Row(state.name, figures))
    return [table("idle states, all CPUs", "state", rows)] if rows else []

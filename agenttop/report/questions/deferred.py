"""How much is deferred completion: workqueues, timers, softirqs and their threads."""

from __future__ import annotations

import numpy as np

from agenttop.model.vocabulary import SLOWPATH_STAGES, SOFTIRQS, SOURCES
from agenttop.report.estimate import nothing, percentile, quotient
from agenttop.report.figure_text import said, value
from agenttop.report.model import Answer, Figure, Row, Table
from agenttop.report.question_data import Data
from agenttop.report.questions.cause_figures import (
    each,
    gained,
    label_table,
    lacking,
    share,
    summed,
)
from agenttop.report.questions.shared import (
    by_agent,
    main_rows,
    no_steps,
    slowpath,
    stage,
    steps,
    table,
    tail,
    tail_steps,
    whole,
)
from agenttop.report.time_blocks import WAKERS
from agenttop.store.snapshot_builder import Named

KEY = "deferred"
QUESTION = "How much is deferred completion (softirqs, kernel workers, timers)?"
#: Sources whose completion a kernel thread did.
_WORKERS = ("kworker", "io_uring")
#: Rows of those that took the most time.
_WORST = 5


def answer(data: Data) -> Answer:
    """The stage softirq, the sources, raise to entry, and who woke the slowest steps."""
    if (cannot := no_steps(data, KEY, QUESTION)) is not None:
        return cannot
    rows, left_out = main_rows(data)
    made = sum(steps(rows))
    share = _softirq(rows)
    slow = quotient(
        "softirq_tail_ratio",
        "the same in the slowest steps",
        tail(rows, "softirq"),
        tail(rows, *SLOWPATH_STAGES),
        n=tail_steps(rows),
        of="slow steps",
    )
    workers = _source(rows, "worker_ratio", "steps that a kernel worker completed", *_WORKERS)
    timers = _source(rows, "timer_ratio", "steps that a timer completed", "timer")
    figures = [
        share,
        slow,
        quotient(
            "softirq_mean_ns", "softirq, mean", stage(rows, "softirq"), steps(rows), unit="ns",
            n=made,
        ),
        percentile("softirq_p99_ns", "softirq, p99", data.counts("softirq"), "p99"),
        quotient("irq_mean_ns", "irq, mean", stage(rows, "irq"), steps(rows), unit="ns", n=made),
        workers,
        timers,
        _ksoftirqd(data),
    ]  # fmt: skip
    text = (
        f"The softirq stage takes {said(share)} of the slowpath (p99 {value(figures[3])});"
        f" a kernel worker completed {said(workers)} of steps, a timer {said(timers)}"
    )
    if slow.value is not None:
        text += f". In the slowest steps the softirq stage takes {said(slow)} of the slowpath"
    queued, late, raised = _workqueue(data), _timers(data), _raises(data)
    figures += [*queued, *late, *raised]
    if queued:
        text += (
            f". Work that kernel threads did completed {said(queued[0])} of steps; it had waited"
            f" {value(queued[1])} to run and ran {value(queued[2])} until the wake-up"
        )
    if late:
        text += f". Timers were late by {value(late[1])} a step that one ended"
    unknown = lacking(
        data,
        {
            "workqueue": "how long work had waited in its workqueue",
            "timer": "how late timers were",
            "softirq": "raise to entry of the agents' own softirqs",
        },
    )
    return Answer(
        key=KEY,
        question=QUESTION,
        state="partly measured" if unknown else "measured",
        answer=text + ".",
        how="The stage softirq (softirq entry to wake-up) over the slowpath, and the sources that"
        f" completed the steps, of the agents{left_out}; kernel workers are kworkers and io_uring's"
        " own. Raise to entry is of all softirqs of all CPUs. Who woke the slowest steps is of"
        " those that were kept whole, which are no random sample of all. At level lite the slowpath"
        " is without the return from the gate, which stands in compute.",
        figures=figures,
        tables=[
            *_works(data),
            *_raised(data),
            *_wakers(data),
            *by_agent(data, "by agent", _agent),
        ],
        wholes=[whole("slowpath", rows, slowpath(data))],
        missing=" and ".join(unknown) or None,
        instead="--causes workqueue,timer,softirq observes them (a live report does so by itself)."
        if unknown
        else None,
    )


def _workqueue(data: Data) -> list[Figure]:
    found = gained(data, "workqueue")
    if found is None:
        return []
    known = summed(data, "workqueue", "queued_steps")
    none = "no step was completed by one"
    return [
        quotient("workqueue_ratio", "steps that a kernel thread's work completed", found.had,
                 found.steps, n=sum(found.steps)),
        quotient("queued_mean_ns", "work: queued to run", summed(data, "workqueue", "queued_ns"),
                 known, unit="ns", n=sum(known), missing=none),
        quotient("work_mean_ns", "work: run to wake-up", summed(data, "workqueue", "run_ns"),
                 found.had, unit="ns", n=sum(found.had), missing=none),
    ]  # fmt: skip


def _works(data: Data) -> list[Table]:
    found = gained(data, "workqueue")
    if found is None:
        return []
    return label_table(
        "work of kernel threads",
        "work",
        data.labels("workqueue")[:_WORST],
        lambda one: [
            share("works_ratio", one, found.steps),
            each("works_mean_ns", "queued to wake-up", one, one.ns),
        ],
    )


def _timers(data: Data) -> list[Figure]:
    found = gained(data, "timer")
    if found is None:
        return []
    had = sum(found.had)
    return [
        quotient("timer_cause_ratio", "steps that a timer's function completed", found.had,
                 found.steps, n=sum(found.steps)),
        *(
            quotient(f"timer_{key}_mean_ns", f"timer: {name}", summed(data, "timer", f"{key}_ns"),
                     found.had, unit="ns", n=had, missing="no timer ended a step")
            for key, name in (
                ("late", "late, beyond its slack"),
                ("slack_used", "of its slack used"),
            )
        ),
    ]  # fmt: skip


def _raises(data: Data) -> list[Figure]:
    found = gained(data, "softirq")
    if found is None:
        return []
    had = sum(found.had)
    none = "no softirq completed a step"
    return [
        quotient("softirq_raised_mean_ns", "agents' softirqs: raise to entry",
                 summed(data, "softirq", "raised_ns"), found.had, unit="ns", n=had, missing=none),
        quotient("softirq_thread_ratio", "of them run by ksoftirqd",
                 summed(data, "softirq", "ksoftirqd_steps"), found.had, n=had, missing=none),
    ]  # fmt: skip


def _softirq(rows: list[Named]) -> Figure:
    return quotient(
        "softirq_ratio",
        "softirq of the slowpath",
        stage(rows, "softirq"),
        stage(rows, *SLOWPATH_STAGES),
        n=sum(steps(rows)),
    )


def _source(rows: list[Named], key: str, name: str, *sources: str) -> Figure:
    places = [SOURCES.index(source) for source in sources]
    ended = [sum(row.sources[at] for at in places) for row in rows]
    return quotient(key, name, ended, steps(rows), n=sum(steps(rows)))


def _agent(rows: list[Named], agent: int) -> list[Figure]:
    return [
        _softirq(rows),
        _source(rows, "worker_ratio", "by a worker", *_WORKERS),
        _source(rows, "timer_ratio", "by a timer", "timer"),
    ]


def _ksoftirqd(data: Data) -> Figure:
    name = "CPU time of ksoftirqd"
    if all(cpu.ksoftirqd_ns is None for cpu in data.newest.cpus):
        return nothing("ksoftirqd_ratio", name, "ratio", "its threads cannot be seen", "seconds")
    return quotient(
        "ksoftirqd_ratio",
        name,
        [block.ksoftirqd_ns for block in data.blocks],
        [block.length_ns * max(data.host.cpus, 1) for block in data.blocks],
        n=round(data.seconds),
        of="seconds",
    )


def _raised(data: Data) -> list[Table]:
    rows = []
    for at, name in enumerate(SOFTIRQS):
        counts = np.array([block.softirq_latency.row(at) for block in data.blocks])
        if counts.sum():
            p50, p99 = (
                percentile(f"raise_{p}_ns", p, counts, p, of="softirqs") for p in ("p50", "p99")
            )
            rows.append(Row(name, [p50, p99]))
    return [table("softirqs: raise to entry", "vector", rows)] if rows else []


def _wakers(data: Data) -> list[Table]:
    kept = [sum(block.wakers.values()) for block in data.blocks]
    if not sum(kept):
        return []
    rows = [
        Row(
            kind,
            [
                quotient(
                    "waker_ratio",
                    "of the slowest steps",
                    [block.wakers[kind] for block in data.blocks],
                    kept,
                    n=sum(kept),
                    of="kept steps",
                )
            ],
        )
        for kind in WAKERS
        if any(block.wakers[kind] for block in data.blocks)
    ]
    return [table("who woke the slowest steps", "waker", rows)]

"""How much of wake-up-to-run is placement: the remote wake-up and the run queue."""

from __future__ import annotations

from agenttop.report.estimate import percentile, quotient
from agenttop.report.figure_text import said, value
from agenttop.report.model import Answer, Figure, Table
from agenttop.report.question_data import Data
from agenttop.report.questions.cause_figures import each, gained, label_table, lacking, share
from agenttop.report.questions.shared import (
    RUN,
    by_agent,
    main_rows,
    no_steps,
    stage,
    steps,
    tail,
    tail_steps,
    whole,
)
from agenttop.store.snapshot_builder import Named

KEY = "placement"
QUESTION = "How much of the time from wake-up to run is placement?"
#: Rows of those that cost the most.
_WORST = 3


def answer(data: Data) -> Answer:
    """Shares of ipi, idle_exit and queue, in all steps and in the slowest."""
    if (cannot := no_steps(data, KEY, QUESTION)) is not None:
        return cannot
    rows, left_out = main_rows(data)
    made = sum(steps(rows))
    share = _share("placement_ratio", "ipi + queue of wake-up to run", rows)
    slow = quotient(
        "placement_tail_ratio",
        "the same in the slowest steps",
        tail(rows, "ipi", "queue"),
        tail(rows, *RUN),
        n=tail_steps(rows),
        of="slow steps",
    )
    run = quotient(
        "run_mean_ns", "wake-up to run, mean", stage(rows, *RUN), steps(rows), unit="ns", n=made
    )
    figures = [
        share,
        slow,
        run,
        *(
            quotient(f"{name}_mean_ns", f"{name}, mean", stage(rows, name), steps(rows),
                     unit="ns", n=made)
            for name in RUN
        ),
        *(percentile(f"{name}_p99_ns", f"{name}, p99", data.counts(name), "p99") for name in RUN),
        _away(data),
    ]  # fmt: skip
    moved, avoidable = _moved(data), _avoidable(data)
    figures += [*moved, *avoidable]
    unknown = lacking(
        data,
        {
            "avoidable_wait": "whether an allowed CPU was idle while a step waited",
            "ran_meanwhile": "who ran meanwhile",
            "placement": "how often a step came to another CPU",
        },
    )
    text = (
        f"{said(share)} of the {value(run)} from an agent's wake-up to its run is placement:"
        " the remote wake-up (ipi) and the run queue (queue)"
    )
    if slow.value is not None:
        text += f"; in the slowest steps {said(slow)}"
    if avoidable:
        text += (
            f". Avoidable was {said(avoidable[0])}: the wait in {said(avoidable[1])} of steps while"
            " another CPU was idle that the thread may use"
        )
    if moved:
        text += f". {said(moved[0])} of steps came to another CPU than their last"
    return Answer(
        key=KEY,
        question=QUESTION,
        state="partly measured" if unknown else "measured",
        answer=text + ".",
        how="Sums of the stages ipi and queue over those of ipi, idle_exit and queue, of all steps"
        f" of the agents{left_out}; the slowest steps are those above the threshold that the"
        " engine keeps at about the slowest 1 % of each agent. That is an upper limit: a wait for"
        " the CPU counts even when no other CPU was idle. Avoidable is the time that one other"
        " allowed CPU was idle meanwhile (waits of 10 us and more), a lower limit where several"
        " were so in turns.",
        figures=figures,
        tables=[*_ran(data), *_moves(data), *by_agent(data, "by agent", _agent)],
        wholes=[whole("wake-up to run", rows, RUN)],
        missing=" and ".join(unknown) or None,
        instead="--causes avoidable_wait,ran_meanwhile,placement observes them (a live report does"
        " so by itself)."
        if unknown
        else None,
    )


def _moved(data: Data) -> list[Figure]:
    """How often steps came to another CPU than they last ran on."""
    found = gained(data, "placement")
    if found is None:
        return []
    return [
        quotient(
            "moved_ratio",
            "steps that came to another CPU than their last",
            found.had,
            found.steps,
            n=sum(found.steps),
        )
    ]


def _avoidable(data: Data) -> list[Figure]:
    """Waits beside an idle CPU."""
    found = gained(data, "avoidable_wait")
    if found is None:
        return []
    made = sum(found.steps)
    return [
        quotient("avoidable_time_ratio", "avoidable wait of wake-up to run", found.ns,
                 found.stages(*RUN), n=made),
        quotient("avoidable_ratio", "steps with an avoidable wait", found.had, found.steps, n=made),
        quotient("avoidable_mean_ns", "avoidable wait in such a step", found.ns, found.had,
                 unit="ns", n=sum(found.had), missing="no step had one"),
    ]  # fmt: skip


def _ran(data: Data) -> list[Table]:
    """The worst of those who had the CPU while steps waited for it."""
    found = gained(data, "ran_meanwhile")
    if found is None:
        return []
    return label_table(
        "who ran while steps waited",
        "name",
        data.labels("ran_meanwhile")[:_WORST],
        lambda one: [
            quotient("ran_ratio", "of the run-queue wait", one.ns, found.stages("queue"),
                     n=sum(found.steps)),
            share("ran_steps_ratio", one, found.steps),
            each("ran_mean_ns", "in such a step", one, one.ns),
        ],
    )  # fmt: skip


def _moves(data: Data) -> list[Table]:
    found = gained(data, "placement")
    if found is None:
        return []
    return label_table(
        "to another CPU",
        "from and to",
        sorted(data.labels("placement"), key=lambda one: -int(one.steps.sum()))[:_WORST],
        lambda one: [
            share("move_ratio", one, found.steps),
            each("move_queue_ns", "queue", one, one.ns),
            each("move_ipi_ns", "ipi", one, one.sums("ipi_ns")),
            quotient("moved_waiting_ratio", "moved while waiting", one.sums("moved_steps"),
                     one.steps, n=int(one.steps.sum())),
        ],
    )  # fmt: skip


def _share(key: str, name: str, rows: list[Named]) -> Figure:
    made = sum(steps(rows))
    return quotient(key, name, stage(rows, "ipi", "queue"), stage(rows, *RUN), n=made)


def _agent(rows: list[Named], agent: int) -> list[Figure]:
    made = sum(steps(rows))
    return [
        _share("placement_ratio", "placement", rows),
        quotient("ipi_mean_ns", "ipi", stage(rows, "ipi"), steps(rows), unit="ns", n=made),
        quotient("queue_mean_ns", "queue", stage(rows, "queue"), steps(rows), unit="ns", n=made),
        quotient(
            "tail_ratio",
            "in slow steps",
            tail(rows, "ipi", "queue"),
            tail(rows, *RUN),
            n=tail_steps(rows),
            of="slow steps",
        ),
    ]


def _away(data: Data) -> Figure:
    """Steps that resumed on another CPU than the one where the agent resumes most."""
    chosen = data.foreground() or data.agents()
    home: dict[int, int] = {}
    for agent in chosen:
        total: dict[int, int] = {}
        for block in data.blocks:
            for cpu, count in block.cpu_steps.get(agent, {}).items():
                total[cpu] = total.get(cpu, 0) + count
        if total:
            home[agent] = max(total, key=lambda cpu: total[cpu])
    all_steps, away = [], []
    for block in data.blocks:
        mine = [(block.cpu_steps[agent], home[agent]) for agent in home.keys() & block.cpu_steps]
        all_steps.append(sum(sum(cpus.values()) for cpus, _ in mine))
        away.append(all_steps[-1] - sum(cpus[cpu] for cpus, cpu in mine))
    return quotient(
        "away_ratio", "steps off the agent's usual CPU", away, all_steps, n=sum(all_steps)
    )

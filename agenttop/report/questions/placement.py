"""How much of wake-up-to-run is placement: the remote wake-up and the run queue."""

from __future__ import annotations

from agenttop.derive import Named
from agenttop.report.blocks import Data
from agenttop.report.estimate import percentile, quotient
from agenttop.report.model import Answer, Figure
from agenttop.report.questions.common import (
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
from agenttop.report.wording import said, value

KEY = "placement"
QUESTION = "How much of the time from wake-up to run is placement?"


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
    text = (
        f"{said(share)} of the {value(run)} from an agent's wake-up to its run is placement:"
        " the remote wake-up (ipi) and the run queue (queue)"
    )
    if slow.value is not None:
        text += f"; in the slowest steps {said(slow)}"
    return Answer(
        key=KEY,
        question=QUESTION,
        state="measured",
        answer=text + ".",
        how="Sums of the stages ipi and queue over those of ipi, idle_exit and queue, of all steps"
        f" of the agents{left_out}; the slowest steps are those above the threshold that the"
        " engine keeps at about the slowest 1 % of each agent. It is an upper limit: a wait for"
        " the CPU counts even when no other CPU was idle.",
        figures=figures,
        tables=by_agent(data, "by agent", _agent),
        wholes=[whole("wake-up to run", rows, RUN)],
        missing="whether an allowed CPU was idle while a step waited",
        instead="The causes of the stage queue (who ran meanwhile, which CPU was idle) would tell"
        " the avoidable part.",
    )


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

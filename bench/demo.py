"""Three toggles worth showing, each as a trial: what the README's demo script says.

`demote` on the demo, whose CPU hogs stand in the agents' way; `guard` and
`window` on a timer loop alone, whose CPU goes to sleep between its steps.
"""

from __future__ import annotations

import subprocess

from agenttop.commands.trial_run import delay_s, measure
from agenttop.model.options import EngineOptions
from agenttop.model.sample import Cost
from agenttop.trial.plan import Plan
from agenttop.trial.trial import AgentResult
from agenttop.workloads.demo import Demo
from bench.processes import agenttop
from bench.report import Report

BLOCK_S, SETTLE_S = 3.0, 1.0
#: The window's limit that closes HLT on a virtual machine, where 50 us closes nothing.
LOOPS: dict[str, dict[str, dict[str, object]]] = {
    "guard": {},
    "window": {"window": {"limit_us": 5}},
}


def run(report: Report, rounds: int) -> None:
    """Off and on, and the ratio with its interval, as the trial tells them."""
    plan = Plan(("demote",), rounds + 1, BLOCK_S, SETTLE_S, seed=1)
    with Demo(seconds=plan.seconds + 60) as demo:
        background = [f"pid:{pid}" for pid in demo.background]
        result = measure(
            plan,
            EngineOptions(
                agents_file=demo.rules_file(),
                delay_s=delay_s(plan),
                settings={"demote": {"processes": background}},
            ),
        )
    for agent in sorted(result.agents, key=lambda one: one.name):
        _tell(report, f"demote, {agent.name}", agent)
    for policy, settings in LOOPS.items():
        plan = Plan((policy,), rounds + 1, BLOCK_S, SETTLE_S, seed=1)
        loop = subprocess.Popen(
            agenttop("loop", "--source", "timer", "--for", int(plan.seconds) + 60),
            stdout=subprocess.DEVNULL,
        )
        try:
            result = measure(
                plan,
                EngineOptions(
                    agent_patterns=[f"pid:{loop.pid}"], delay_s=delay_s(plan), settings=settings
                ),
            )
        finally:
            loop.kill()
            loop.wait()
        (agent,) = result.agents
        _tell(report, f"{policy}, timer loop of 1 ms", agent)
        _idle(report, policy, result.cost)


def _tell(report: Report, name: str, agent: AgentResult) -> None:
    for percentile in ("p50", "p99"):
        one = agent.measures["slowpath"][percentile]
        if one.before_ns is None or one.after_ns is None or one.ratio is None:
            continue
        note = f"{one.verdict}; {agent.steps_off} steps off, {agent.steps_on} on"
        report.add(f"{name}: slowpath {percentile} off", "us", [one.before_ns / 1000])
        report.add(f"{name}: slowpath {percentile} on", "us", [one.after_ns / 1000])
        values = [one.ratio, one.low or one.ratio, one.high or one.ratio]
        report.add(f"{name}: slowpath {percentile} on over off", "x", values, note=note)


def _idle(report: Report, policy: str, cost: Cost) -> None:
    """What it cost: share of time in idle states deeper than the shallowest, per CPU."""
    for side, cpus in (("off", cost.idle_before), ("on", cost.idle_after)):
        report.add(f"{policy}: deeper idle {side}", "ratio", list(cpus.values()))

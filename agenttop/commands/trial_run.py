"""A trial without a screen: an engine, the schedule in its Samples, the result as text or JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

import msgspec

from agenttop.commands import session as headless
from agenttop.errors import UserError
from agenttop.model.options import EngineOptions
from agenttop.model.sample import Change, Sample
from agenttop.render.effect_text import MEASURES, PERCENTILES, costs, interval, lacking, times
from agenttop.stats.rounds import MIN_ROUNDS
from agenttop.store.store import Store
from agenttop.text.figures import ascii_only, clean, measured
from agenttop.trial.plan import Plan
from agenttop.trial.trial import AgentResult, Result, Trial

#: Samples at least this often, s; and so many of them in a block.
DELAY_S: Final = 1.0
SAMPLES: Final = 3
#: Samples without any agent before that is an error.
PATIENCE: Final = 15
#: Agents told of at most, those with the most steps.
MOST_AGENTS: Final = 16


def delay_s(plan: Plan) -> float:
    """Between Samples, s: several in a block, and one at least in the settling time."""
    return max(min(DELAY_S, plan.block_s / SAMPLES, plan.settle_s), 0.1)


def run(plan: Plan, engine: EngineOptions, as_json: bool) -> int:
    """Make the trial and print it; 0, or 1 when it could not be finished."""
    result = measure(plan, engine)
    if as_json:
        headless.write_out(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    else:
        body = "\n".join(report(result)) + "\n"
        body = body if headless.speaks_unicode() else ascii_only(body)
        headless.write_out(body.encode("utf-8", "replace"))
    return 0 if result.ended is None else 1


def measure(plan: Plan, engine: EngineOptions) -> Result:
    """Run an engine and the trial in it. Raises UserError when it cannot begin.

    Ctrl-C ends it early: what its whole rounds show is told.
    """
    store = Store()
    with headless.Session(engine, store) as session:
        samples = session.samples()
        first = session.ready(samples)
        host = store.host
        if host is not None and "chains" in host.missing:
            raise UserError(f"a trial needs step chains: {host.missing['chains']}")
        trial = Trial(plan, first.policies, session.send)
        _tell(f"{' + '.join(plan.policies)}: about {plan.seconds:.0f} s, seed {plan.seed}")
        try:
            _follow(trial, samples, store)
        except KeyboardInterrupt:
            trial.cancel()
        if trial.ended is not None and not trial.rounds_done:
            raise UserError(f"the trial ended: {trial.ended}")
        snapshot = store.snapshot()
        agents = sorted(snapshot.agents, key=lambda a: -(a.steps or 0)) if snapshot else []
        chosen = {a.id: a.name for a in agents[:MOST_AGENTS] if a.steps}
        return trial.result(chosen, store.host)


def _follow(trial: Trial, samples: Iterator[Sample], store: Store) -> None:
    looked, told = 0, -1
    for sample in samples:
        if not sample.agents and looked < PATIENCE:
            looked += 1
            continue
        if not sample.agents and not trial.rounds_done:
            raise UserError("no agents found: --agent pid:N names one")
        moments = store.history.moments
        trial.take(sample, moments[-1] if moments else None)
        if trial.finished:
            return
        if trial.rounds_done != told:
            told = trial.rounds_done
            _tell(f"round {told + 1} of {trial.plan.rounds}")


def _tell(text: str) -> None:
    """Progress, for a person who waits."""
    print(f"agenttop: {text}", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------- text


def report(result: Result) -> list[str]:
    """The result for people."""
    rounds = f"{result.rounds} rounds"
    if result.rounds < result.rounds_planned:
        rounds += f" of {result.rounds_planned} ({result.ended or 'ended'})"
    lines = [
        f"trial of {' + '.join(result.policies)}: {rounds}, each with {result.block_s:g} s on,"
        f" off and control in random order (seed {result.seed}), {result.settle_s:g} s settling"
    ]
    if not result.agents:
        lines.append("no agent made a step")
    for agent in result.agents:
        lines += ["", *_agent(agent, result.rounds)]
    lines.append("")
    lines += [f"{name:<12} {text}" for name, text in costs(result.cost)]
    return lines


def _agent(agent: AgentResult, rounds: int) -> list[str]:
    lines = [
        f"{clean(agent.name, 40)}: {verdict(agent, rounds)}"
        f"  ({agent.steps_off:,} steps off, {agent.steps_on:,} on)",
        f"  {'':<11}{'OFF':>9}{'ON':>9}  {'CHANGE':<14}{'95 %':<12}{'VERDICT':<15}CONTROL",
    ]
    for measure, short in MEASURES.items():
        for percentile, name in PERCENTILES.items():
            found = agent.measures[measure][percentile]
            start = (
                f"  {short + ' ' + name:<11}"
                f"{measured(found.before_ns):>9}{measured(found.after_ns):>9}  "
            )
            if found.ratio is None:
                lines.append(start + _why_not(found, rounds))
                continue
            control = agent.control[measure][percentile]
            nothing = f"{times(control)} {control.verdict}" if control.ratio else "N/A"
            lines.append(
                f"{start}{times(found):<14}{interval(found):<12}{found.verdict:<15}{nothing}"
            )
    return lines


def verdict(agent: AgentResult, rounds: int) -> str:
    """One word, or why there is none."""
    if rounds < MIN_ROUNDS:
        return f"no verdict from under {MIN_ROUNDS} rounds"
    if agent.verdict == "not enough":
        return "not enough steps"
    return "better and worse" if agent.verdict == "mixed" else agent.verdict


def _why_not(found: Change, rounds: int) -> str:
    return lacking(found) if found.missing_steps else f"N/A with under {MIN_ROUNDS} rounds"

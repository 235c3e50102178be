"""Trials on the screen: one at a time, their results, and what a policy's row tells.

The schedule runs on the Samples that arrive; nothing of a result is worked
out before the end: who looks again and again and stops at the best moment
finds a difference in anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agenttop.model.sample import Command, Effect, Host, PolicyStatus, Sample
from agenttop.model.snapshot import Agent
from agenttop.render.effect_text import Measures, direction, headline, times
from agenttop.store.toggles import History
from agenttop.text.figures import clean
from agenttop.trial.plan import Plan
from agenttop.trial.trial import Result, Trial

_ROLES = {-1: "good", 0: "dim", 1: "alarm"}


@dataclass
class Trials:
    """The trial that runs, and those that were made."""

    running: Trial | None = None
    #: Policy -> its last trial that has whole rounds.
    done: dict[str, Trial] = field(default_factory=dict)
    #: Policies that nobody has switched since their trial: their rows tell of it.
    newest: set[str] = field(default_factory=set)
    _results: dict[tuple[int, int], Result] = field(default_factory=dict)

    def press(
        self,
        policy: PolicyStatus,
        statuses: Sequence[PolicyStatus],
        why_not: str | None,
        send: Callable[[Command], None],
    ) -> tuple[str, str]:
        """Start a trial of a policy, or end the one that runs: a line for the reader, its kind."""
        if text := self.cancel():
            return text, "policy"
        if why_not:
            return why_not, "warning"
        plan = Plan((policy.name,))
        self.running = Trial(plan, statuses, send)
        name = clean(policy.name, 24)
        text = f"trial of {name}: {plan.rounds} rounds, about {plan.seconds:.0f} s, seed"
        return f"{text} {plan.seed}; e or Esc ends it", "policy"

    def take(self, sample: Sample, history: History) -> str | None:
        """Another Sample, which the store has had; a line for the reader when the trial ends."""
        trial = self.running
        if trial is None:
            return None
        trial.take(sample, history.moments[-1] if history.moments else None)
        return self._over(trial) if trial.finished else None

    def cancel(self) -> str | None:
        """Stop the one that runs; a line for the reader, None if none does."""
        trial = self.running
        if trial is None:
            return None
        trial.cancel()
        return self._over(trial)

    def _over(self, trial: Trial) -> str:
        self.running = None
        names = " + ".join(trial.plan.policies)
        if trial.rounds_done:
            self._results.clear()
            for name in trial.plan.policies:
                self.done[name] = trial
                self.newest.add(name)
        if trial.ended is None:
            return f"trial of {names}: done, l tells all of it"
        kept = f", {trial.rounds_done} rounds kept" if trial.rounds_done else ""
        return f"trial of {names}: {trial.ended}{kept}"

    def switched(self, policy: str) -> None:
        """By hand: from now on its row tells of that."""
        self.newest.discard(policy)

    def of(self, policy: str) -> Trial | None:
        """The running trial, if the policy is in it."""
        trial = self.running
        return trial if trial is not None and policy in trial.plan.policies else None

    def result(self, policy: str, agent: Agent | None, host: Host | None) -> Result | None:
        """Of its last trial, for this agent alone (worked out once)."""
        trial = self.done.get(policy)
        if trial is None or agent is None:
            return None
        key = (id(trial), agent.id)
        if key not in self._results:
            if len(self._results) > 64:
                self._results.clear()
            self._results[key] = trial.result({agent.id: agent.name}, host)
        return self._results[key]


def row_text(
    policy: PolicyStatus,
    trials: Trials,
    effect: Effect | None,
    agent: Agent | None,
    host: Host | None,
) -> tuple[str, str]:
    """What a policy's row tells of the selected agent: text and role; empty with nothing known."""
    if trial := trials.of(policy.name):
        left = trial.seconds_left
        return f"trial {trial.progress:.0%}, {left:.0f}s left", "marker"
    measures = shown(policy, trials, effect, agent, host)
    if measures is None:
        return "", ""
    found = headline(measures)
    if found is None:
        tried = policy.name in trials.newest
        return "trial: too few steps or rounds" if tried else "not enough steps yet", "dim"
    return f"{found.name} {times(found.change)}", _ROLES[direction(found.change)]


def shown(
    policy: PolicyStatus,
    trials: Trials,
    effect: Effect | None,
    agent: Agent | None,
    host: Host | None,
) -> Measures | None:
    """The figures that a policy's row tells the first of: of its trial, or of its last toggle."""
    if policy.name in trials.newest:
        result = trials.result(policy.name, agent, host)
        return result.agents[0].measures if result else None
    return effect.measures if effect is not None else None


def refusal(policy: PolicyStatus, host: Host | None, readonly: bool) -> str | None:
    """Why there can be no trial of it, or None."""
    name = clean(policy.name, 24)
    if readonly:
        return f"{name}: no trial, agenttop runs with --readonly"
    if policy.state == "n/a":
        return f"{name}: N/A, {policy.detail}"
    reason = host.missing.get("chains") if host else "no sample yet"
    return f"{name}: a trial needs step chains: {reason}" if reason else None

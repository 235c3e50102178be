"""A trial: a policy on and off in blocks of random order, and what that shows.

Each round has three blocks of the same length in random order: ``on``,
``off``, and ``control``, in which the policy is off too. What differs between
off and control is chance alone, so the A/A control beside the result is made
and judged exactly as the result is. At the start of every block, switched or
not, the settling time is discarded.

The schedule lives where the Samples are read: it sends the engine commands to
switch and nothing else. When it ends, however, the policies are again as they
were before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from agenttop.model.sample import Command, Cost, Host, PolicyStatus, Sample
from agenttop.stats.before_after import Counts
from agenttop.stats.histogram import empty
from agenttop.stats.permutation_test import Compared, Sides, Verdict, compare
from agenttop.store.toggles import COMPARED, Moment, cost, counts
from agenttop.trial.plan import LABELS, Label, Plan

#: A switch that has not come by then never will, ns.
SWITCH_NS: Final = 5_000_000_000
#: Samples are never exactly on time, ns.
GRACE_NS: Final = 100_000_000


class AgentResult(msgspec.Struct):
    """What a trial showed for one agent."""

    agent: int
    name: str
    steps_off: int
    steps_on: int
    #: "better" or "worse" if any figure is and none is the other way; "mixed" if both occur.
    verdict: Verdict | Literal["mixed"]
    #: Measure -> percentile -> off (before) and on (after).
    measures: dict[str, dict[str, Compared]]
    #: The same with the control blocks in the place of those that were on.
    control: dict[str, dict[str, Compared]]
    control_verdict: Verdict | Literal["mixed"]


class Result(msgspec.Struct):
    """A trial's result."""

    policies: list[str]
    seed: int
    #: Whole rounds that were made, of those planned.
    rounds: int
    rounds_planned: int
    block_s: float
    settle_s: float
    order: list[list[str]]
    agents: list[AgentResult]
    cost: Cost
    #: Why it ended early, or None.
    ended: str | None = None


class Trial:
    """One run of a Plan. Give it each Sample after the Store has had it."""

    def __init__(
        self, plan: Plan, statuses: Iterable[PolicyStatus], send: Callable[[Command], None]
    ) -> None:
        """Begins with the next Sample. ``statuses`` are the policies as they are now."""
        self.plan = plan
        self._send = send
        self._blocks = [label for labels in plan.order for label in labels]
        self._before = {s.name: is_on(s) for s in statuses if s.name in plan.policies}
        self._done: list[list[Moment]] = []
        self._current: list[Moment] = []
        self._asked_ns: int | None = None
        #: From when on ticks belong to the block; None until it is switched.
        self._from_ns: int | None = None
        self.finished = False
        #: Why it ended early.
        self.ended: str | None = None

    # ------------------------------------------------------------------ progress

    @property
    def label(self) -> Label | None:
        """What the present block is."""
        return None if self.finished else self._blocks[len(self._done)]

    @property
    def rounds_done(self) -> int:
        return len(self._done) // len(LABELS)

    @property
    def progress(self) -> float:
        """0..1 of the time."""
        length = sum(each.length_ns for each in self._current) / 1e9
        part = min(length / self.plan.block_s, 0.99)
        return 1.0 if self.finished else (len(self._done) + part) / len(self._blocks)

    @property
    def seconds_left(self) -> float:
        return (1 - self.progress) * self.plan.seconds

    # ------------------------------------------------------------------ the schedule

    def take(self, sample: Sample, moment: Moment | None) -> None:
        """Another Sample, and what it added (None: nothing is known of it)."""
        if self.finished:
            return
        statuses = {s.name: s for s in sample.policies if s.name in self.plan.policies}
        if reason := self._trouble(statuses):
            self._end(reason)
            return
        if self._asked_ns is None:
            self._next(sample.t_ns)
            return
        if self._from_ns is None:
            self._switched(statuses, sample.t_ns)
            return
        if any(is_on(status) != self._wanted for status in statuses.values()):
            self._end("somebody else switched the policy")
            return
        if moment is not None and moment.start_ns >= self._from_ns - GRACE_NS:
            self._current.append(moment)
        length = sum(each.length_ns for each in self._current)
        if length < self.plan.block_s * 1e9 - GRACE_NS:
            return
        self._done.append(self._current)
        self._current = []
        if len(self._done) == len(self._blocks):
            self._end(None)
        else:
            self._next(sample.t_ns)

    def cancel(self) -> None:
        """End it now; the rounds that are whole stay."""
        if not self.finished:
            self._end("cancelled")

    @property
    def _wanted(self) -> bool:
        return self.label == "on"

    def _trouble(self, statuses: Mapping[str, PolicyStatus]) -> str | None:
        for name in self.plan.policies:
            status = statuses.get(name)
            if status is None:
                return f"the engine has no policy {name}"
            if status.state in ("n/a", "error"):
                return f"{name}: {status.detail or status.state}"
        return None

    def _next(self, now_ns: int) -> None:
        """Ask for what the next block needs."""
        self._asked_ns, self._from_ns = now_ns, None
        wanted = self._wanted
        # Off in reverse order, as everything is undone.
        for name in self.plan.policies if wanted else reversed(self.plan.policies):
            self._send(Command("policy", name=name, on=wanted, trial=True))

    def _switched(self, statuses: Mapping[str, PolicyStatus], now_ns: int) -> None:
        """Is everything as asked? Then the settling time runs from the switch."""
        assert self._asked_ns is not None
        if any(is_on(status) != self._wanted for status in statuses.values()):
            if now_ns - self._asked_ns > SWITCH_NS:
                self._end(f"the policy did not go {'on' if self._wanted else 'off'}")
            return
        switched = [s.since_ns for s in statuses.values() if s.since_ns is not None]
        since = max([self._asked_ns, *switched])
        self._from_ns = since + int(self.plan.settle_s * 1e9)

    def _end(self, reason: str | None) -> None:
        self.finished, self.ended = True, reason
        for name, on in self._before.items():
            self._send(Command("policy", name=name, on=on, trial=True))

    # ------------------------------------------------------------------ the result

    def result(self, agents: Mapping[int, str], host: Host | None) -> Result:
        """What the whole rounds show for these agents (id -> name), judged together."""
        rounds = self.rounds_done
        sides = self.by_label(rounds)
        off, on, control = (
            {agent: _blocks(sides[label], agent) for agent in agents}
            for label in ("off", "on", "control")
        )
        found = _compare(off, on)
        nothing = _compare(off, control)
        made = [
            AgentResult(
                agent=agent,
                name=name,
                steps_off=int(off[agent]["step"].sum()),
                steps_on=int(on[agent]["step"].sum()),
                verdict=overall(found[agent]),
                measures=found[agent],
                control=nothing[agent],
                control_verdict=overall(nothing[agent]),
            )
            for agent, name in agents.items()
        ]
        flat = {label: [m for block in blocks for m in block] for label, blocks in sides.items()}
        return Result(
            policies=list(self.plan.policies),
            seed=self.plan.seed,
            rounds=rounds,
            rounds_planned=self.plan.rounds,
            block_s=self.plan.block_s,
            settle_s=self.plan.settle_s,
            order=[list(labels) for labels in self.plan.order[:rounds]],
            agents=made,
            cost=cost(flat["off"] + flat["control"], flat["on"], host, agents),
            ended=self.ended,
        )

    def by_label(self, rounds: int) -> dict[Label, list[list[Moment]]]:
        """Each label's blocks, in the order of the rounds."""
        out: dict[Label, list[list[Moment]]] = {label: [] for label in LABELS}
        done = zip(self._blocks, self._done, strict=False)
        for label, block in list(done)[: rounds * len(LABELS)]:
            out[label].append(block)
        return out


def is_on(status: PolicyStatus) -> bool:
    """Does it hold (drifted or not)?"""
    return status.state in ("on", "drift")


def _blocks(blocks: Sequence[Sequence[Moment]], agent: int) -> dict[str, Counts]:
    """Measure -> one merged histogram for each block."""
    out = {name: empty(len(blocks)).astype("int64") for name in COMPARED}
    for at, block in enumerate(blocks):
        for name, found in counts(block, agent).items():
            out[name][at] = found.sum(axis=0)
    return out


def _compare(
    off: Mapping[int, Mapping[str, Counts]], on: Mapping[int, Mapping[str, Counts]]
) -> dict[int, dict[str, dict[str, Compared]]]:
    found = compare(
        {
            (agent, name): Sides(off=off[agent][name], on=on[agent][name])
            for agent in off
            for name in COMPARED
        }
    )
    return {agent: {name: found[agent, name] for name in COMPARED} for agent in off}


def overall(measures: Mapping[str, Mapping[str, Compared]]) -> Verdict | Literal["mixed"]:
    """One word for an agent."""
    words = {found.verdict for one in measures.values() for found in one.values()}
    if {"better", "worse"} <= words:
        return "mixed"
    for word in ("better", "worse", "no difference"):
        if word in words:
            return word
    return "not enough"

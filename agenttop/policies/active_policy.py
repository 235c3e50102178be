"""A policy beside what it holds, and how both are told to the reader."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Literal

from agenttop.model.sample import Event, PolicyStatus
from agenttop.policies.base import Acting, Change, Key, Policy, Settings, Targets
from agenttop.policies.builtin.window import DURING, Window
from agenttop.policies.guardian import machine
from agenttop.policies.guardian.outcome import words
from agenttop.policies.guardian.undo import THREAD_KINDS
from agenttop.policies.knobs import KNOBS, change_line
from agenttop.policies.knobs.base import KnobError, cpu_set, split_thread

EventKind = Literal["policy", "agent", "info", "warning", "error"]


class PlanError(Exception):
    """One policy could not be planned; the text is the reason. The others can."""


class Entry:
    """One policy of the manager's; only the manager changes it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        #: Why it cannot be had, None if it can.
        self.reason = self.probe()
        self.on = False
        self.since_ns: int | None = None
        #: Its last toggle was a trial's.
        self.by_trial = False
        self.error = ""
        #: Why it is off although somebody had switched it on.
        self.note = ""
        #: Knob -> its first value and ours.
        self.held: dict[Key, Change] = {}
        self.lines: dict[Key, str] = {}
        #: Knobs that somebody else has set since, or that cannot be written: left alone.
        self.drifted: dict[Key, str] = {}
        self.refused: dict[Key, str] = {}

    @property
    def window(self) -> Window | None:
        """The policy, if its knobs follow the kernel's windows."""
        return self.policy if isinstance(self.policy, Window) else None

    def shares(self, other: Entry) -> str | None:
        """What both policies would set whatever their values are just now; None if nothing is."""
        for one, two in ((self, other), (other, self)):
            if one.window and (what := one.window.apart.get(two.policy.name)):
                return what
        return None

    @property
    def during(self) -> str:
        """When its changes hold, if not all the time that it is on."""
        return DURING if self.window else ""

    # ----------------------------------------------------------------- what it would do

    # A policy reads /sys and /proc, whose content anybody may have shaped or removed: whatever
    # it meets there fails this policy alone.

    def probe(self) -> str | None:
        """Why the policy cannot be had, None if it can."""
        try:
            self.reason = self.policy.probe() or machine.refusal()
        except Exception as error:
            self.reason = f"cannot be tried here: {reason_of(error)}"
        return self.reason

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        """What the policy wants. Raises PlanError."""
        try:
            return self.policy.wanted(targets, held)
        except Exception as error:
            raise PlanError(f"cannot be planned: {reason_of(error)}") from error

    def act(self, targets: Targets) -> None:
        """Have the policy do what is no setting. Raises PlanError."""
        if isinstance(self.policy, Acting):
            try:
                self.policy.act(targets)
            except Exception as error:
                raise PlanError(f"cannot act: {reason_of(error)}") from error

    def detail(self) -> str:
        """One line on what holds."""
        try:
            return self.policy.detail()
        except Exception as error:
            return f"cannot be described: {reason_of(error)}"

    # ----------------------------------------------------------------- what it holds

    def hold(self, change: Change) -> None:
        """A knob was written."""
        first = self.held.get(change.key)
        self.held[change.key] = change._replace(before=first.before) if first else change
        self.lines[change.key] = change_line(self.held[change.key]) + self.during

    def drop(self, key: Key) -> None:
        """A knob is no longer held."""
        self.held.pop(key, None)
        self.lines.pop(key, None)

    def now(self, change: Change, thorough: bool) -> str | None:
        """What a held knob is instead of ours, "" if it has gone; as Knob.drift."""
        knob = KNOBS[change.kind]
        try:
            now = knob.drift(change.target, change.after, thorough)
            if now is None and self.window and self.window.foreign(change.key):
                now = knob.read(change.target)
        except Exception:
            return None  # Its CPU may be on its way out: the next look tells.
        # As it was found: no window is open.
        return None if now and self.window and knob.same(now, change.before) else now

    def drift(self, key: Key, now: str) -> Event:
        """Somebody else has set a knob that is held: left alone from now on."""
        self.drifted[key] = drifted(key, self.held[key].after, now)
        return event("warning", f"{self.policy.name} drifted: {self.drifted[key]}")

    def switched(self, on: bool) -> None:
        """It is on or off from now on."""
        self.on, self.since_ns, self.by_trial = on, time.monotonic_ns(), False

    def clear(self) -> None:
        """Nothing is held any more, nor left alone; no plan has failed."""
        self.error = ""
        for things in (self.held, self.lines, self.drifted, self.refused):
            things.clear()

    # ----------------------------------------------------------------- as it is told

    def status(self) -> PolicyStatus:
        """As the Samples have it."""
        policy = self.policy
        status = PolicyStatus(policy.name, policy.key, policy.title, "off", self.note)
        status.since_ns, status.by_trial = self.since_ns, self.by_trial
        if self.on:
            self._holds(status)
        if self.error:
            status.state, status.detail = "error", self.error
        elif not self.on and self.reason:
            status.state, status.detail = "n/a", self.reason
        return status

    def _holds(self, status: PolicyStatus) -> None:
        status.state = "drift" if self.drifted else "on"
        parts = [*list(self.drifted.values())[:3], self.detail()]
        if len(self.drifted) > 3:
            parts.insert(3, f"{len(self.drifted) - 3} more changed by others")
        if self.refused:
            parts.append(f"{len(self.refused)} cannot be set: {refusals(self.refused)}")
        status.detail = "; ".join(parts)
        status.changes = list(self.lines.values())
        status.tids = sorted({split_thread(t)[1] for k, t in self.held if k in THREAD_KINDS})
        status.cpus = sorted(_cpus(self.held))
        status.agents = {str(agent): word for agent, word in self.policy.agents().items()}
        if self.window:
            status.budgets = self.window.budgets(time.monotonic_ns())
            status.armed = self.window.armed(time.monotonic_ns())


def event(kind: EventKind, text: str) -> Event:
    """Something to tell, of now."""
    return Event(time.monotonic_ns(), kind, text)


def reason_of(error: Exception) -> str:
    """An exception in one line, with its kind where its text alone would say little."""
    known = isinstance(error, OSError | KnobError)
    return words(error) if known else f"{type(error).__name__}: {words(error)}"


def drifted(key: Key, ours: str, now: str) -> str:
    """A knob that somebody else has set since, in words."""
    label = KNOBS[key[0]].label(key[1])
    return f"{label}: now {now}, set by somebody else ({ours} was ours)"


def refusals(refused: Mapping[Key, str]) -> str:
    """Knobs that cannot be set, named, the reason once for those that share it."""
    by_reason: dict[str, list[str]] = {}
    for (kind, target), why in refused.items():
        by_reason.setdefault(why, []).append(KNOBS[kind].label(target))
    texts = []
    for why, labels in by_reason.items():
        more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
        texts.append(f"{', '.join(labels[:3])}{more} ({why})")
    return "; ".join(texts[:3])


def _cpus(held: Iterable[Key]) -> set[int]:
    cpus: set[int] = set()
    for kind, target in held:
        if kind == "pm_qos":
            cpus.add(int(target[3:]))
        elif kind == "cpu_latency":
            cpus |= cpu_set("online")
    return cpus

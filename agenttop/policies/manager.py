"""The engine's policies: switched on and off, kept up to date, watched, always given back.

Nothing exists while no policy is on: no guardian, no lock, no file. With the
first one a lease begins (lease.py). ``tick`` must be called at least every
second while one is on: it renews the lease, and without renewal for 1.5 s the
guardian takes everything back.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from agenttop.errors import UserError
from agenttop.linux import paths
from agenttop.linux.slices import Job, Jobs
from agenttop.model.sample import Event, PolicyStatus
from agenttop.policies import catalog
from agenttop.policies.active_policy import Entry, PlanError, event, reason_of, refusals
from agenttop.policies.base import Change, Key, Looking, Settings, Targets
from agenttop.policies.guardian import lock, machine
from agenttop.policies.guardian.journal import NAME as JOURNAL
from agenttop.policies.guardian.journal import JournalError
from agenttop.policies.guardian.lease import Lease, LeaseLostError, Notice, Result, kept
from agenttop.policies.guardian.lock import LockedError
from agenttop.policies.guardian.outcome import words
from agenttop.policies.guardian.undo import THREAD_KINDS, Outcome
from agenttop.policies.knobs import KNOBS, change_line
from agenttop.policies.knobs.base import split_thread

if TYPE_CHECKING:
    from agenttop.collectors.bpf.read.windows import Windows

#: How often settings are reconsidered, and checked for drift, ns.
PLAN_NS: Final = 1_000_000_000
DRIFT_NS: Final = 1_000_000_000
#: Every so many checks for drift also make sure that threads are still the same ones.
THOROUGH: Final = 8
#: How often an unavailable policy is probed again, ns.
PROBE_NS: Final = 10_000_000_000

_HELD_BY: Final = "held by policy"


class PolicyManager:
    """See the module.

    ``readonly``: policies can be planned but not switched, and nothing is repaired.
    ``verbose``: one event for each knob, not only one for all.
    """

    def __init__(
        self,
        state_dir: str | os.PathLike[str] | None = None,
        readonly: bool = False,
        settings: catalog.Settings | None = None,
        verbose: bool = False,
    ) -> None:
        self._state_dir = str(state_dir or paths.state())
        self._readonly = readonly
        self._verbose = verbose
        self._entries: dict[str, Entry] = {}
        for policy in catalog.make_all(settings):
            self._entries[policy.name] = Entry(policy)
        self._lease: Lease | None = None
        self._looked_back = False
        self._checks = 0
        #: The check for drift that is under way: a slice at each tick, however much is held.
        self._checking = Jobs(self._check_failed)
        self._check_failure: type[Exception] | None = None
        self._found: list[Event] = []
        self._probed_ns = self._planned_ns = self._checked_ns = time.monotonic_ns()
        self._attached: tuple[Windows | None, str] | None = None

    def attach(self, windows: Windows | None, reason: str = "") -> None:
        """The kernel side of the latency windows, or why there is none."""
        self._attached = (windows, reason)
        for entry in self._entries.values():
            if entry.window:
                entry.window.attach(windows, reason)
                entry.probe()

    def configure(self, name: str, params: Mapping[str, object]) -> None:
        """Other parameters for a policy that is off. Raises UserError, also for one that is on."""
        entry = self._entry(name)
        if entry.on:
            raise UserError(f"{name}: is on, its parameters stay as they are")
        entry.policy = catalog.POLICIES[name].make(catalog.params(name, params))
        if entry.window and self._attached:
            entry.window.attach(*self._attached)
        entry.probe()

    @property
    def names(self) -> list[str]:
        """The policies there are."""
        return list(self._entries)

    @property
    def guardian(self) -> int | None:
        """Process id of the guardian; None while no policy is on."""
        return self._lease.guardian if self._lease else None

    @property
    def held_by(self) -> int | None:
        """Process of another agenttop that holds policies (0: not known which); None: nobody."""
        if self._lease is not None:
            return None
        try:
            owner = lock.owner(self._state_dir)
        except (JournalError, OSError):
            return None  # Not ours to look into: then nobody here can hold any.
        return None if owner is None else owner.pid or owner.guardian

    def fds(self) -> list[int]:
        """Descriptors that become readable when news() should be called at once."""
        return self._lease.fds() if self._lease else []

    # ----------------------------------------------------------------- looking

    def status(self) -> list[PolicyStatus]:
        """Every policy, whether it can be had or not."""
        now = time.monotonic_ns()
        if now - self._probed_ns > PROBE_NS:
            self._probed_ns = now
            for entry in self._entries.values():
                if not entry.on:
                    entry.probe()
        return [entry.status() for entry in self._entries.values()]

    def reason(self, name: str) -> str | None:
        """Why a policy cannot be had, None if it can. Raises UserError for a name that is none."""
        return self._entry(name).probe()

    def is_on(self, name: str) -> bool:
        """Raises UserError for a name that is none."""
        return self._entry(name).on

    def look(self, name: str) -> Job | None:
        """What a policy reads before it is planned or switched on, in pieces; None: nothing."""
        entry = self._entries.get(name)
        policy = entry.policy if entry is not None else None
        return policy.look() if isinstance(policy, Looking) else None

    @property
    def on(self) -> list[str]:
        """The policies that are on."""
        return [name for name, entry in self._entries.items() if entry.on]

    def detail(self, name: str) -> str:
        """What a policy holds or, after plan(), would hold."""
        return self._entry(name).detail()

    def plan(self, name: str, targets: Targets) -> list[Change]:
        """What switching it on would change now. Raises UserError if it cannot be had."""
        entry = self._entry(name)
        if entry.on:
            return list(entry.held.values())
        if reason := entry.probe():
            raise UserError(f"{name}: {reason}")
        entry.policy.reset()
        try:
            changes, _, _ = self._difference(entry, entry.wanted(targets, {}))
        except PlanError as error:
            raise UserError(f"{name}: {error}") from None
        return changes

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(self._entries)
            raise UserError(f"no policy '{name[:40]}': there are {known}") from None

    # ----------------------------------------------------------------- switching

    def set(self, name: str, on: bool, targets: Targets, trial: bool = False) -> list[Event]:
        """Switch a policy (``trial``: for a trial); what happened.

        Raises UserError for a name that is none.
        """
        entry = self._entry(name)
        entry.error = entry.note = ""
        if on == entry.on:
            return []
        try:
            events = self._switch_on(entry, targets) if on else self._switch_off(entry)
        except LeaseLostError as lost:
            return self._noticed(lost.notice)
        if entry.on == on:
            entry.by_trial = trial
        return events

    def _switch_on(self, entry: Entry, targets: Targets) -> list[Event]:
        policy = entry.policy
        if self._readonly:
            return [event("warning", f"{policy.name}: read-only mode")]
        if reason := entry.probe():
            return [event("warning", f"{policy.name}: {reason}")]
        policy.reset()
        try:
            conflict = self._conflict(entry, entry.wanted(targets, {}))
        except PlanError as error:
            conflict = str(error)
        if conflict:
            entry.error = conflict
            return [event("error", f"{policy.name}: {conflict}")]
        events: list[Event] = []
        if self._lease is None:
            try:
                self._lease = Lease(self._state_dir)
            except (LockedError, JournalError, OSError) as error:
                entry.error = str(error)
                return [event("error", f"{policy.name}: {error}")]
            events += self._repaired(self._lease.recovered)
            if passing := machine.passing(self._state_dir):
                events.append(event("warning", passing))
            now = time.monotonic_ns()
            self._looked_back, self._planned_ns, self._checked_ns = True, now, now
        policy.reset()
        entry.clear()
        lines = []
        try:
            lines = self._reconcile(entry, targets)
            if entry.refused and not entry.held:
                entry.error = f"cannot be set: {refusals(entry.refused)}"
        except PlanError as error:
            entry.error = str(error)
        if entry.error:
            if entry.window:
                entry.window.stop()
            self._end_if_idle()
            return [*events, event("error", f"{policy.name}: {entry.error}")]
        entry.switched(True)
        events.append(event("policy", f"{policy.name} on: {entry.detail()}"))
        return events + lines

    def _owner(self, key: Key, entry: Entry) -> str | None:
        """The other policy that holds this knob."""
        others = (other for other in self._entries.values() if other is not entry and other.on)
        return next((other.policy.name for other in others if key in other.held), None)

    def _conflict(self, entry: Entry, wanted: Settings) -> str | None:
        """Why a policy cannot be on beside those that are: they share a knob."""
        for other in self._entries.values():
            both = (KNOBS[kind].label(to) for kind, to in wanted if (kind, to) in other.held)
            if other.on and (what := entry.shares(other) or next(both, None)):
                owner = other.policy.name
                return f"{owner} and {entry.policy.name} both set {what}: switch {owner} off first"
        return None

    def _switch_off(self, entry: Entry) -> list[Event]:
        outcomes = self._give_back(entry, list(reversed(entry.held)))
        if entry.window:
            entry.window.stop()
        entry.switched(False)
        left_alone = list(entry.drifted.values())
        entry.clear()
        for other in self._entries.values():
            # What it had kept others from can be had again.
            told = f"{_HELD_BY} {entry.policy.name}"
            other.refused = {key: why for key, why in other.refused.items() if why != told}
        self._end_if_idle()
        text = _summary(f"{entry.policy.name} off", outcomes)
        return [
            event("policy", text),
            *self._lines(outcomes),
            *(event("warning", f"{line}: left as it is") for line in left_alone),
        ]

    def close(self) -> list[Event]:
        """Give everything back and end the guardian; the manager can be used again."""
        if self._lease is None:
            return []
        lease, self._lease = self._lease, None
        outcomes = lease.close()
        names = [name for name, entry in self._entries.items() if entry.on]
        left_alone = [line for e in self._entries.values() for line in e.drifted.values()]
        for name in names:
            self._now_off(self._entries[name], "")
        return [
            event("policy", _summary(f"{', '.join(names) or 'policies'} off", outcomes)),
            *self._lines(outcomes),
            *(event("warning", f"{line}: left as it is") for line in left_alone),
        ]

    def keep(self) -> list[Event]:
        """End with everything left applied that can be; ``agenttop restore`` undoes it."""
        if self._lease is None:
            return []
        for entry in self._entries.values():
            if entry.on and entry.window:
                entry.window.stop()
        try:
            outcomes = self._lease.keep()
        except LeaseLostError as lost:
            return self._noticed(lost.notice)
        self._lease = None
        ended = {(outcome.kind, outcome.target) for outcome in outcomes}
        stays: dict[bool, list[str]] = {True: [], False: []}
        for name, entry in self._entries.items():
            if entry.on:
                stays[not entry.held.keys() <= ended].append(name)
                self._now_off(entry, "")
        kept, nothing = ", ".join(stays[True]), ", ".join(stays[False])
        events = [event("policy", _summary(f"{kept} left applied", outcomes))] if kept else []
        if nothing:
            events.append(event("warning", f"{nothing}: nothing of it is left applied"))
        events += self._lines(outcomes)
        return [*events, event("policy", "'agenttop restore' undoes it")] if kept else events

    # ----------------------------------------------------------------- ticking

    def news(self) -> list[Event]:
        """What the guardian has to tell; call it when one of ``fds`` is readable.

        Renews nothing: an answer to a renewal must not bring the next one.
        """
        events: list[Event] = []
        for notice in self._lease.poll() if self._lease else ():
            events += self._noticed(notice)
        return events

    def tick(self, targets: Targets) -> list[Event]:
        """Renew the lease, follow the agents, look for drift. Call it 4 times a second."""
        if self._lease is None:
            return [] if self._looked_back else self._look_back()
        events = self.news()
        if self._lease is None:
            return events
        self._lease.beat()
        now = time.monotonic_ns()
        for entry in self._entries.values():
            if entry.on and entry.window:
                entry.window.figures = self._lease.figures
                events += entry.window.news(now)
        try:
            if self._checking:
                self._checking.run()
            elif now - self._checked_ns >= DRIFT_NS:
                self._checked_ns = now
                self._checking.begin("drift", self._check_drift(), lambda: None)
            events += self._heard()
            if now - self._planned_ns >= PLAN_NS:
                self._planned_ns = now
                events += self._follow(targets)
        except LeaseLostError as lost:
            events += [*self._heard(), *self._noticed(lost.notice)]
        return events

    def _check_failed(self, name: str, error: Exception) -> None:
        if isinstance(error, LeaseLostError):
            raise error
        if self._check_failure is not type(error):
            self._check_failure = type(error)
            self._found.append(event("error", f"the check for drift failed: {reason_of(error)}"))

    def _heard(self) -> list[Event]:
        """What the checks for drift have found since it was asked last."""
        found, self._found = self._found, []
        return found

    def _look_back(self) -> list[Event]:
        """Once, at the start: repair what an earlier agenttop left."""
        self._looked_back = True
        if self._readonly or not os.path.isfile(os.path.join(self._state_dir, JOURNAL)):
            return []
        try:
            if kept(self._state_dir):
                text = "policies are left applied (--keep): 'agenttop restore' undoes them"
                return [event("warning", text)]
            lease = Lease(self._state_dir)
        except LockedError:
            return []  # Its owner lives.
        except (JournalError, OSError) as error:
            return [event("error", str(error))]
        lease.close()
        return self._repaired(lease.recovered)

    def _follow(self, targets: Targets) -> list[Event]:
        assert self._lease is not None
        events: list[Event] = []
        on = [entry for entry in self._entries.values() if entry.on]
        if any(kind in THREAD_KINDS for entry in on for kind, _ in entry.held):
            # Before planning: an inherited home must not be taken for a thread's own CPUs.
            groups = [{*agent.pids, *(t.pid for t in agent.threads)} for agent in targets.agents]
            events += self._lines(self._lease.release_heirs(groups))
        else:
            self._lease.end_record()
        for entry in on:
            before, entry.error = entry.error, ""
            try:
                events += self._reconcile(entry, targets)
                entry.act(targets)
            except PlanError as error:
                # What it holds stays; the next second may read better.
                entry.error = str(error)
                if entry.error != before:
                    events.append(event("error", f"{entry.policy.name}: {error}"))
        return events

    def _reconcile(self, entry: Entry, targets: Targets) -> list[Event]:
        """Write what differs from what the policy wants. Raises LeaseLostError and PlanError."""
        assert self._lease is not None
        held = {key: change.after for key, change in entry.held.items()}
        refused = set(entry.refused)
        wanted = entry.wanted(targets, held)
        changes, dropped, alike = self._difference(entry, wanted)
        events = []
        pids = {split_thread(target)[0] for kind, target in alike if kind in THREAD_KINDS}
        if held and pids and (outcomes := self._lease.release_heirs([pids])):
            # Inherited from a held thread, they are held as well: an heir that outlives
            # its parent would not be found again.
            changes, dropped, _ = self._difference(entry, wanted)
            events += self._lines(outcomes)
        # First what is new, so that a guarded CPU is never without its limit between two knobs.
        for result in self._write(entry, changes):
            change = result.change
            if result.status == "ok":
                entry.hold(change)
                if self._verbose:
                    events.append(event("info", change_line(change) + entry.during))
            elif result.status == "refused":
                entry.refused[change.key] = result.text
            elif result.status == "gone":
                dropped += [change.key] if change.key in entry.held else []
            elif change.key in entry.held:
                events.append(entry.drift(change.key, result.text))
                dropped.append(change.key)
        if entry.window:
            entry.window.start()
        if new := {key: why for key, why in entry.refused.items() if key not in refused}:
            text = f"{entry.policy.name}: {len(new)} cannot be set: {refusals(new)}"
            events.append(event("warning", text))
        return events + self._lines(self._give_back(entry, dropped))

    def _write(self, entry: Entry, changes: list[Change]) -> list[Result]:
        assert self._lease is not None
        window = entry.window
        if window is None or window.kernel is None:
            return self._lease.apply(changes) if changes else []
        if not self._lease.watching:
            self._lease.watch(*window.kernel.wiring)
        return self._lease.follow(changes, [window.cells(c.key) for c in changes])

    def _difference(
        self, entry: Entry, wanted: Settings
    ) -> tuple[list[Change], list[Key], list[Key]]:
        """Changes to make, held knobs that are no longer wanted, and wanted ones not to change."""
        changes, alike = [], []
        for key, value in wanted.items():
            if key in entry.drifted or key in entry.refused:
                continue
            kind, target = key
            knob = KNOBS[kind]
            held = entry.held.get(key)
            if held is None and (owner := self._owner(key, entry)):
                entry.refused[key] = f"{_HELD_BY} {owner}"
                continue
            try:
                current = held.after if held else knob.read(target)
                if current is not None and not knob.same(current, value):
                    changes.append(Change(entry.policy.name, kind, target, current, value))
                elif current is not None and not held:
                    alike.append(key)
            except Exception as error:
                entry.refused[key] = words(error)
        return changes, [key for key in entry.held if key not in wanted], alike

    def _give_back(self, entry: Entry, keys: Sequence[Key]) -> list[Outcome]:
        if not keys or self._lease is None:
            return []
        outcomes = self._lease.undo(keys)
        for key in keys:
            entry.drop(key)
        return outcomes

    def _check_drift(self) -> Generator[None, None, None]:
        """Compare what is held with what is there, knob by knob; events go to ``_found``."""
        self._checks += 1
        thorough = self._checks % THOROUGH == 0
        for entry in self._entries.values():
            lost = []
            for key, change in list(entry.held.items()):
                # Meanwhile it may have been set to another value, or restored.
                if entry.held.get(key) == change:
                    now = entry.now(change, thorough)
                    if now is not None:
                        lost.append(change)
                    if now:
                        self._found.append(entry.drift(key, now))
                yield
            # Takes them out of the journal; what another process has set stays.
            self._give_back(entry, [c.key for c in lost if entry.held.get(c.key) == c])
            for left_alone in (entry.drifted, entry.refused):
                for kind, target in [k for k in left_alone if k[0] in THREAD_KINDS]:
                    with contextlib.suppress(Exception):
                        if KNOBS[kind].drift(target, "") == "":  # The thread has ended.
                            left_alone.pop((kind, target), None)
                    yield

    # ----------------------------------------------------------------- the end of a lease

    def _noticed(self, notice: Notice) -> list[Event]:
        """The guardian, or the lease in its place, undid something unasked."""
        events: list[Event] = []
        outcomes = list(notice.outcomes)
        told = {(outcome.kind, outcome.target) for outcome in outcomes}
        if notice.lost:
            self._lease = None
            names = [name for name, entry in self._entries.items() if entry.on]
        else:
            names = [n for n in self._entries if notice.policy in ("", n) and self._entries[n].on]
        for name in names:
            entry = self._entries[name]
            try:
                # What was written after the guardian had given back and before it was heard.
                left = [key for key in reversed(entry.held) if key not in told]
                outcomes += self._give_back(entry, left)
            except LeaseLostError as lost:
                events += self._noticed(lost.notice)
            self._now_off(entry, f"off: {notice.why}")
        self._end_if_idle()
        text = _summary(f"{', '.join(names) or 'policies'} off, {notice.why}", outcomes)
        return [event("warning", text), *self._lines(outcomes), *events]

    def _now_off(self, entry: Entry, note: str) -> None:
        entry.switched(False)
        entry.note = note
        if entry.window:
            entry.window.stop()
        entry.clear()

    def _end_if_idle(self) -> None:
        if self._lease is not None and not any(entry.on for entry in self._entries.values()):
            lease, self._lease = self._lease, None
            lease.close()

    def _repaired(self, outcomes: list[Outcome] | None) -> list[Event]:
        if outcomes is None:
            return []
        text = _summary("an earlier agenttop had left changes", outcomes)
        return [event("warning", text), *self._lines(outcomes)]

    def _lines(self, outcomes: Iterable[Outcome]) -> list[Event]:
        """Events for what a reader has to know; for everything when verbose."""
        events = []
        for outcome in outcomes:
            if not outcome.settled:
                events.append(event("error", outcome.text))
            elif outcome.foreign:
                events.append(event("warning", outcome.text))
            elif self._verbose:
                events.append(event("info", outcome.text))
        return events


def _summary(text: str, outcomes: Sequence[Outcome]) -> str:
    back = sum(o.settled and not o.foreign for o in outcomes)
    foreign = sum(o.foreign for o in outcomes)
    failed = sum(not o.settled for o in outcomes)
    text += f": {back} restored" if back else ""
    text += f", {foreign} left as somebody else set them" if foreign else ""
    return text + (f", {failed} could not be restored" if failed else "")

"""The engine process: samples, policies, and nothing that draws.

    python -m agenttop.engine FD OPTIONS

FD is one end of a socket pair with framing.py's frames, OPTIONS an
EngineOptions as JSON. It ends, and gives every knob back, when the other end
closes, on SIGTERM and on SIGHUP; a guardian does that for it when it is
killed or stopped.
"""

from __future__ import annotations

import gc
import math
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

import msgspec

from agenttop.agents.rules import Rules
from agenttop.collectors.bpf.causes.loader import CauseLoading
from agenttop.collectors.bpf.load.loader import LoadError, Loading
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.collectors.procfs.host import host
from agenttop.collectors.procfs.own_cpu import SelfCost
from agenttop.engine.agent_registry import Registry
from agenttop.engine.policy_targets import EngineTargets
from agenttop.engine.sampler import Sampler
from agenttop.errors import UserError
from agenttop.linux import descriptors
from agenttop.linux.capabilities import why_no_bpf
from agenttop.linux.process import printable
from agenttop.linux.slices import Jobs
from agenttop.model.options import EngineOptions, causes_of
from agenttop.model.sample import Command, Event, Failure, Host, Level, Mode
from agenttop.policies import bundles
from agenttop.policies.active_policy import reason_of
from agenttop.policies.base import Targets
from agenttop.policies.knobs import change_line
from agenttop.policies.manager import PolicyManager
from agenttop.stream.framing import Decoder, StreamError, encode
from agenttop.stream.outbox import Outbox

#: Process edges are taken in as they come, but not more often than this, s.
EDGES_S: Final = 0.2
#: How often policies are looked after, s.
POLICY_S: Final = 0.25
#: The same while no policy is on: then there is no lease to renew.
IDLE_S: Final = 1.0
#: The Samples just after the programs are loaded come this soon: figures at once, not in a second.
FIRST_S: Final = 0.1
#: A Sample waits so long for the first agents, s: with very many processes it comes without.
FIRST_SCAN_S: Final = 0.3
#: Delay between Samples, s.
DELAYS: Final = (0.1, 3600.0)
#: A Sample that was left out, as the one before had not been read, is tried again so soon, s.
BEHIND_S: Final = 0.1
#: Without a Sample for so long, agents that have ended make room all the same, s.
UNTOLD_S: Final = 1.5
#: CPUs that come later are measured once no other has come for so long, s: the programs are
#: loaded once for all that are plugged in one by one.
SETTLED_S: Final = 5.0
#: Events that wait for it at most, the newest; a view shows as many.
MOST_EVENTS: Final = 200

#: The job that looks for agents.
_SCAN: Final = "agents"
#: Jobs of policies, before their name.
_LOOK: Final = "look for"
#: Among what is missing: files that could not be opened.
_DESCRIPTORS: Final = "descriptors"
_LOADING: Final = "loading the kernel side"


class Engine:
    """One run: from the options to the closed channel."""

    def __init__(
        self,
        options: EngineOptions,
        channel: socket.socket,
        loading: Loading | LoadError | None = None,
    ) -> None:
        """``loading``: the kernel side on its way, if BPF may be used, or why it is not."""
        self._options = options
        self._channel = channel
        self._decoder = Decoder()
        self._outbox = Outbox(channel)
        self._selector = selectors.DefaultSelector()
        self._running = True
        self._delay_s = options.delay_s
        self._cost = SelfCost()
        self._registry = Registry(Rules.load(options.agents_file, options.agent_patterns))
        self._sampler = Sampler(self._registry, self._cost)
        self._policies = PolicyManager(settings=options.settings, readonly=options.readonly)
        self._targets = EngineTargets(self._registry)
        self._jobs = Jobs(self._job_failed)
        #: Jobs that have failed: the kind of the exception, and what was told.
        self._failures: dict[str, tuple[type[Exception], str]] = {}
        #: Policies that have read all processes once.
        self._looked: set[str] = set()
        self._loading = None if isinstance(loading, LoadError) else loading
        self._not_loaded = str(loading) if isinstance(loading, LoadError) else ""
        self._tracer: Tracer | None = None
        self._events: list[Event] = []
        self._host: Host | None = None
        self._missing: dict[str, str] = {}
        #: The causes that are observed (options.causes_of).
        self._causes = options.causes
        self._wanted = list(options.policies)
        self._guardian: int | None = None
        #: When process edges were taken in last, and when they are to be again.
        self._edges_taken = 0.0
        #: When the next Sample is due, and how many come soon.
        self._next_sample, self._soon = time.monotonic(), 0
        self._next_edges = math.inf
        #: When the agents were looked through last.
        self._seen_to = time.monotonic()
        #: CPUs that came later, and were looked at.
        self._known_later: frozenset[int] = frozenset()
        #: Those that there were at the last look, and since when, s.
        self._coming: tuple[frozenset[int], float] = (frozenset(), 0.0)
        #: The policy whose plan somebody looks at.
        self._planned = ""

    def run(self) -> None:
        """Until the channel closes, a stop command or a signal."""
        self._channel.setblocking(False)
        self._selector.register(self._channel, selectors.EVENT_READ, self._commands)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the view's to handle
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        try:
            self._begin()
            self._loop()
        except (BrokenPipeError, ConnectionResetError, StreamError):
            pass  # the view is gone
        finally:
            self._end()

    # ------------------------------------------------------------------ start and end

    def _begin(self) -> None:
        if self._loading is not None:
            self._selector.register(self._loading, selectors.EVENT_READ, self._loaded)
            self._missing["chains"] = _LOADING
        elif self._options.bpf == "off":
            self._without_bpf("asked for without BPF")
        else:
            self._without_bpf(why_no_bpf() or self._not_loaded or "BPF was not loaded")
        self._describe()

    def _without_bpf(self, reason: str) -> None:
        self._missing["chains"] = reason
        self._policies.attach(None, reason)
        self._scan()

    def _scan(self) -> None:
        """Look for agents, in slices: the first time, a Sample tells at once who was found."""
        first = not self._registry.scanned
        if first:
            self._next_sample = time.monotonic() + FIRST_SCAN_S

        def found() -> None:
            if first:
                self._next_sample = time.monotonic()

        self._jobs.begin(_SCAN, self._registry.scanning(), found)

    def _job_failed(self, name: str, error: Exception) -> None:
        """It is begun again when it is due; until then what was known holds."""
        what = name.removeprefix(f"{_LOOK} ")
        what = "looking for agents" if name == _SCAN else f"{what}: looking at the processes"
        text = f"{what} failed: {reason_of(error)}"
        # Once for each kind: the words may name another process each time.
        if self._failures.get(name, (None, ""))[0] is not type(error):
            self._events.append(Event(time.monotonic_ns(), "error", text))
        self._failures[name] = (type(error), text)

    def _loaded(self) -> None:
        loading, self._loading = self._loading, None
        assert loading is not None
        self._selector.unregister(loading)
        try:
            tracer = _tracer(loading)
        except LoadError as error:
            if self._tracer is None:
                self._without_bpf(str(error))
            else:
                self._not_measured(error)
                return
        else:
            measure_cost = self._options.bpf_stats
            if self._tracer is not None:
                measure_cost = self._tracer.cost_measured
                self._detach()
            self._tracer = tracer
            self._missing.pop("chains", None)
            self._sampler.attach(self._tracer)
            self._scan()
            self._next_edges = time.monotonic()
            self._policies.attach(self._tracer.windows)
            self._observe(self._causes)
            self._tracer.measure_cost(measure_cost)
            for name in self._tracer.missing:
                if why := _lost_without(name):
                    self._missing[f"tracepoint {name}"] = why
        self._describe()
        self._soon = 2

    def _detach(self) -> None:
        """End what the programs measured: others take their place.

        Policies go off and come on again with the next Sample. The guardian
        follows the maps of these programs, and what a policy chose holds for
        the CPUs that were there.
        """
        assert self._tracer is not None
        again = [name for name in self._policies.names if self._policies.is_on(name)]
        for name in again:
            self._switch(name, False)
        self._wanted += again
        watched = (self._tracer.edges_fd, self._tracer.causes.loading)
        for fileobj in watched:
            if fileobj is not None and _number(fileobj) in self._selector.get_map():
                self._selector.unregister(fileobj)
        self._tracer.close()
        # What is gained since the last Sample can't be told: the new counters begin at 0.
        self._targets = EngineTargets(self._registry)

    def _not_measured(self, error: LoadError) -> None:
        text = f"CPUs that came later are not measured: {error}"
        self._events.append(Event(time.monotonic_ns(), "error", text))

    def _look_for_cpus(self) -> None:
        """Where CPUs came later, have them measured too: a boundary, as a policy's toggle is."""
        later = self._sampler.later_cpus
        if not later - self._known_later or self._loading is not None:
            return
        now = time.monotonic()
        if self._coming[0] != later:
            self._coming = (later, now)
        if now - self._coming[1] < SETTLED_S:
            return
        self._known_later |= later
        names = ", ".join(str(cpu) for cpu in sorted(later))
        text = f"CPU {names} came online: counters start again with the CPUs that are there now"
        self._events.append(Event(time.monotonic_ns(), "warning", text))
        if self._tracer is None:
            self._sampler.look_again()
            self._describe()
            return
        raw = self._tracer.mode != "tp_btf"
        try:
            self._loading = Loading(self._options.level, raw=raw)
        except LoadError as error:
            self._not_measured(error)
            return
        self._selector.register(self._loading, selectors.EVENT_READ, self._loaded)

    def _observe(self, spec: str) -> None:
        """Causes on and off."""
        self._causes = spec
        if self._tracer is None:
            return
        try:
            self._tracer.causes.want(causes_of(spec))
        except UserError as error:
            self._events.append(Event(time.monotonic_ns(), "error", str(error)))
        self._watch_causes()

    def _watch_causes(self) -> None:
        """Be told when the programs of causes are in the kernel, if they are on their way."""
        loading = self._tracer.causes.loading if self._tracer is not None else None
        if loading is not None and loading.fileno() not in self._selector.get_map():
            self._selector.register(loading, selectors.EVENT_READ, self._causes_loaded)

    def _causes_loaded(self) -> None:
        assert self._tracer is not None
        causes = self._tracer.causes
        if causes.loading is not None:
            self._selector.unregister(causes.loading)
            causes.finish()
        self._next_sample = time.monotonic()

    def _describe(self) -> None:
        mode: Mode = "procfs"
        level: Level = self._options.level
        if self._tracer is not None:
            mode = "tp_btf" if self._tracer.mode == "tp_btf" else "raw_tp"
            level = "full" if self._tracer.level == "full" else "lite"
        banner = None
        reason = self._missing.get("chains")
        if reason == _LOADING:
            banner = "loading the kernel side; CPU figures first"
        elif reason is not None:
            banner = f"no step chains: {reason}"
        self._host = host(
            self._sampler.procfs,
            level=level,
            mode=mode,
            missing=self._missing,
            banner=banner,
            no_power=self._sampler.no_power,
            cpus_every_s=self._sampler.cpus_every_s,
        )

    def _end(self) -> None:
        for event in self._policies.close():
            self._events.append(event)
        if self._loading is not None:
            self._loading.cancel()
        if self._tracer is not None:
            self._tracer.close()

    def _stop(self, *_: object) -> None:
        self._running = False

    # ------------------------------------------------------------------ the loop

    def _loop(self) -> None:
        now = time.monotonic()
        next_policy = now
        while self._running:
            until = min(self._next_sample, self._next_edges, next_policy)
            if self._jobs:
                until = now
            for key, ready in self._selector.select(max(0.0, until - time.monotonic())):
                if ready & selectors.EVENT_READ:
                    key.data()
            now = time.monotonic()
            if now >= self._next_edges:
                self._edges(now)
            if now >= next_policy:
                next_policy = now + (POLICY_S if self._guardian is not None else IDLE_S)
                self._tick_policies()
            if not self._outbox.flushed:
                self._outbox.flush()
            if now >= self._next_sample:
                self._due(now)
            if now - self._seen_to > UNTOLD_S:
                self._seen_to = now
                self._sampler.pass_by()
            self._watch_outbox()
            self._jobs.run()
            if self._loading is None and self._registry.scan_due and _SCAN not in self._jobs:
                self._scan()

    def _due(self, now: float) -> None:
        """The next Sample, if the reader has the one before.

        If not it is left out: the next one holds what both would have held, and is of
        the moment when the reader is back, however long that takes.
        """
        if not self._outbox.taken:
            self._next_sample = now + min(BEHIND_S, self._delay_s)
            del self._events[:-MOST_EVENTS]
            return
        self._next_sample = self._following(now)
        self._sample()

    def _watch_outbox(self) -> None:
        """Be told when there is room for the rest of a frame."""
        wanted = selectors.EVENT_READ | (0 if self._outbox.flushed else selectors.EVENT_WRITE)
        if self._selector.get_key(self._channel).events != wanted:
            self._selector.modify(self._channel, wanted, self._commands)

    def _edges_came(self) -> None:
        assert self._tracer is not None
        if self._tracer.edges_fd not in self._selector.get_map():
            return  # it was of programs that others have just taken the place of
        self._selector.unregister(self._tracer.edges_fd)
        self._next_edges = max(time.monotonic(), self._edges_taken + EDGES_S)

    def _edges(self, now: float) -> None:
        """Take them in, and be told of the next, unless some are left."""
        assert self._tracer is not None
        self._edges_taken = now
        if self._sampler.edges():
            self._next_edges = now + EDGES_S
        else:
            self._next_edges = math.inf
            self._selector.register(self._tracer.edges_fd, selectors.EVENT_READ, self._edges_came)

    def _following(self, now: float) -> float:
        if self._soon:
            self._soon -= 1
            return now + min(FIRST_S, self._delay_s)
        following = self._next_sample + self._delay_s
        return following if following > now else now + self._delay_s

    def _sample(self) -> None:
        self._seen_to = time.monotonic()
        sample = self._sampler.sample()
        if descriptors.noted() and _DESCRIPTORS not in self._missing:
            self._missing[_DESCRIPTORS] = descriptors.lack()
            self._describe()
        self._look_for_cpus()
        self._watch_causes()
        self._targets.update(sample)
        if self._wanted and self._loading is None and self._registry.scanned:
            for name in self._wanted:
                self._switch(name, True)
            self._wanted = []
        sample.policies = self._policies.status()
        sample.policies_held_by = self._policies.held_by
        for policy in sample.policies:
            if policy.name == self._planned and policy.state == "off":
                policy.plan = self._plan(policy.name)
        sample.events, self._events = self._events, []
        sample.host, self._host = self._host, None
        self._outbox.put(sample)

    def _tick_policies(self) -> None:
        on = self._policies.guardian is not None
        # What policies need to know is worked out only while one is on.
        targets = self._targets.current() if on else Targets(time.monotonic_ns())
        self._events += self._policies.tick(targets)
        self._watch_guardian()
        for name in self._policies.on:
            if f"{_LOOK} {name}" not in self._jobs:
                self._look(name, lambda: None)

    def _policy_news(self) -> None:
        self._events += self._policies.news()
        self._watch_guardian()

    def _watch_guardian(self) -> None:
        if self._policies.guardian == self._guardian:
            return
        self._guardian = self._policies.guardian
        if self._guardian is not None:
            self._cost.add(self._guardian)
        for key in list(self._selector.get_map().values()):
            if key.data == self._policy_news:
                self._selector.unregister(key.fileobj)
        for fd in self._policies.fds():
            self._selector.register(fd, selectors.EVENT_READ, self._policy_news)

    # ------------------------------------------------------------------ commands

    def _commands(self) -> None:
        try:
            data = self._channel.recv(1 << 16)
        except BlockingIOError:
            return
        if not data:
            self._running = False
            return
        for message in self._decoder.feed(data):
            if isinstance(message, Command):
                self._obey(message)

    def _obey(self, command: Command) -> None:
        if command.kind == "policy":
            self._switch(command.name, command.on, command.trial)
            self._next_sample = time.monotonic()
        elif command.kind == "bundle":
            self._switch_bundle(command.name, command.on)
            self._next_sample = time.monotonic()
        elif command.kind == "plan":
            self._planned = command.name if command.on else ""
            self._next_sample = time.monotonic()
        elif command.kind == "causes":
            self._observe(command.name)
            self._next_sample = time.monotonic()
        elif command.kind == "bpf_stats" and self._tracer is not None:
            self._tracer.measure_cost(command.on)
        elif command.kind == "delay":
            self._delay_s = min(max(command.seconds, DELAYS[0]), DELAYS[1])
            self._next_sample = time.monotonic() + self._delay_s
        elif command.kind == "full":
            self._sampler.ask_full()
        elif command.kind == "stop":
            self._running = False

    def _look(self, name: str, then: Callable[[], None]) -> None:
        """Have a policy read what it needs, in slices; ``then`` at once if that is nothing."""
        if (job := self._policies.look(name)) is None:
            then()
        else:
            self._jobs.begin(f"{_LOOK} {name}", job, then)

    def _plan(self, name: str) -> list[str]:
        if f"{_LOOK} {name}" not in self._jobs:
            self._look(name, lambda: self._looked.add(name))
        if name not in self._looked:
            failed = self._failures.get(f"{_LOOK} {name}")
            return [failed[1] if failed else "the processes are being read"]
        try:
            changes = self._policies.plan(name, self._targets.current())
        except UserError as error:
            return [str(error)]
        return [change_line(change) for change in changes]

    def _switch_bundle(self, name: str, on: bool) -> None:
        """All policies of a bundle; those that cannot be had are named and left out."""
        try:
            found = bundles.load_all().get(name)
            if found is None:
                raise UserError(f"no bundle '{printable(name, 40)}'")
            own = self._options.settings
            left_out = []
            for policy, given in found.policies.items():
                if on and (reason := self._policies.reason(policy)):
                    left_out.append(f"{policy} ({reason})")
                    continue
                if on and not self._policies.is_on(policy):
                    self._policies.configure(policy, {**given, **own.get(policy, {})})
                self._switch(policy, on)
                if not on:
                    self._policies.configure(policy, own.get(policy, {}))
            if left_out:
                text = f"{name}: left out {', '.join(left_out)}"
                self._events.append(Event(time.monotonic_ns(), "warning", text))
        except UserError as error:
            self._events.append(Event(time.monotonic_ns(), "error", str(error)))

    def _switch(self, name: str, on: bool, trial: bool = False) -> None:
        self._failures.pop(f"{_LOOK} {name}", None)
        if on:
            self._look(name, lambda: self._switch_now(name, True, trial))
        else:
            self._jobs.drop(f"{_LOOK} {name}")
            self._switch_now(name, on, trial)

    def _switch_now(self, name: str, on: bool, trial: bool) -> None:
        self._looked.add(name)
        self._sampler.ask_cpus()
        if self._jobs.running:  # What was asked for a while ago is so now.
            self._next_sample = time.monotonic()
        try:
            self._events += self._policies.set(name, on, self._targets.current(), trial)
        except UserError as error:
            self._events.append(Event(time.monotonic_ns(), "error", str(error)))
        self._tick_policies()


def _tracer(loading: Loading) -> Tracer:
    """What was loaded. Raises LoadError, also where memory or descriptors lack for its maps."""
    try:
        return Tracer(loading.result())
    except OSError as error:
        said = f"the maps cannot be read: {error.strerror or error}"
        raise LoadError(descriptors.why(error, said)) from None


def _number(fileobj: int | Loading | CauseLoading) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def _lost_without(tracepoint: str) -> str | None:
    from agenttop.collectors.bpf.load.source import LOSS_WITHOUT

    return LOSS_WITHOUT.get(tracepoint)


def spare_collections() -> None:
    """Few searches for cycles: there are none that grow, and a whole search takes some 50 ms.

    One among the youngest takes 5 ms at most: it may fall into a slice of a job (slices.py).
    """
    gc.freeze()
    gc.set_threshold(25_000, 40, 100)


def main(channel: socket.socket, options: str, loading: Loading | LoadError | None) -> int:
    """Run until the end; a mistake of the user crosses the channel as a Failure."""
    spare_collections()
    try:
        given = msgspec.json.decode(options, type=EngineOptions)
        Engine(given, channel, loading).run()
    except UserError as error:
        if isinstance(loading, Loading):
            loading.cancel()
        channel.setblocking(True)
        channel.sendall(encode(Failure(str(error))))
        return 2
    return 0

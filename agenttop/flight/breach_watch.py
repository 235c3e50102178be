"""``--on-breach``: when an agent's percentile breaches a limit, its last seconds go to a file.

The last Samples, with the steps that were kept whole, lie ready in memory; a
breach writes them as a recording (agenttop replay, report, trace --from). How
often, how many and how large is bounded, and no file is ever overwritten.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import msgspec

from agenttop.config import output_file
from agenttop.errors import UserError
from agenttop.flight.breach_condition import Condition, parse
from agenttop.linux import paths
from agenttop.model.sample import Command, Event, Host, Sample
from agenttop.model.snapshot import Agent, Snapshot
from agenttop.stream.recording import Writer
from agenttop.text.figures import clean, duration, measured

#: Seconds kept before a breach.
KEEP_S: Final = 30.0
#: What lies ready takes no more memory than this, and so no dump is larger.
MOST_BYTES: Final = 64 << 20
#: Dumps in a directory, those of earlier runs too.
MOST_DUMPS: Final = 50
#: After a dump there is none for the same user's agents for this long: the next one would mostly
#: hold the same.
APART_NS: Final = 10_000_000_000
SUFFIX: Final = ".rec"
_PREFIX: Final = "breach-"


@dataclass(frozen=True)
class Breach:
    """What the command line asks for."""

    conditions: tuple[Condition, ...]
    keep_s: float
    directory: Path

    @classmethod
    def of(cls, args: argparse.Namespace) -> Breach | None:
        """None when nothing was asked for. Raises UserError, also for a directory of no use."""
        texts: list[str] = getattr(args, "on_breach", None) or []
        if not texts:
            return None
        conditions = tuple(dict.fromkeys(map(parse, texts)))
        if args.breach_dir == "":
            raise UserError("--breach-dir '': the name of a directory is wanted")
        state = paths.user_state()
        if not args.breach_dir and state is None:
            raise UserError("--on-breach: you have no home directory: say --breach-dir DIR")
        directory = Path(args.breach_dir) if args.breach_dir else (state or Path()) / "breaches"
        check(directory)
        return cls(conditions, args.breach_keep, directory)


def check(directory: Path) -> None:
    """Make the directory if need be. Raises UserError when nothing can be written there."""
    try:
        with output_file.folder(directory, make=True) as fd:
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=fd):
                raise PermissionError(13, os.strerror(13))
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"--breach-dir {clean(str(directory))}: {why}") from None


@dataclass
class _Segment:
    """Samples from a full one on: what is needed to understand each of them."""

    t_ns: int
    bodies: list[bytes] = field(default_factory=list)
    size: int = 0


class Ring:
    """The last Samples, packed. Begins with a full one whenever it is read."""

    def __init__(self, keep_s: float, most_bytes: int = MOST_BYTES) -> None:
        self._keep_ns = int(keep_s * 1e9)
        self._most = most_bytes
        self._segments: deque[_Segment] = deque()
        self._host: Host | None = None
        self._seq = -1
        self._t_ns = 0
        self._asked = False

    @property
    def size(self) -> int:
        """Bytes of what lies ready."""
        return sum(segment.size for segment in self._segments)

    def add(self, sample: Sample) -> bool:
        """Take in the next Sample; True when a full one should be asked for now."""
        if sample.seq <= self._seq or sample.t_ns <= self._t_ns:
            self._segments.clear()  # the engine began anew
        self._seq, self._t_ns = sample.seq, sample.t_ns
        self._host = sample.host or self._host
        if sample.full:
            self._segments.append(_Segment(sample.t_ns))
            self._asked = False
            # A reader begins here: it needs the host.
            sample = msgspec.structs.replace(sample, host=self._host)
        if not self._segments:
            return self._ask()
        body = msgspec.msgpack.encode(sample)
        newest = self._segments[-1]
        newest.bodies.append(body)
        newest.size += len(body)
        oldest_ns = sample.t_ns - self._keep_ns
        while len(self._segments) > 1 and (
            self._segments[1].t_ns <= oldest_ns or self.size > self._most
        ):
            self._segments.popleft()
        if self.size > self._most:
            self._segments.clear()
            return self._ask()
        return newest.t_ns <= oldest_ns and self._ask()

    def _ask(self) -> bool:
        asked, self._asked = self._asked, True
        return not asked

    def samples(self) -> list[Sample]:
        """What lies ready, oldest first."""
        decoder = msgspec.msgpack.Decoder(Sample)
        return [decoder.decode(body) for segment in self._segments for body in segment.bodies]


class Figures(Protocol):
    """What is asked of a Store."""

    def snapshot(self) -> Snapshot | None: ...


class Watcher:
    """Feed it each Sample after the Store has had it."""

    def __init__(self, breach: Breach, delay_s: float) -> None:
        self._breach = breach
        self._delay_s = delay_s
        self._ring = Ring(breach.keep_s)
        #: Conditions (by place) and agents that are above their limit now.
        self._above: set[tuple[int, int]] = set()
        #: User -> when one of its agents had the last dump.
        self._dumped_ns: dict[int | None, int] = {}

    def take(
        self,
        sample: Sample,
        store: Figures,
        send: Callable[[Command], None],
        snapshot: Snapshot | None = None,
    ) -> list[Event]:
        """What is to be told: breaches that began with this Sample, and where they were written.

        ``snapshot``: the store's of this Sample, if there is one already.
        """
        if self._ring.add(sample):
            send(Command("full"))
        snapshot = snapshot or store.snapshot()
        return [] if snapshot is None else self.judge(snapshot)

    def judge(self, snapshot: Snapshot) -> list[Event]:
        """The breaches that began with this Snapshot."""
        above: set[tuple[int, int]] = set()
        began: list[tuple[Condition, Agent, int]] = []
        for place, condition in enumerate(self._breach.conditions):
            for agent in snapshot.agents:
                value = condition.value_ns(agent)
                if value is None or value <= condition.limit_ns:
                    continue
                above.add((place, agent.id))
                if (place, agent.id) not in self._above:
                    began.append((condition, agent, value))
        self._above = above
        if not began:
            return []
        # One file has the seconds of all: it is booked to the first user who may have one.
        agents = {agent.user: agent for _, agent, _ in reversed(began)}
        refused: dict[int | None, str] = {}
        path = None
        for user, agent in reversed(agents.items()):
            done = self._dump(snapshot.t_ns, agent)
            if isinstance(done, Path):
                path = clean(str(done), 300)
                break
            refused[user] = done
        return [
            Event(
                snapshot.t_ns,
                "warning",
                f"{_told(condition, agent, value)}: {path or refused[agent.user]}",
            )
            for condition, agent, value in began
        ]

    def _dump(self, now_ns: int, agent: Agent) -> Path | str:
        """Write what lies ready; where it is, or why nothing was written.

        A user's agents may have as many files as are left for others; those that root chose
        may have all.
        """
        last = self._dumped_ns.get(agent.user)
        if last is not None and now_ns - last < APART_NS:
            return f"not written, the last {duration(now_ns - last)} are in the file before"
        directory = self._breach.directory
        name = clean(str(directory), 200)
        try:
            there = [
                entry.name
                for entry in os.scandir(directory)
                if entry.name.startswith(_PREFIX) and entry.name.endswith(SUFFIX)
            ]
            if len(there) >= MOST_DUMPS:
                return f"not written, {name} has {len(there)} of them: remove some"
            owner = "" if agent.user is None else f"u{agent.user}-"
            own = sum(_owner(file) == owner for file in there) if owner else 0
            if own >= MOST_DUMPS - len(there) and not agent.chosen:
                return f"not written, {name} has {own} of user {agent.user}'s agents: remove some"
            path = self._write(directory, f"{owner}{agent.name}")
        except OSError as error:
            return f"not written, {name}: {error.strerror}"
        if path is None:
            return "not written, nothing is kept yet"
        self._dumped_ns[agent.user] = now_ns
        return path

    def _write(self, directory: Path, agent: str) -> Path | None:
        samples = self._ring.samples()
        if not samples:
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(samples[-1].wall_s))
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", agent)[:40] or "agent"
        whole = io.BytesIO()
        writer = Writer(whole, self._delay_s)
        for sample in samples:
            writer.add(sample)
        writer.close()
        stem = f"{_PREFIX}{stamp}-{plain}"
        free = output_file.new_group(directory, stem, {SUFFIX: whole.getvalue()}, 0o600)
        return directory / f"{free}{SUFFIX}"


def _owner(file: str) -> str:
    """Whose agents' a dump is, as its name begins behind the date: what follows anybody chose."""
    known = re.fullmatch(rf"{_PREFIX}\d+-\d+-(u\d+-).*", file, re.A | re.S)
    return known[1] if known else ""


def _told(condition: Condition, agent: Agent, value_ns: int) -> str:
    stat = agent.step if condition.measure == "step" else agent.slowpath
    shown = measured(value_ns, f"{condition.figure}_ns" in stat.estimated)
    limit = duration(condition.limit_ns)
    return f"{clean(agent.name, 40)}: {condition.measure} {condition.figure} {shown} > {limit}"

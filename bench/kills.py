"""Kills of engine and guardian at random moments: is everything as before, and how soon?

Each round starts an owner of settings (kills_owner.py: through a lease, on this machine or on
fixture trees for what it lacks, or through all policies; now and then the real engine), kills
or stops it, its guardian or both, and waits until a picture of the machine and of all threads
of the victims is as before. Where both are dead, `agenttop restore` or the next start repairs,
and the time counts from its start.

A round that was killed itself leaves nothing but a journal, which the next run restores. With
--seed a run goes on where it was interrupted.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from agenttop.model.options import EngineOptions
from agenttop.model.sample import Command
from agenttop.policies.guardian import lock
from agenttop.policies.guardian.journal import NAME, JournalError, open_state_dir
from agenttop.policies.guardian.lease import Lease
from agenttop.policies.guardian.undo import recover
from agenttop.policies.knobs import KNOBS, change_line
from agenttop.policies.knobs.base import Change
from agenttop.stream.engine_client import EngineClient
from bench.kills_scene import Scene, signal_all
from bench.processes import agenttop
from bench.report import Report

KILL, STOP, CONT = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
#: Restored within this after a kill and after a stop, s.
GOAL_S: Final = {"kill": 1.0, "stop": 2.0}
#: Kills that must have hit each kind of knob while it was applied.
HITS: Final = 20
#: Waited for at most, s.
PATIENCE_S: Final = 10.0
#: One round in so many is the real engine's; no multiple of the ways, so that each meets it.
ENGINE_EVERY: Final = 37
POLICIES: Final = ("guard", "home", "slice", "vfs", "block", "softirq", "window")

#: What is done to engine (e) and guardian (g) in turn; "." is a pause of up to 50 ms.
WAYS: Final = {
    "engine": ("e KILL",),
    "engine's group": ("E KILL",),
    "guardian": ("g KILL",),
    "engine, guardian": ("e KILL", ".", "g KILL"),
    "guardian, engine": ("g KILL", ".", "e KILL"),
    "both at once": ("g KILL", "e KILL"),
    "engine stopped": ("e STOP",),
    "engine stopped, then killed": ("e STOP", ".", "e KILL"),
    "engine stopped, guardian killed, engine killed": ("e STOP", ".", "g KILL", "e KILL"),
    "guardian stopped": ("g STOP",),
    "guardian stopped, engine killed, guardian goes on": ("g STOP", ".", "e KILL", "g CONT"),
    "guardian stopped, both killed": ("g STOP", ".", "e KILL", "g KILL"),
}
#: The modes of kills_owner.py in turn; the real engine takes the place of one now and then.
MODES: Final = ("lease", "trees", "lease", "policies", "trees", "lease", "trees")


@dataclass
class Round:
    """What became of one."""

    number: int
    mode: str
    way: str
    #: Kinds of knob that were applied as it was killed.
    hit: list[str] = field(default_factory=list)
    #: Until all was as before, s; None: it never was.
    seconds: float | None = None
    #: The same for each kind that was applied.
    kinds: dict[str, float] = field(default_factory=dict)
    #: Whether `agenttop restore` or the next start had to repair.
    repaired: str = ""
    differences: list[str] = field(default_factory=list)

    @property
    def clock(self) -> str:
        """What the time counts from."""
        if self.repaired:
            return self.repaired
        return "stop" if self.way in ("engine stopped", "guardian stopped") else "kill"


class Kills:
    """A run in a folder of its own; ``round`` by number."""

    def __init__(self, folder: Path, seed: str) -> None:
        self._folder = folder
        self._seed = seed
        self.scene = Scene(folder)
        self._only_possible()

    def close(self) -> None:
        """End and repair everything."""
        for state in sorted(self._folder.glob("state-*")):
            _end(str(state))
        self.scene.__exit__(None, None, None)

    def _only_possible(self) -> None:
        """Leave out of the scene's settings those that this machine refuses."""
        lease = Lease(str(self._folder / "state-probe"))
        changes = []
        for kind, target, values in self.scene.settings:
            before = KNOBS[kind].read(target)
            if before is not None:
                changes.append(Change("kills", kind, target, before, values[0]))
        done = lease.apply(changes)
        lease.close()
        self.scene.keep_only({r.change.key for r in done if r.status == "ok"})
        self.kinds = {r.change.kind for r in done if r.status == "ok"} | {*self.scene.thread_kinds}
        self.refused = {change_line(r.change): r.text or r.status for r in done if r.status != "ok"}

    @property
    def all_kinds(self) -> list[str]:
        """Of this machine and of the fixture trees, as in Round.hit."""
        fixtures = {f"{kind} (fixture)" for kind, _, _ in self.scene.trees}
        return sorted(self.kinds) + sorted(fixtures)

    def round(self, number: int) -> Round:
        """Start an owner, kill, and see. The same number and seed make the same choices."""
        chance = random.Random(f"{self._seed}:{number}")
        mode = MODES[number % len(MODES)]
        if number % ENGINE_EVERY == ENGINE_EVERY - 1:
            mode = "engine"
        way = list(WAYS)[number % len(WAYS)]
        done = Round(number, mode, way)
        state = str(self._folder / f"state-{number}")
        if mode == "engine":
            self._with_engine(done, state, chance)
        else:
            owner = self.scene.owner(
                state=state,
                seed=str(chance.random()),
                mode=mode,
                descriptors=1100 if chance.random() < 0.1 else 0,
            )
            if chance.random() < 0.9:
                _until(lambda: os.path.exists(f"{state}/{NAME}"), 5.0)
                time.sleep(chance.random() * 0.06)
            else:
                time.sleep(chance.random() * 0.2)
            self._kill(done, state, owner, chance)
        return done

    def _with_engine(self, done: Round, state: str, chance: random.Random) -> None:
        os.environ["AGENTTOP_STATE"] = state
        try:
            agents = [f"pid:{pid}" for pid in self.scene.agents]
            client = EngineClient(EngineOptions(agent_patterns=agents, delay_s=0.25))
        finally:
            del os.environ["AGENTTOP_STATE"]
        try:
            _until(lambda: bool(client.samples(time.monotonic() + 1)), 10.0)
            for name in POLICIES:
                if chance.random() < 0.8:
                    client.send(Command(kind="policy", name=name, on=True))
            _until(lambda: os.path.exists(f"{state}/{NAME}"), 5.0)
            time.sleep(0.3 + chance.random() * 0.5)
            self._kill(done, state, client.pid, chance)
        finally:
            signal_all([client.pid])
            client.close()

    # ----------------------------------------------------------------- one kill

    def _kill(self, done: Round, state: str, owner: int, chance: random.Random) -> None:
        guardian = _guardian(state)
        done.hit = sorted({kind for kind, _ in self.scene.changed()} - {"policies' files"})
        dead = set()
        for act in WAYS[done.way]:
            if act == ".":
                time.sleep(chance.random() * 0.05)
                continue
            whom, _, name = act.partition(" ")
            number = {"KILL": KILL, "STOP": STOP, "CONT": CONT}[name]
            if whom == "E":
                try:
                    os.killpg(owner, number)
                except ProcessLookupError:
                    signal_all([owner], number)
            else:
                signal_all([owner if whom == "e" else guardian], number)
            if number == KILL:
                dead.add(whom.lower())
        if "e" not in dead and done.mode != "engine":
            signal_all([owner], signal.SIGUSR1)
        # A guardian that is stopped in the middle of a write never ends it.
        if done.mode == "trees" and ("g" in dead or done.way == "guardian stopped"):
            self.scene.whole_files()
        begun = time.monotonic()
        if dead == {"e", "g"}:
            begun = self._repair(done, state, chance)
        self._wait(done, state, begun, {guardian} if "e" not in dead else set())
        if dead != {"e", "g"}:
            # Whoever restores has still to look for heirs born meanwhile, and to say so.
            _until(lambda: not os.path.exists(f"{state}/{NAME}"), PATIENCE_S)
        signal_all([owner])
        if guardian:
            signal_all([guardian], CONT)
        self._compare(done, state)

    def _repair(self, done: Round, state: str, chance: random.Random) -> float:
        """What follows when both are dead."""
        _until(lambda: _owner(state) is None, PATIENCE_S)
        begun = time.monotonic()
        if not os.path.exists(f"{state}/{NAME}"):
            return begun
        if chance.random() < 0.3:
            done.repaired = "agenttop restore"
            environment = {**os.environ, "AGENTTOP_STATE": state}
            if done.mode == "trees":
                environment |= self.scene.environment
            found = subprocess.run(
                agenttop("restore"), env=environment, capture_output=True, text=True, check=False
            )
            if found.returncode:
                done.differences.append(f"restore: {found.stdout}{found.stderr}"[:300])
        else:
            done.repaired = "the next start"
            self.scene.owner(state=state, mode="start", fixture=done.mode == "trees")
        return begun

    def _wait(self, done: Round, state: str, begun: float, killed: set[int]) -> None:
        """Until all is as before; a guardian that its engine started meanwhile is killed too."""
        while True:
            changed = {kind for kind, _ in self.scene.changed()}
            now = time.monotonic() - begun
            for kind in done.hit:
                if kind in changed or kind not in done.kinds:
                    done.kinds[kind] = now
            if not changed:
                done.seconds = now
                return
            if now > PATIENCE_S:
                return
            if killed and done.way == "guardian" and (new := _guardian(state)) not in {0, *killed}:
                signal_all([new])
                killed.add(new)
                if done.mode == "trees":
                    self.scene.whole_files()
                begun = time.monotonic()
            time.sleep(0.01)

    def _compare(self, done: Round, state: str) -> None:
        """Once all have ended nothing differs, and no journal is left."""
        _until(lambda: _owner(state) is None, PATIENCE_S)
        changed = self.scene.changed()
        for _ in range(3):  # A child is seen between its birth and its own choice.
            if changed:
                time.sleep(0.02)
                changed = self.scene.changed()
        done.differences += [
            f"{kind} of {what}: {was} -> {now}" for (kind, what), (was, now) in changed.items()
        ]
        if os.path.exists(f"{state}/{NAME}"):
            done.differences.append("a journal is left")
        if done.differences:
            _end(state)
            self.scene.repair()
        shutil.rmtree(state, ignore_errors=True)


def _owner(state: str) -> lock.Owner | None:
    found = lock.owner(state)
    return None if found is not None and found.elsewhere else found


def _guardian(state: str) -> int:
    found = _owner(state)
    return found.guardian if found else 0


def _until(check: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.003)
    return True


def _end(state: str) -> None:
    """Nobody holds it afterwards, and its journal is undone."""
    if (found := _owner(state)) is not None:
        signal_all([found.pid])
        signal_all([found.guardian], CONT)
        if not _until(lambda: _owner(state) is None, 3.0):
            signal_all([found.guardian])
            _until(lambda: _owner(state) is None, 3.0)
    try:
        dir_fd = open_state_dir(state, create=False)
        if dir_fd is not None:
            recover(dir_fd)
            os.close(dir_fd)
    except (JournalError, OSError) as error:
        print(f"{state}: {error}")


# --------------------------------------------------------------------------- a run


@contextmanager
def kills(folder: Path, seed: str = "") -> Iterator[Kills]:
    """Rounds below ``folder``, after what a run that was killed has left there is restored."""
    folder.mkdir(mode=0o700, exist_ok=True)
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(f"{folder}: another run of kills has it: wait for its end") from None
        for left in folder.iterdir():
            if left.is_dir():
                for state in left.glob("state-*"):
                    _end(str(state))
                shutil.rmtree(left)
        here = Path(tempfile.mkdtemp(dir=folder))
        run = Kills(here, seed or str(random.random()))
        try:
            yield run
        finally:
            run.close()
            shutil.rmtree(here, ignore_errors=True)
    finally:
        os.close(held)


def _rounds(run: Kills, count: int, log: Path | None) -> list[Round]:
    """That many, those included that an interrupted run has logged."""
    done: list[Round] = []
    if log is not None and log.exists():
        done = [Round(**json.loads(line)) for line in log.read_text().splitlines()]
    begun, first = time.monotonic(), len(done)
    for number in range(len(done), count):
        done.append(run.round(number))
        if log is not None:
            with log.open("a") as file:
                file.write(json.dumps(asdict(done[-1])) + "\n")
        if done[-1].differences or done[-1].seconds is None:
            print(f"  {done[-1]}", flush=True)
        if number % 50 == 49:
            each = (time.monotonic() - begun) / (number + 1 - first)
            print(f"  {number + 1} rounds, {each:.2f} s each", flush=True)
    return done


def run(report: Report, rounds: int, count: int = 1000, seed: str = "") -> None:
    """``count`` kills, whatever ``rounds``."""
    folder = Path(tempfile.gettempdir()) / "agenttop-kills"
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with kills(folder, seed) as run_:
        done = _rounds(run_, count, folder / f"{seed}.jsonl" if seed else None)
    _figures(report, done, run_)


def _figures(report: Report, done: list[Round], run_: Kills) -> None:
    bad = sum(len(one.differences) or one.seconds is None for one in done)
    report.add("kills", "", [len(done)])
    report.add("differences afterwards", "", [bad], 0.0)
    for clock in ("kill", "stop", "agenttop restore", "the next start"):
        seconds = sorted(
            one.seconds for one in done if one.clock == clock and one.hit and one.seconds
        )
        if not seconds:
            continue
        name = {"kill": "restored after SIGKILL", "stop": "restored after SIGSTOP"}.get(
            clock, f"restored by {clock}"
        )
        report.add(name, "s", seconds)
        report.add(f"{name}, p99", "s", [seconds[math.ceil(0.99 * len(seconds)) - 1]])
        report.add(f"{name}, longest", "s", [seconds[-1]], GOAL_S.get(clock))
    hits = Counter(kind for one in done for kind in one.hit)
    times: defaultdict[str, list[float]] = defaultdict(list)
    for one in done:
        if one.clock == "kill":
            for kind, seconds_ in one.kinds.items():
                times[kind].append(seconds_)
    wanted = HITS * min(1.0, len(done) / 1000)
    for kind in run_.all_kinds:
        note = f"longest after SIGKILL {max(times[kind]):.2f} s" if times[kind] else ""
        report.add(f"kills while {kind} was applied", "", [hits[kind]], wanted, True, note)
    lacking = {kind for kind in KNOBS if kind not in run_.kinds}
    print(f"  not on this machine: {', '.join(sorted(lacking)) or 'none'}")
    for line, why in run_.refused.items():
        print(f"  {line}: {why}")

"""Kills of agenttop's processes while policies are switched on and off at random.

Whoever is killed, alone or together, everything that a policy here touches
is as before: files, affinities, scheduling attributes, sysctls.
"""

from __future__ import annotations

import contextlib
import glob
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.policies.guardian import lock
from agenttop.policies.guardian.journal import open_state_dir
from agenttop.policies.guardian.lease import kept
from agenttop.policies.guardian.undo import recover
from agenttop.policies.knobs.sched_attr import THREAD_KNOBS, default_slice
from tests.support.places import ROOT
from tests.support.policy_rig import Victim, machine, needs_qos, needs_root, until, victims

pytestmark = [needs_root, needs_qos]

#: How often, each time and in the long tier.
KILLS = [40, pytest.param(200, marks=pytest.mark.long)]
#: Of policies that are being left applied on purpose, or have been.
KEPT_KILLS = [8, pytest.param(24, marks=pytest.mark.long)]
#: Of all kills, those that must have hit a kind of knob while it was changed, for each kind.
HIT_SHARE = 0.1
#: What to kill: the engine, its process group (as a shell does), the guardian, or both.
WHOM = ("owner", "group", "guardian", "both")
FILES = (
    "/proc/sys/net/core/netdev_budget*",
    "/proc/sys/vm/vfs_cache_pressure",
    "/proc/irq/*/smp_affinity_list",
    "/sys/block/*/queue/rq_affinity",
    "/sys/block/*/queue/wbt_lat_usec",
    "/sys/class/net/*/threaded",
    "/sys/class/net/*/gro_flush_timeout",
    "/sys/class/net/*/napi_defer_hard_irqs",
    "/sys/class/net/*/queues/*/[rx]ps_cpus",
    "/sys/devices/system/cpu/cpufreq/policy*/scaling_min_freq",
    "/sys/devices/system/cpu/cpufreq/policy*/energy_performance_preference",
)
HOG = "import time\nopen('/proc/self/comm','w').write('killhog')\nprint(1, flush=True)\n"
HOG += "while True:\n    time.sleep(0.01)\n"


def kind_of(setting: str) -> str:
    """The kind of knob of a setting in ``Scene.everything``."""
    if setting.startswith("/"):
        return "sysctl" if setting.startswith("/proc/sys/") else os.path.basename(setting)
    if setting.startswith("cpu"):
        return "pm_qos"
    return "affinity" if setting == "masks" else setting.partition(" ")[0]


def kinds_here() -> set[str]:
    """Kinds of knob that the default policies change on this machine, by what the machine has."""
    kinds = {"pm_qos", "sysctl", "sched_policy", "ioprio"}
    if len(os.sched_getaffinity(0)) > 1:
        kinds.add("affinity")
    if default_slice():
        kinds.add("slice")
    disks = [Path(path).parent for path in glob.glob("/sys/block/*/device")]
    if any(text(f"{disk}/queue/rq_affinity") in ("0\n", "1\n") for disk in disks):
        kinds.add("rq_affinity")
    return kinds


def text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        return str(error.strerror)


class Scene:
    """What policies act on, and a process that forks their owners."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.hog = subprocess.Popen([sys.executable, "-c", HOG], stdout=subprocess.PIPE)
        assert self.hog.stdout is not None
        self.hog.stdout.readline()
        self.files = sorted(path for pattern in FILES for path in glob.glob(pattern))
        self.forker = subprocess.Popen(
            [sys.executable, "-m", "tests.support.policy_owner", "forker", str(victim.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.before = self.everything()

    def everything(self) -> dict[str, object]:
        state = machine(self.victim)
        for path in self.files:
            state[path] = text(path)
        for tid in [*self.victim.tids(), self.hog.pid]:
            for kind, knob in THREAD_KNOBS.items():
                state[f"{kind} {tid}"] = knob.get(tid)
        return state

    def changed(self) -> dict[str, tuple[object, object]]:
        now = self.everything()
        return {key: (was, now[key]) for key, was in self.before.items() if now[key] != was}

    def owner(self, state: Path, seed: str) -> int:
        assert self.forker.stdin is not None
        assert self.forker.stdout is not None
        self.forker.stdin.write(f"{state} {seed}\n")
        self.forker.stdin.flush()
        return int(self.forker.stdout.readline())

    def close(self, states: Path) -> None:
        """End all, and repair what a turn that failed has left."""
        for process in (self.forker, self.hog):
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        for state in sorted(states.iterdir()):
            if state.is_dir():
                kill(found.pid if (found := lock.owner(str(state))) else 0)
                time.sleep(0.2 if found else 0)
                repair(state)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with victims() as victim:
        scene = Scene(victim)
        try:
            yield scene
        finally:
            scene.close(tmp_path)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        if pid > 0:
            os.kill(pid, number)


def guardian(state: Path) -> int:
    found = lock.owner(str(state))
    return found.guardian if found else 0


def repair(state: Path) -> None:
    """What `agenttop restore` and the next start do."""
    assert until(lambda: lock.owner(str(state)) is None, 1.0)
    dir_fd = open_state_dir(str(state), create=False)
    if dir_fd is not None:
        recover(dir_fd)
        os.close(dir_fd)


def outlived(scene: Scene, state: Path) -> bool:
    """Kill the guardian, and any that follows it: does its owner put everything back?"""
    killed, deadline = 0, time.monotonic() + 1.5
    while scene.changed() or (state / "journal").exists():
        if (now := guardian(state)) not in (0, killed):
            kill(now)
            killed, deadline = now, time.monotonic() + 1.5
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("kills", KILLS)
def test_everything_is_as_before_after_every_kill(kills: int, scene: Scene, tmp_path: Path) -> None:
    chance = random.Random()
    changes = dict.fromkeys(WHOM, 0)
    hits: Counter[str] = Counter()
    for turn in range(kills):
        whom, seed = WHOM[turn % len(WHOM)], str(chance.random())
        state = tmp_path / str(turn)
        owner = scene.owner(state, seed)
        # The guardian takes some 70 ms to start; then changes follow each other at random.
        time.sleep(0.05 + chance.random() * 0.2)
        hit = {kind_of(setting) for setting in scene.changed()}
        changes[whom] += bool(hit)
        hits.update(hit)
        if whom == "guardian":
            kill(owner, signal.SIGUSR1)  # no more toggling: it has to notice and repair
            assert outlived(scene, state), (turn, seed, scene.changed())
        if whom == "both":
            kill(guardian(state))
        if whom == "group":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(owner, signal.SIGKILL)
        kill(owner)
        if whom == "both":
            repair(state)
        assert until(lambda: not scene.changed(), 1.0), (turn, whom, seed, scene.changed())
        assert until(lambda: lock.owner(str(state)) is None, 5.0)  # noqa: B023
        assert not (state / "journal").exists(), (turn, whom, seed)
    # Most kills hit policies that were in force; else the test proves nothing.
    assert all(count >= kills // len(WHOM) // 4 for count in changes.values()), changes
    print(f"kills that hit each kind of knob: {dict(hits)}")
    missed = [kind for kind in kinds_here() if hits[kind] < HIT_SHARE * kills]
    assert not missed, (missed, hits)


@pytest.mark.parametrize("kills", KEPT_KILLS)
def test_kept_policies_are_put_back_by_restore_whenever_they_were_killed(
    kills: int, scene: Scene, tmp_path: Path
) -> None:
    chance = random.Random()
    found = {"kept": 0, "cut short": 0}
    for turn in range(kills):
        seed = f"keep:{chance.random()}"
        state = tmp_path / str(turn)
        owner = scene.owner(state, seed)
        # Every other one is left alone until it is done; some die amid their first changes.
        if turn % 2 == 0:
            assert until(lambda: kept(str(state)), 10), (turn, seed)  # noqa: B023
        elif turn % 4 == 1:
            assert until((state / "journal").exists, 10), (turn, seed)
            time.sleep(chance.random() * 0.02)
        else:
            time.sleep(0.05 + chance.random() * 0.2)
        kill(guardian(state))
        kill(owner)
        assert until(lambda: lock.owner(str(state)) is None, 5.0)  # noqa: B023
        left = kept(str(state))
        found["kept" if left else "cut short"] += 1
        if left:
            assert scene.changed(), (turn, seed)
        environment = {**os.environ, "AGENTTOP_STATE": str(state), "PYTHONPATH": str(ROOT)}
        restored = subprocess.run(
            [sys.executable, "-m", "agenttop", "restore"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (restored.returncode, restored.stderr) == (0, ""), (turn, seed, restored.stdout)
        assert not scene.changed(), (turn, seed, scene.changed(), restored.stdout)
        assert not (state / "journal").exists(), (turn, seed)
    assert all(count >= kills // 8 for count in found.values()), found

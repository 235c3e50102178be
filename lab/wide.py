"""Checks where more CPUs could be plugged in than there are, and one is.

A guest with 4 CPUs and 64 places for them: chains, guard, home and a trial
work there, kernel memory is that of 4 CPUs, a CPU may go offline and come
back, and a fifth one is measured from when it came.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from rig import (
    CPU,
    CPUS,
    LIMIT_US,
    PATIENCE_S,
    Loop,
    Skip,
    agent_of,
    attempt,
    report,
    status,
    text,
    wait,
)

from agenttop.linux.files import parse_cpulist
from agenttop.model.options import EngineOptions
from agenttop.model.sample import AgentCounters, Command, Sample
from agenttop.store.store import Store
from agenttop.stream.engine_client import EngineClient
from agenttop.trial.plan import Plan
from agenttop.trial.trial import Trial

PLACES: Final = 64
STEPS: Final = 30
#: Kernel memory may be so much more than with places for the CPUs alone.
MORE_RATIO: Final = 0.05
#: Trials, where the emulator was too slow for a switch of one.
TRIALS: Final = 3
#: include/uapi/linux/bpf.h: kinds of map with a value for each possible CPU.
PER_CPU: Final = {5, 6, 10, 21}
#: /proc/PID/fdinfo of a map.
FDINFO: Final = re.compile(r"^(map_type|value_size|max_entries|memlock):\s+(\w+)", re.MULTILINE)


class Watched:
    """An engine, all Samples of which go into a Store."""

    def __init__(self, **options: Any) -> None:
        self.client = EngineClient(EngineOptions(delay_s=1.0, **options))
        self.store = Store()
        self.events: list[str] = []

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def until(
        self, condition: Callable[[Sample], bool], what: str, seconds: float = PATIENCE_S
    ) -> Sample:
        """The first Sample for which the condition holds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for sample in self.client.samples(end):
                self.store.feed(sample)
                self.events += [event.text for event in sample.events]
                if condition(sample):
                    return sample
        raise AssertionError(f"never: {what}; events: {self.events[-4:]}")


def cpus(what: str) -> set[int]:
    return set(parse_cpulist(text(CPUS / what)))


def percpu_kb() -> int:
    """The kernel's per-CPU memory of all CPUs that could be there."""
    return int(re.findall(r"^Percpu:\s+(\d+)", text(Path("/proc/meminfo")), re.MULTILINE)[0])


def found(sample: Sample, loop: Loop) -> AgentCounters:
    agent = agent_of(sample, loop)
    assert agent is not None, "the loop is no agent any more"
    return agent


def online(sample: Sample, cpu: int) -> bool:
    return any(one.cpu == cpu and one.online for one in sample.cpus)


def why_no_chains(running: Watched) -> str:
    """Empty when there are."""
    host = running.store.host
    return host.missing.get("chains", "") if host is not None else "loading"


def telescoped(agent: AgentCounters) -> str:
    """What its stages sum up to, which must be its steps' time."""
    stages = sum(ns for ns in agent.stage_sum_ns if ns is not None)
    told = f"{agent.steps} steps: stages {stages} ns, steps {agent.step_sum_ns} ns"
    assert agent.step_sum_ns == stages > 0, told
    assert sum(agent.cpu_steps.values()) == agent.steps, (agent.cpu_steps, agent.steps)
    return told


def on_cpu(running: Watched, loop: Loop, cpu: int) -> AgentCounters:
    """Move the loop to this CPU; the agent once STEPS steps more were measured there."""
    os.sched_setaffinity(loop.pid, {cpu})
    began: int | None = None

    def some(sample: Sample) -> bool:
        nonlocal began
        agent = agent_of(sample, loop)
        if agent is None:
            return False
        steps = agent.cpu_steps.get(str(cpu), 0)
        began = steps if began is None else began
        return steps >= began + STEPS

    return found(running.until(some, f"steps on CPU {cpu}"), loop)


# --------------------------------------------------------------------------- the parts


def chains(running: Watched, loop: Loop) -> None:
    report("ok", "wide chains", telescoped(on_cpu(running, loop, CPU)))


def guard(running: Watched, loop: Loop) -> None:
    """Switched on here; it stays on for what follows."""
    limit = CPUS / f"cpu{CPU}/power/pm_qos_resume_latency_us"
    asked = False

    def limited(sample: Sample) -> bool:
        nonlocal asked
        now = status(sample, "guard")
        if not asked or now.state == "error":  # The emulator started no guardian in its time.
            asked = True
            running.client.send(Command("policy", name="guard", on=True))
        # Not always LIMIT_US: C1, emulated, can take longer than it promises, and is closed then.
        return now.state == "on" and text(limit) != "0"

    on = running.until(limited, "guard's limit")
    report("ok", "wide guard", status(on, "guard").detail)


def memory(running: Watched, before_kb: int) -> None:
    """What the maps take, against what they would if only the present CPUs had a place."""
    total = places = maps = 0
    for link in Path(f"/proc/{running.client.pid}/fd").iterdir():
        try:
            if os.readlink(link) != "anon_inode:bpf-map":
                continue
            lines = text(link.parent.parent / "fdinfo" / link.name)
        except FileNotFoundError:
            continue
        info = {name: int(number, 0) for name, number in FDINFO.findall(lines)}
        maps += 1
        total += info["memlock"]
        if info["map_type"] in PER_CPU:
            places += -(-info["value_size"] // 8) * 8 * info["max_entries"]
    assert maps > 10, f"{maps} maps found"
    there, could = len(cpus("present")), len(cpus("possible"))
    alone = total - places * (could - there)
    more = percpu_kb() - before_kb
    told = (
        f"{maps} maps {total >> 10} kB, with {there} places {alone >> 10} kB; "
        f"per-CPU memory of all kinds grew by {more} kB"
    )
    assert total <= alone * (1 + MORE_RATIO), told
    report("ok", "wide memory", told)


def trial(running: Watched, loop: Loop) -> None:
    """One round of home: applied in the block that is on, the thread's own CPUs in the others."""
    every = cpus("online")
    os.sched_setaffinity(loop.pid, every)
    for _ in range(TRIALS):
        seen: dict[str, set[int]] = {}
        first = running.until(lambda _: True, "a Sample")
        plan = Plan(("home",), rounds=1, block_s=5.0, settle_s=2.0, seed=1)
        one = Trial(plan, first.policies, running.client.send)

        def taken(sample: Sample, one: Trial = one, seen: dict[str, set[int]] = seen) -> bool:
            if one.label is not None:
                allowed = len(os.sched_getaffinity(loop.pid))
                seen.setdefault(one.label, set()).add(allowed)
            moments = running.store.history.moments
            one.take(sample, moments[-1] if moments else None)
            return one.finished

        last = running.until(taken, "the end of the trial", 300)
        if one.ended is None:
            break
    assert one.ended is None, one.ended
    running.until(lambda s: status(s, "home").state == "off", "home off")
    assert os.sched_getaffinity(loop.pid) == every, os.sched_getaffinity(loop.pid)
    assert 1 in seen["on"], seen
    assert len(every) in seen["off"] & seen["control"], seen
    agent = found(last, loop)
    result = one.result({agent.id: agent.name}, running.store.host)
    assert result.rounds == 1, result
    steps = result.agents[0].steps_off, result.agents[0].steps_on
    assert min(steps) > 0, steps
    report("ok", "wide home", "one CPU while it is on, all of the thread's own after")
    report("ok", "wide trial", f"1 round, {steps[0]} steps off, {steps[1]} on")


def offline(running: Watched, loop: Loop) -> None:
    """A CPU goes and comes back: no boundary, as it has its row all the time."""
    cpu = max(cpus("online"))
    first = on_cpu(running, loop, cpu)
    switch = CPUS / f"cpu{cpu}/online"
    switch.write_text("0")
    gone = found(running.until(lambda s: not online(s, cpu), f"CPU {cpu} offline"), loop)
    moved = running.until(lambda s: found(s, loop).steps > gone.steps + STEPS, "steps elsewhere")
    assert found(moved, loop).cpu_steps.get(str(cpu)) == gone.cpu_steps.get(str(cpu))
    switch.write_text("1")
    running.until(lambda s: online(s, cpu), f"CPU {cpu} online again")
    again = on_cpu(running, loop, cpu)
    assert again.id == first.id, "counters started again"
    assert not any("came online" in event for event in running.events), running.events
    report("ok", "wide offline", f"CPU {cpu} offline and online; {telescoped(again)}")


def plug(running: Watched, loop: Loop) -> None:
    """A CPU that was not there when the programs were loaded."""
    before = cpus("present")
    # Asks the emulator's side (run.py), which sees this file.
    Path(sys.argv[1]).with_suffix(".plug").touch()
    wait(lambda: cpus("present") > before, "a CPU more")
    cpu = (cpus("present") - before).pop()
    switch = CPUS / f"cpu{cpu}/online"
    wait(switch.exists, "its folder")
    if text(switch) == "0":
        switch.write_text("1")
    running.until(
        lambda _: running.store.host is not None and running.store.host.cpus == len(before) + 1,
        f"programs with a row for CPU {cpu}",
        300,
    )
    assert any(f"CPU {cpu} came online" in event for event in running.events), running.events
    agent = on_cpu(running, loop, cpu)
    lost = running.until(lambda _: True, "a Sample").trust.drops.get("new_cpu")
    assert lost == 0, f"{lost} steps lost after the boundary"
    running.until(lambda s: status(s, "guard").state == "on", "guard on again")
    report("ok", "wide plug", f"CPU {cpu} came, a boundary; {telescoped(agent)}")


def machine(loop: Loop) -> None:
    could = cpus("possible")
    assert len(could) == PLACES, f"possible {text(CPUS / 'possible')}"
    report("ok", "wide", f"possible {text(CPUS / 'possible')}, present {text(CPUS / 'present')}")
    before_kb = percpu_kb()
    settings = {"guard": {"limit_us": LIMIT_US, "per_cpu": True}}
    parts: dict[str, Callable[[Watched], None]] = {
        "chains": lambda running: chains(running, loop),
        "guard": lambda running: guard(running, loop),
        "memory": lambda running: memory(running, before_kb),
        "trial": lambda running: trial(running, loop),
        "offline": lambda running: offline(running, loop),
        "plug": lambda running: plug(running, loop),
    }
    try:
        with Watched(agent_patterns=["comm:^labloop$"], settings=settings) as running:
            running.until(
                lambda s: "loading" not in why_no_chains(running) and agent_of(s, loop) is not None,
                "chains",
                300,
            )
            if why := why_no_chains(running):
                raise Skip(why)
            for name, part in parts.items():
                attempt(f"wide {name}", partial(part, running))
    finally:
        os.sched_setaffinity(loop.pid, {CPU})
    limits = {file: text(file) for file in CPUS.glob("cpu[0-9]*/power/pm_qos_resume_latency_us")}
    left = {str(file): limit for file, limit in limits.items() if limit != "0"}
    assert not left, left
    report("ok", "wide restored", f"no limit on any of {len(limits)} CPUs")

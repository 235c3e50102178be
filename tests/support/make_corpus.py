"""Write the corpus again, on purpose.

    python -m tests.support.make_corpus [KIND...]   what agenttop writes (all kinds)
    python -m tests.support.make_corpus --inputs    what it reads, but for live.rec

The outputs are written again only by a change that is meant to change a format or a text, in
the same commit, which says so; the difference is then read line by line. Where code is moved or
rearranged, every byte stays. New inputs change outputs too: they are for cases that were
forgotten. live.rec is ten seconds of an engine with all causes at level full, with the demo's
agents, some loops and steps by name, and policy home switched on; another one is as good, but
what is in this one cannot be made again.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from zlib import crc32

import numpy as np

from agenttop.model.sample import (
    Budget,
    CauseCounters,
    CauseState,
    Command,
    DetailCounters,
    Event,
    Histogram,
    MarkCounters,
    NamedCounters,
    PolicyStatus,
    Sample,
    Softnet,
)
from agenttop.model.vocabulary import CAUSES, DETAILS, STEP_MEASURES
from agenttop.stats import histogram
from agenttop.store.store import Store
from agenttop.stream.recording import Writer
from agenttop.trial.plan import Plan
from agenttop.trial.trial import Trial
from tests.support.corpus import (
    BOOT,
    EXPECTED,
    INPUT,
    KINDS,
    NOW_S,
    TRIAL,
    WRITTEN_WITH,
    made,
    written_with,
)
from tests.support.synth import PROFILES, Synth, buckets_of, pack

_TEXTS = ("nvme0n1", "read \u00e9\u4e2d", "gate", "x" * 40)


def packed(second: int, value_ns: int, many: int) -> Histogram:
    """The counts after so many seconds of ``many`` steps about a value each."""
    counts = histogram.empty()
    values = np.array([value_ns, 3 * value_ns, 40 * value_ns])
    counts[buckets_of(values)] = np.array([many, many // 3, 1], np.uint64) * np.uint64(second)
    return pack(histogram.empty(), counts, True) or Histogram()


def details(cause: str, second: int) -> list[DetailCounters]:
    """Three labels and what is beyond the limit."""
    if cause not in DETAILS:
        return []
    fields, sums = DETAILS[cause]
    out = []
    for at in range(4):
        label: dict[str, str | int | None] = {}
        for number, field in enumerate(fields if at < 3 else ()):
            known = crc32(field.encode()) % 3
            label[field] = _TEXTS[(at + number) % 4] if known else None if at == 2 else at + number
            if field.endswith(("cpu", "port", "ns", "khz", "state", "queue", "line", "napi")):
                label[field] = None if at == 2 and number else 1000 * at + number
            if field.endswith("khz"):
                label[field] = 800_000 * (at + number + 1)
            elif field == "comm":
                label[field] = ("hog", "[kworker]", "\x1b[31mred")[at]
        steps = second * (3 - at % 3)
        more = {name: second * (7_000 if name.endswith("_ns") else 1) for name in sums}
        out.append(
            DetailCounters(
                [at, crc32(cause.encode())], label, steps, 2 * steps, 9_000 * steps, 90_000, more
            )
        )
    return out


def rich(samples: list[Sample]) -> None:
    """What Synth's Samples lack: causes with labels, steps by name, budgets, odd names."""
    for second, sample in enumerate(samples):
        sample.energy_uj = {"package-0": 9_000_000 * second}
        sample.trust.bpf_ns = 2_000_000 * second
        sample.trust.slots_full = 3 if second > 12 else 0
        sample.trust.slots_full_by_user = {"1000": 2, "0": 1} if second > 12 else {}
        sample.trust.steps_of_ended = second
        for cpu in sample.cpus:
            cpu.softnet = Softnet(3_000 * second, second // 5, second)
            cpu.freq_khz, cpu.freq_min_khz, cpu.freq_max_khz = 2_000_000, 800_000, 3_500_000
        sample.causes = [
            CauseState(one.name, one.stage, one.level, "on", "", 10 * second, 900 * second)
            for one in CAUSES
        ]
        if second < 5:
            sample.causes = [CauseState(one.name, one.stage, one.level, "off") for one in CAUSES]
        sample.causes[2].state, sample.causes[2].reason = "n/a", "no tracepoint mm_vmscan"
        for agent in sample.agents[:1]:
            agent.user, agent.chosen = 1000, True
            for at, cause in enumerate(CAUSES if second >= 5 else ()):
                since = second - 5
                agent.causes[cause.name] = CauseCounters(
                    since * 5, since * 6, since * (at + 1) * 20_000,
                    packed(since, 1_000 * (at + 1), 5), details(cause.name, since),
                )  # fmt: skip
                agent.explained_stage_ns[1] = since * 1_000
        coder = sample.agents[0]
        coder.named = [
            NamedCounters(
                lane, name, 9 * second, 9_000_000 * second, 90_000 * second,
                {one: packed(second, 10_000, 9) for one in STEP_MEASURES},
            )
            for lane, name in ((3, "plan"), (4, "tool:git \u00e9"), (9, ""))
        ]  # fmt: skip
        n = second
        coder.marks = MarkCounters(5 * n, [0, n, 2 * n, 0], [0, n // 9, 0, 1], [0, 0, n, 0], 1, n)
        sample.agents[3].name = "\x1b[2Jtool\u202e caller of a very long name, beyond columns"
        sample.agents[3].background = second > 15
        for exemplar in sample.exemplars:
            exemplar.pid, exemplar.waker_tid, exemplar.waker_cpu = exemplar.tid, 77, 0
        budgets = {"1": Budget(1.5, 10.0, n, n // 3, n % 7 == 0, 1, n, 5 * n, 2.5, n, 900, 9_000)}
        sample.policies.append(
            PolicyStatus("window", "w", "window", "on" if second > 9 else "off", budgets=budgets,
                         armed=[1] if second % 2 else [])
        )  # fmt: skip
        sample.policies_held_by = 4321 if second > 18 else None
        if second == 8:
            sample.events.append(Event(sample.t_ns, "warning", "a \x07 bell and \u4e2d"))


def recording(name: str, samples: list[Sample], end: bool = True, delay_s: float = 1.0) -> None:
    with open(INPUT / f"{name}.rec", "wb", buffering=0) as file:
        writer = Writer(file, delay_s)
        for sample in samples:
            writer.add(sample)
        if end:
            writer.close()


def switched(synth: Synth, seconds: int, at: dict[int, str]) -> list[Sample]:
    """Samples, with policies switched, agents that come and go, and a full one now and then."""
    out = []
    for second in range(seconds):
        if second in at:
            synth.toggle(at[second])
        if second % 10 == 9:
            synth.request_full()
        out.append(synth.sample())
    return out


def restarted() -> list[Sample]:
    synth = Synth(seed=3, agents=2, cpus=3)
    out = switched(synth, 3, {})
    synth.remove(1)
    synth.add()
    out += switched(synth, 2, {0: "home"})
    synth.restart()
    return out + switched(synth, 3, {})


def tried() -> list[Sample]:
    """What an engine says during the trial of ``corpus.TRIAL``."""
    synth = Synth(seed=5, agents=0)
    synth.add(PROFILES[2])
    synth.add(PROFILES[0])
    store = Store(clock=lambda: synth.t_ns)
    options = {name: int(value) for name, value in (one[2:].split("=") for one in TRIAL[1:])}
    plan = Plan(TRIAL[:1], options["rounds"], options["block"], options["settle"], options["seed"])

    def obey(command: Command) -> None:
        state = next(one.state for one in synth.policies if one.name == command.name)
        if (state == "on") != command.on:
            synth.toggle(command.name, command.trial)

    out = [synth.sample()]
    store.feed(out[0])
    trial = Trial(plan, out[0].policies, obey)
    while not trial.finished:
        out.append(synth.sample())
        store.feed(out[-1])
        trial.take(out[-1], store.history.moments[-1] if store.history.moments else None)
    return [*out, synth.sample()]


def recordings() -> None:
    time.time = lambda: NOW_S
    samples = switched(Synth(level="full"), 21, {7: "guard", 10: "home", 14: "guard", 17: "home"})
    rich(samples)
    recording("made", samples)
    recording("procfs", switched(Synth(agents=2, mode="procfs"), 5, {}))
    recording("cut", restarted(), end=False)
    recording("trial", tried())


# --------------------------------------------------------------------------- journals

#: Kind, target, before and after, of each kind that there is.
HOLDS = (
    ("guard", "pm_qos", "cpu0", "0", "n/a"),
    ("guard", "cpu_latency", "all", "none", "20"),
    ("home", "affinity", "12/13/4567", "0-3+", "1"),
    ("slice", "slice", "12/13/4567", "0", "100000"),
    ("floor", "uclamp_min", "12/13/4567", "0", "1024"),
    ("demote", "sched_policy", "14/14/99", "OTHER:0", "BATCH:5"),
    ("demote", "ioprio", "14/15/99", "0:4", "3:0"),
    ("floor", "cpufreq", "policy0/scaling_min_freq", "800000", "3500000"),
    ("floor", "cpufreq", "policy0/energy_performance_preference", "balance_power", "performance"),
    ("steer", "irq_affinity", "36", "0-1", "1"),
    ("steer", "kthread", "77/77/12", "0-1", "1"),
    ("vfs", "sysctl", "vm.vfs_cache_pressure", "100", "50"),
    ("softirq", "sysctl", "net.core.netdev_budget", "300", "600"),
    ("softirq", "netdev", "2/threaded", "0", "1"),
    ("softirq", "netdev", "2/queues/rx-0/rps_cpus", "0", "2"),
    ("block", "blockdev", "259:0/rq_affinity", "1", "2"),
    ("memory", "cgroup", "memory.low/agents/a", "0", "1048576"),
    ("demote", "cpu1", "cpu.shares/agents/b", "1024", "2"),
    ("demote", "cpu2", "cpu.idle/agents/\u00e9 c", "0 100", "1"),
    ("home", "cpuset1", "agents/b", "0-3", "0"),
    ("home", "cpuset2", "agents/d\udc80", "", "0-2,4"),
)


def line(record: dict[str, object]) -> bytes:
    body = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    data = body.encode(errors="surrogatepass")
    return b"%08x %s\n" % (crc32(data), data)


def hold(values: tuple[str, str, str, str, str], **more: object) -> bytes:
    names = ("policy", "kind", "target", "before", "after")
    return line({"op": "set", **dict(zip(names, values, strict=True)), "at": 77, **more})


def journals() -> None:
    """Written by hand: a format is not checked with the code that is to be checked."""
    (INPUT / "holds.json").write_text(json.dumps(HOLDS, indent=1) + "\n")
    first = line({"agenttop": "journal", "version": 1, "boot": BOOT})
    each = [hold(one, place="0:42/1") for one in HOLDS]
    undone = line({"op": "undone", "kind": "affinity", "target": "12/13/4567"})
    again = hold(("guard", "pm_qos", "cpu0", "70", "20"))
    kept = line({"op": "kept"})
    here = [hold(("guard", "pm_qos", f"cpu{cpu}", "0", "n/a")) for cpu in (0, 1, 2, 9)]
    other = line({"agenttop": "journal", "version": 1, "boot": "another"})
    for name, lines in {
        "all": [first, *each, again, undone],
        "kept": [first, *each[:2], kept],
        "torn": [first, each[0], each[1][:-9]],
        "undated": [each[0], each[1]],
        "restore": [first, *here],
        "damaged": [first[:5], b"x", first[6:], *here],
        "boot": [other, *here, b"0123 not a line\n"],
    }.items():
        (INPUT / f"{name}.journal").write_bytes(b"".join(lines))


def outputs(kinds: list[str]) -> None:
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            found = made(kind, Path(folder))
        where = EXPECTED / kind
        where.mkdir(parents=True, exist_ok=True)
        for path in where.iterdir():
            path.unlink()
        for name, body in found.items():
            (where / name).write_bytes(body)
    then = json.loads(WRITTEN_WITH.read_text()) if WRITTEN_WITH.exists() else {}
    then |= {kind: value for kind, value in written_with().items() if kind in kinds}
    WRITTEN_WITH.write_text(json.dumps(then, indent=1) + "\n")


def main() -> None:
    if sys.argv[1:] == ["--inputs"]:
        INPUT.mkdir(parents=True, exist_ok=True)
        recordings()
        journals()
    else:
        outputs(sys.argv[1:] or list(KINDS))


if __name__ == "__main__":
    main()

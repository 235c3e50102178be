"""Samples that lie: base frames with everything in them that a Sample can have, and changes.

Most changes keep the type, so that they pass decoding: extremes, counters that decrease, time
that goes back, agents that are swapped, twice there or renamed, other names in maps. Some break
the type or the bytes.
"""

from __future__ import annotations

import random
import struct
from typing import Any, Final

import msgspec

from agenttop.model.sample import AgentCounters, CauseCounters, Sample, Softnet
from agenttop.model.vocabulary import CAUSES, DETAILS

Tree = Any

#: The first frames of a stream, and those that follow until it begins anew.
FRAMES: Final = 24
_KEPT_BUCKETS: Final = 3

HOSTILE: Final = (
    "", " ", "0", "1", "-1", "1e9", "9" * 12, "9" * 13, "9" * 5000, "\x00", "a\nb", "\x1b[2J\x07",
    "\u202e\u2066", "\ud7ff" * 99, "e\u0301" * 40, "\U0001f4a9" * 300, "\uff21" * 80, "[bold]x",
    "[/]", "[", "]", "<script>&\"'", "|`*_|", "{{}}{0}%s%n", "../../x", "None", "nan", "on", "off",
    "drift", "n/a", "lite", "full", "block", "step", "slowpath", "swapper/0", "kworker/0:1]",
    "local_timer", "softirq TIMER", "(other names)", "٣", "²", "x" * 8192, "x" * 8193,
)  # fmt: skip
_NUMBERS: Final = (
    0, 0, 1, 2, 7, 63, 64, 127, 255, 256, 1023, 1024, 65535, 65536, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, 10**9, 10**12, (1 << 53) + 1, 1 << 60, (1 << 62) - 1, 1 << 62,
)  # fmt: skip
_BEYOND: Final = (-1, (1 << 62) + 1, 1 << 63, (1 << 64) - 1, -(1 << 63), None, 0.5, "7", True)
_FLOATS: Final = (0.0, -0.0, 1.0, -1.0, 0.999, 5e-324, 1e17, -1e17, 1e9, float(1 << 35))
_NO_FLOATS: Final = (float("nan"), float("inf"), 1e300, None, "1.5", 7)
_OTHER: Final = (None, True, 0, -1, "", b"", [], {}, [[]], {"": {}}, 1e308)


def bases() -> list[list[bytes]]:
    """Streams of packed Samples: agents and CPUs, few buckets each."""
    from tests.support.synth import Synth

    out = []
    for seed, (agents, cpus, mode) in enumerate(
        ((1, 1, "tp_btf"), (2, 1, "tp_btf"), (1, 2, "raw_tp"), (1, 2, "procfs"))
    ):
        made = Synth(seed, agents=agents, cpus=cpus, mode=mode)
        samples = made.samples(FRAMES)
        packed = []
        for number, sample in enumerate(samples):
            if mode != "procfs":
                _enrich(sample, number)
            tree = msgspec.to_builtins(sample, builtin_types=(bytes,))
            _shorten(tree)
            packed.append(msgspec.msgpack.encode(tree))
        out.append(packed)
    return out


def _enrich(sample: Sample, number: int) -> None:
    """What the made-up engine leaves out: causes, names, markers, budgets, energy."""
    steps = 10 * (number + 1)
    counts = {"buckets": struct.pack("<2H", 3, 700), "counts": struct.pack("<2Q", steps, steps)}
    sums = {"steps": steps, "events": steps, "sum_ns": 1000 * steps}
    for agent in sample.agents:
        chosen = CAUSES[(number + agent.id) % 7 :: 7]
        for cause in chosen:
            detail = DETAILS.get(cause.name)
            labels = [
                {"words": [word, 7], "label": dict.fromkeys(detail.label, word) | {"name": "eth0"},
                 **sums, "max_ns": 5000, "sums": dict.fromkeys(detail.sums, steps)}
                for word in (1, 2)[: 1 + number % 2]
            ] if detail else []  # fmt: skip
            agent.causes[cause.name] = msgspec.convert(
                {**sums, "histogram": counts, "details": labels}, CauseCounters
            )
        extra = msgspec.convert(
            {
                "id": 1, "name": "", "rule": "", "pid": 1, "marks": {"contexts": steps},
                "named": [
                    {"lane": lane, "name": name, "steps": steps, "step_sum_ns": 9000 * steps,
                     "slowpath_sum_ns": 100, "histograms": {"step": counts, "slowpath": counts}}
                    for lane, name in ((1, "plan"), (2, ""))
                ],
            },
            AgentCounters,
        )  # fmt: skip
        agent.named, agent.marks = extra.named, extra.marks
    more = msgspec.convert(
        {
            "t_ns": 0, "wall_s": 0.0, "seq": 0, "full": True, "energy_uj": {"0": 10**7 * number},
            "causes": [
                {"name": c.name, "stage": c.stage, "level": c.level, "state": "on", "runs": steps,
                 "run_ns": 300 * steps} for c in CAUSES
            ],
            "events": [{"t_ns": sample.t_ns, "kind": "info", "text": "something"}],
            "policies": [{
                "name": "window", "key": "w", "title": "window", "state": "on" if number % 8 > 3
                else "off", "since_ns": sample.t_ns - 5 * 10**8, "cpus": [0], "tids": [7],
                "agents": {"1": "cpu1"}, "armed": [0], "changes": ["a: 1 -> 2"], "plan": ["b"],
                "budgets": {"1": {"tokens": 5.0, "capacity": 9.0, "grants": steps,
                                  "spent": 2.5 * steps, "edge_p50_ns": 900}},
            }],
        },
        Sample,
    )  # fmt: skip
    sample.energy_uj, sample.events = more.energy_uj, more.events
    sample.causes = more.causes[number % 3 :: 3]
    sample.policies = [sample.policies[0], *more.policies]
    for cpu in sample.cpus:
        cpu.softnet = Softnet(steps, 1, 2)


def _shorten(tree: Tree) -> None:
    """Few buckets of each histogram: what they hold is told elsewhere."""
    if isinstance(tree, dict):
        if set(tree) == {"buckets", "counts"}:
            tree["buckets"] = tree["buckets"][-2 * _KEPT_BUCKETS :]
            tree["counts"] = tree["counts"][-8 * _KEPT_BUCKETS :]
            return
        tree = list(tree.values())
    if isinstance(tree, list):
        for each in tree:
            _shorten(each)


def stream(rng: random.Random, streams: list[list[bytes]], count: int) -> list[bytes]:
    """So many changed frames, the first one whole (else none that follows would pass)."""
    base = rng.choice(streams)
    out = [base[0]]
    shift = 0
    while len(out) <= count:
        at = len(out) % FRAMES
        tree = msgspec.msgpack.decode(base[at])
        if not at:
            shift += FRAMES
        tree["t_ns"] += shift * 10**9
        tree["seq"] += shift
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            (_story if rng.random() < 0.25 else _change)(tree, rng)
        try:
            body = msgspec.msgpack.encode(tree)
        except (OverflowError, UnicodeError, RecursionError, ValueError):
            continue
        out.append(damaged(body, rng) if rng.random() < 0.04 else body)
    return out


# --------------------------------------------------------------------------- changes


def _change(tree: Tree, rng: random.Random) -> None:
    """Something in it becomes something else, of the same type mostly."""
    at, field = tree, ""
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        if not keys:
            return
        key = rng.choice(keys)
        below = at[key]
        if isinstance(key, str):
            field = key
        if not isinstance(below, (dict, list)) or not below or rng.random() < 0.15:
            break
        at = below
    if rng.random() < 0.03:
        at[key] = rng.choice(_OTHER)
    else:
        at[key] = _alike(below, field, rng)


def _alike(value: Tree, field: str, rng: random.Random) -> Tree:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return _number(value, rng)
    if isinstance(value, float):
        return rng.choice(_FLOATS if rng.random() < 0.95 else _NO_FLOATS)
    if isinstance(value, str):
        return rng.choice(HOSTILE)
    if isinstance(value, bytes):
        return _packed(value, field, rng)
    if isinstance(value, list):
        return _items(value, rng)
    if isinstance(value, dict):
        return _entries(value, rng)
    return None if field in ("host", "marks", "softnet") else rng.choice((0, 1, 5, 1 << 40))


def _number(value: int, rng: random.Random) -> int | float | str | bool | None:
    kind = rng.random()
    if kind < 0.04:
        return rng.choice(_BEYOND)
    if kind < 0.5:
        return rng.choice(_NUMBERS)
    step = 1 << rng.randrange(40)
    return max(value + rng.choice((-1, 1)) * step, 0)


def _packed(value: bytes, field: str, rng: random.Random) -> bytes:
    """Buckets or counts of a histogram: with another length too."""
    kind = rng.random()
    if kind < 0.15:
        return damaged(value, rng)
    number = len(value) // (2 if field == "buckets" else 8) or 1
    number = number if kind < 0.85 else rng.choice((0, 1, 2, 40, 1024, 2048))
    if field == "buckets":
        return b"".join(
            struct.pack("<H", rng.choice((0, 1, 3, 700, 1022, 1023, 1024, 65535)))
            for _ in range(number)
        )
    most = rng.choice((10, 1 << 31, 1 << 32, 1 << 42, 1 << 43, (1 << 64) - 1))
    return b"".join(struct.pack("<Q", rng.randrange(most + 1) % (1 << 64)) for _ in range(number))


def _items(value: list[Tree], rng: random.Random) -> list[Tree]:
    kind = rng.randrange(6)
    if kind == 0 or not value:
        return []
    at = rng.randrange(len(value))
    if kind == 1:
        return value[:at] + value[at + 1 :]
    if kind == 2:
        return value * rng.choice((2, 2, 2, 40))
    if kind == 3:
        return value[::-1]
    if kind == 4:
        return [*value, value[at]]
    return value[at:] + value[:at]


def _entries(value: dict[str, Tree], rng: random.Random) -> dict[str, Tree]:
    kind, keys = rng.randrange(5), list(value)
    if kind == 0 or not keys:
        return {}
    key = rng.choice(keys)
    if kind == 1:
        return {name: each for name, each in value.items() if name != key}
    other = rng.choice(HOSTILE) if rng.random() < 0.7 else rng.choice(keys)
    if kind == 2:
        return {other if name == key else name: each for name, each in value.items()}
    if kind == 3:
        return value | {other: value[key]}
    return dict(reversed(value.items()))


def _story(tree: Tree, rng: random.Random) -> None:
    """What an engine, or time, could have done."""
    kind = rng.randrange(12)
    agents = tree.get("agents")
    agents = agents if isinstance(agents, list) else []
    agent = rng.choice(agents) if agents else {}
    agent = agent if isinstance(agent, dict) else {}
    if kind == 0:
        tree["t_ns"] = rng.choice((0, 1, 10**9, (1 << 62) - 1, 1 << 62))
    elif kind == 1:
        tree["seq"] = rng.choice((0, 0, 1, 1 << 62))
    elif kind == 2:
        tree["full"] = not tree.get("full")
    elif kind == 3 and agents:
        agents.reverse()
    elif kind == 4 and agents:
        agents += [{**agent, "id": rng.choice((*_NUMBERS, 9)), "pid": rng.randrange(1 << 22)}]
    elif kind == 5 and agents:
        del agents[rng.randrange(len(agents))]
    elif kind == 6:
        agent["id"] = rng.choice(_NUMBERS)
    elif kind == 7:
        agent["name"] = rng.choice(HOSTILE)
    elif kind == 8:
        for name in ("steps", "step_sum_ns", "slowpath_sum_ns", "tail_steps"):
            agent[name] = rng.choice((0, 1, 1 << 62))
    elif kind == 9 and isinstance(tree.get("policies"), list):
        for policy in tree["policies"]:
            if isinstance(policy, dict):
                policy["state"] = rng.choice(("on", "off", "drift", "n/a", "error"))
                policy["since_ns"] = rng.choice((None, 0, tree.get("t_ns"), 1 << 62))
    elif kind == 10 and isinstance(tree.get("cpus"), list) and tree["cpus"]:
        cpu = rng.choice(tree["cpus"])
        if isinstance(cpu, dict):
            tree["cpus"] += [{**cpu, "cpu": rng.choice((3, 63, 512, 1023, 1024))}]
    elif kind == 11:
        tree["host"] = _host(rng)


def _host(rng: random.Random) -> Tree:
    """Told again, as when something of it changes."""
    state = {"name": rng.choice(HOSTILE), "latency_us": 1, "residency_us": 1}
    host = {
        "name": rng.choice(HOSTILE), "kernel": "6.1", "cpus": rng.choice(_NUMBERS),
        "level": rng.choice(("lite", "full")), "mode": rng.choice(("tp_btf", "raw_tp", "procfs")),
        "idle_states": [state] * rng.choice((0, 1, 2, 9, 10, 11, 40)),
        "missing": {"chains": "x"} if rng.random() < 0.1 else {},
    }  # fmt: skip
    _change(host, rng)
    return host


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bits, cuts, and parts of it elsewhere."""
    out = bytearray(data)
    kind, at = rng.random(), rng.randrange(len(out) + 1)
    if kind < 0.4 and at < len(out):
        out[at] ^= 1 << rng.randrange(8)
    elif kind < 0.6:
        out[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
    elif kind < 0.8:
        del out[at:]
    else:
        start = rng.randrange(len(out) + 1)
        out[at:at] = out[start : start + rng.randrange(64)]
    return bytes(out)

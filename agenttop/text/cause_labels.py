"""The labels of causes in a few words: "irq 36 virtio1-req.0, cpu 0", and what came with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from agenttop.linux.process import printable
from agenttop.text.figures import duration, frequency, percent

#: Longest text of a label.
_MOST: Final = 80


def label_text(cause: str, label: Mapping[str, str | int | None]) -> str:
    """Of one label of a cause (words.DETAILS); nothing in it that a terminal would obey."""
    if not label:
        return "others"
    return printable(_WORDS[cause](label), _MOST)


def _interrupt(label: Mapping[str, Any]) -> str:
    what = label["vector"] or f"irq {label['line']} {label['name'] or ''}".strip()
    return f"{what}, cpu {label['cpu']}"


def _softirq(label: Mapping[str, Any]) -> str:
    return f"{label['vector']}, cpu {label['cpu']}"


def _timer(label: Mapping[str, Any]) -> str:
    return f"{label['kind']} {label['function'] or 'of an unknown function'}"


def _network(label: Mapping[str, Any]) -> str:
    parts = [f"{label['device'] or 'an unnamed device'}"]
    if label["kind"] == "loopback":
        parts.append("loopback")
    if label["queue"] is not None:
        parts.append(f"queue {label['queue']}")
    return ", ".join(parts)


def _socket(label: Mapping[str, Any]) -> str:
    local = _end(label["local_address"], label["local_port"])
    if label["peer_address"] is None:
        return f"{label['protocol']} to {local}"
    return f"{label['protocol']} {_end(label['peer_address'], label['peer_port'])} to {local}"


def _end(address: object, port: object) -> str:
    host = f"[{address}]" if ":" in str(address) else str(address or "*")
    return f"{host}:{port or '*'}"


def _workqueue(label: Mapping[str, Any]) -> str:
    if label["thread"]:
        return f"thread {label['thread']}"
    return f"work {label['function'] or 'of an unknown function'}"


def _block(label: Mapping[str, Any]) -> str:
    role = ", background" if label.get("role") == "background" else ""
    return f"{label['operation']} {label['device'] or 'no disk'}{role}"


def _idle(label: Mapping[str, Any]) -> str:
    name = label["name"] or f"idle state {label['state']}"
    promised = _number(label["promised_ns"])
    return f"{name}, promised {duration(promised)}" if promised is not None else f"{name}"


def _placement(label: Mapping[str, Any]) -> str:
    return f"cpu {label['from_cpu']} to cpu {label['to_cpu']}"


def _ran_meanwhile(label: Mapping[str, Any]) -> str:
    if label["kind"] == "interrupts":
        return "interrupts and softirqs"
    # As ps has them.
    return f"[{label['comm']}]" if label["kind"] == "kernel" else f"{label['comm']}"


def _avoidable_wait(label: Mapping[str, Any]) -> str:
    return f"for cpu {label['cpu']} while cpu {label['idle_cpu']} was idle"


def _frequency(label: Mapping[str, Any]) -> str:
    before, after = (_number(label[name]) for name in ("from_khz", "to_khz"))
    return f"{frequency(before)} " + (f"to {frequency(after)}" if after else "and no rise")


def _number(value: object) -> int | None:
    """A recording may say anything."""
    return value if isinstance(value, int) and value >= 0 else None


def _io_uring(label: Mapping[str, Any]) -> str:
    return f"{label['operation']}{', background' if label['role'] == 'background' else ''}"


#: Cause -> the words of its label.
_WORDS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "interrupt": _interrupt,
    "softirq": _softirq,
    "timer": _timer,
    "network": _network,
    "socket": _socket,
    "workqueue": _workqueue,
    "block": _block,
    "block_in_compute": _block,
    "idle": _idle,
    "placement": _placement,
    "ran_meanwhile": _ran_meanwhile,
    "avoidable_wait": _avoidable_wait,
    "frequency": _frequency,
    "io_uring": _io_uring,
}


def label_facts(cause: str, steps: int, events: int, sums: Mapping[str, int]) -> str:
    """What else is summed over so many steps and events, as means; empty where there is nothing."""
    facts = _FACTS.get(cause)
    if facts is not None:
        return ", ".join(facts(max(steps, 1), sums))
    return ", ".join(
        f"{name.removesuffix('_ns').replace('_', ' ')} {duration(total // events)}"
        for name, total in sums.items()
        if name.endswith("_ns") and total > 0 and events > 0
    )


def _interrupt_facts(steps: int, sums: Mapping[str, int]) -> list[str]:
    runs = sums["runs"]
    return [f"the whole handler {duration(sums['run_ns'] // runs)}"] if runs else []


def _softirq_facts(steps: int, sums: Mapping[str, int]) -> list[str]:
    out = [f"raised {duration(sums['raised_ns'] // steps)} before"]
    if sums["ksoftirqd_steps"]:
        out.append(f"{percent(sums['ksoftirqd_steps'] / steps)} by ksoftirqd")
    return out


def _timer_facts(steps: int, sums: Mapping[str, int]) -> list[str]:
    used, slack = sums["slack_used_ns"] // steps, sums["slack_ns"] // steps
    return [
        f"used {duration(used)} of {duration(slack)} slack",
        f"late {duration(sums['late_ns'] // steps)}",
    ]


def _network_facts(steps: int, sums: Mapping[str, int]) -> list[str]:
    polls = sums["polls"]
    if not polls:
        return []
    out = [
        f"polls of {sums['packets'] / polls:.1f} packets in {duration(sums['poll_ns'] // polls)}"
    ]
    if sums["exhausted_polls"]:
        out.append(f"{percent(sums['exhausted_polls'] / polls)} used up their budget")
    if sums["backlog_polls"]:
        out.append(f"{percent(sums['backlog_polls'] / polls)} of the backlog")
    return out


def _workqueue_facts(steps: int, sums: Mapping[str, int]) -> list[str]:
    out = []
    if sums["queued_steps"]:
        out.append(f"queued {duration(sums['queued_ns'] // sums['queued_steps'])}")
    return [*out, f"ran {duration(sums['run_ns'] // steps)}"]


def _idle_facts(steps: int, sums: Mapping[str, int]) -> list[str]:
    return [
        f"{percent(sums[name] / steps)} {name.replace('_', ' ')}"
        for name in ("too_deep", "too_shallow")
        if sums[name]
    ]


def _placement_facts(steps: int, sums: Mapping[str, int]) -> list[str]:
    out = [f"ipi {duration(sums['ipi_ns'] // steps)}"]
    if sums["moved_steps"]:
        out.append(f"{percent(sums['moved_steps'] / steps)} moved while they waited")
    return out


#: Cause -> the words of its sums.
_FACTS: Final[dict[str, Callable[[int, Mapping[str, int]], list[str]]]] = {
    "interrupt": _interrupt_facts,
    "softirq": _softirq_facts,
    "timer": _timer_facts,
    "network": _network_facts,
    "workqueue": _workqueue_facts,
    "idle": _idle_facts,
    "placement": _placement_facts,
}

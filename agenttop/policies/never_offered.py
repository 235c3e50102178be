"""What is never offered, whoever asks: each rule with the safe policy to use instead.

A policy file or ``--set`` that asks for one of these, by a policy's name or
by a value that amounts to it, is refused before anything is changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple


class Rule(NamedTuple):
    """Something that harms everybody else, or cannot expire."""

    name: str
    #: Policies' and parameters' names that mean it.
    words: re.Pattern[str]
    #: Values of any parameter that mean it.
    values: re.Pattern[str]
    why: str
    instead: str


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns) or r"(?!)", re.IGNORECASE)


RULES: Final = (
    Rule(
        "no-realtime",
        _words(r"(sched_?)?(fifo|rr|deadline)", "real_?time", "rt_?prio(rity)?", "chrt"),
        _words(r"(sched_)?(fifo|rr|deadline)", "real_?time"),
        "a looping agent under SCHED_FIFO or SCHED_RR starves its CPU",
        "slice (earlier deadlines under the fair scheduler), or demote for what is in its way",
    ),
    Rule(
        "no-performance-governor",
        _words("performance", "(scaling_)?governor", "cpufreq_governor", "max_freq"),
        _words("performance"),
        "the highest frequency on all CPUs costs power for as long as it is set, agents or none",
        "floor, or window, which holds it only while an agent is about to run",
    ),
    Rule(
        "no-idle-off",
        _words("idle_?off", "idle=?poll", "disable_?(deep_?)?(idle|cstates?)", "no_?cstates?",
               "max_?cstate", "cstates?"),
        _words("idle=poll"),
        "no idle states on all CPUs at all times: heat, and less turbo for those that work",
        "guard on the CPUs that agents use, or window, which expires",
    ),
    Rule(
        "no-urgent-io",
        _words("(all_?)?io_?(urgent|realtime|rt)", "urgent_?io", "ionice_?rt"),
        _words("1:[0-7]", "io_?(realtime|rt)", "urgent"),
        "when every request is urgent none is, and real-time I/O starves everybody else",
        "block (best effort, for agents only)",
    ),
    Rule(
        "no-busy-poll",
        _words("busy_?(poll|read)", "net_?busy_?(poll|read)", "prefer_?busy_?poll"),
        _words("busy_?poll"),
        "busy polling every device takes whole CPUs from everybody",
        "softirq (bounded batches, threaded NAPI)",
    ),
    Rule(
        "no-permanent",
        _words("permanent(ly)?", "forever", "persist(ent)?", "no_?(lease|expiry|expire|revert)",
               "sysctl_?conf", "boot_?param(eter)?s?"),
        _words("forever", "permanent(ly)?", "never"),
        "a setting that cannot expire outlives its reason",
        "window or any policy here: held under a lease and given back"
        " ('policy apply --keep' leaves one applied, and says how to undo it)",
    ),
)  # fmt: skip


#: Parameters that say whom a policy is for: an agent or a cgroup may have any name.
NAMING: Final = frozenset({"agents", "devices", "groups", "processes"})


def refusal(policy: str, params: Mapping[str, object] | None = None) -> tuple[str, str] | None:
    """(what it is about, one line) when this is never offered; None when it is harmless.

    What it is about: the policy's name, or the parameter's.
    """
    for rule in RULES:
        if rule.words.fullmatch(policy):
            return policy, _line(policy, rule)
        for key, value in (params or {}).items():
            texts = value if isinstance(value, list) else [value]
            if rule.words.fullmatch(str(key)):
                return str(key), _line(f"{policy}.{key}", rule)
            if key in NAMING:
                continue
            if any(isinstance(t, str) and rule.values.fullmatch(t) for t in texts):
                return str(key), _line(f"{policy}.{key}", rule)
    return None


def _line(what: str, rule: Rule) -> str:
    return f"'{what}' is never offered ({rule.name}): {rule.why}. Use {rule.instead}"

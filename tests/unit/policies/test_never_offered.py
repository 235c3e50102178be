"""What is never offered: refused by name, by value, in --set and in files; nothing else is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agenttop.errors import UserError
from agenttop.policies import catalog, never_offered


@pytest.mark.parametrize(
    ("policy", "params", "rule", "instead"),
    [
        ("realtime", {}, "no-realtime", "slice"),
        ("SCHED_FIFO", {}, "no-realtime", "slice"),
        ("rr", {}, "no-realtime", "slice"),
        ("demote", {"to": "fifo"}, "no-realtime", "demote"),
        ("slice", {"rt_priority": 5}, "no-realtime", "slice"),
        ("performance", {}, "no-performance-governor", "floor"),
        ("floor", {"governor": "performance"}, "no-performance-governor", "window"),
        ("floor", {"energy_preference": "performance"}, "no-performance-governor", "floor"),
        ("idle_off", {}, "no-idle-off", "guard"),
        ("guard", {"max_cstate": 0}, "no-idle-off", "window"),
        ("urgent_io", {}, "no-urgent-io", "block"),
        ("block", {"ioprio": "1:0"}, "no-urgent-io", "block"),
        ("block", {"ioprio": ["2:4", "1:4"]}, "no-urgent-io", "block"),
        ("busy_poll", {}, "no-busy-poll", "softirq"),
        ("softirq", {"busy_read": 50}, "no-busy-poll", "softirq"),
        ("permanent", {}, "no-permanent", "--keep"),
        ("window", {"window_us": "forever"}, "no-permanent", "window"),
    ],
)
def test_refused_with_the_rule_and_what_to_use(
    policy: str, params: dict[str, Any], rule: str, instead: str
) -> None:
    refused = never_offered.refusal(policy, params)
    assert refused is not None
    about, text = refused
    assert about in (policy, *params)
    assert rule in text
    assert instead in text.partition("Use ")[2]
    assert "\n" not in text


@pytest.mark.parametrize("rule", never_offered.RULES, ids=lambda rule: rule.name)
def test_what_to_use_instead_is_a_policy_that_there_is(rule: never_offered.Rule) -> None:
    assert rule.instead.split()[0].rstrip(",") in catalog.POLICIES


@pytest.mark.parametrize("name", catalog.POLICIES)
def test_no_policy_and_no_default_is_refused(name: str) -> None:
    defaults = msgspec.to_builtins(catalog.params(name, {}))
    assert never_offered.refusal(name, defaults) is None


def _takes_names(params: type[msgspec.Struct], key: str) -> bool:
    try:
        msgspec.convert({key: ["name"]}, params)
    except msgspec.ValidationError:
        return False
    return True


_NAMED = [
    (name, field.name)
    for name, entry in catalog.POLICIES.items()
    for field in msgspec.structs.fields(entry.params)
    if _takes_names(entry.params, field.name)
]


@pytest.mark.parametrize(("policy", "key"), _NAMED)
@pytest.mark.parametrize("value", ["urgent", "performance", "fifo", "never", "forever"])
def test_names_of_agents_processes_groups_and_devices_are_free(
    policy: str, key: str, value: str
) -> None:
    given = f"comm:{value}" if key == "processes" else value
    settings = catalog.parse_set([f"{policy}.{key}=[{given}]"])
    assert settings == {policy: {key: [given]}}
    assert never_offered.refusal(policy, {key: [value]}) is None


def test_no_other_parameter_is_free() -> None:
    assert {key for _, key in _NAMED} == never_offered.NAMING


def test_hostile_values_are_no_trouble() -> None:
    deep: Any = "forever"
    for _ in range(100_000):
        deep = [deep]
    assert (
        never_offered.refusal("guard", {"x": deep, "y": None, "z": {"a": 1}, "n": 10**400}) is None
    )


@pytest.mark.parametrize("name", ["realtime", "performance", "busy_poll"])
def test_by_name_the_refusal_comes_before_there_is_none(name: str) -> None:
    with pytest.raises(UserError, match="never offered"):
        catalog.check_name(name)


@pytest.mark.parametrize(
    "text", ["demote.to=fifo", "block.ioprio='1:4'", "performance.on=true", "floor.governor=x"]
)
def test_set_is_refused_too(text: str) -> None:
    with pytest.raises(UserError, match=r"never offered \(no-"):
        catalog.parse_set([text])

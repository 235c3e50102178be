"""The JSON is what its schema says, and the distributions in it are whole."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonschema
import msgspec
import pytest
from hdrh.histogram import HdrHistogram

from agenttop.model.snapshot import Snapshot
from agenttop.model.vocabulary import SLOWPATH_STAGES, STAGES
from agenttop.render.json_schema import schema
from agenttop.render.snapshot_json import encode
from agenttop.store.store import Store
from tests.support.synth import Synth


def made(synth: Synth, ticks: int = 6, hdr: bool = False) -> Snapshot:
    store = Store(clock=lambda: synth.t_ns)
    for i in range(ticks):
        if i == 3:
            synth.toggle("guard")
            synth.toggle("home")
        store.feed(synth.sample())
    snapshot = store.snapshot(hdr=hdr)
    assert snapshot is not None
    return snapshot


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    made_schema = schema()
    jsonschema.Draft202012Validator.check_schema(made_schema)
    return jsonschema.Draft202012Validator(made_schema)


@pytest.mark.parametrize("hdr", [False, True])
@pytest.mark.parametrize(
    "options", [{"level": "lite"}, {"level": "full"}, {"mode": "procfs"}, {"agents": 0}]
)
def test_output_is_valid(
    validator: jsonschema.Draft202012Validator, options: dict[str, Any], hdr: bool
) -> None:
    for ticks in (1, 6):
        validator.validate(json.loads(encode(made(Synth(**options), ticks, hdr))))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("trust"),
        lambda d: d.update(schema="other"),
        lambda d: d.update(version=2),
        lambda d: d["agents"][0].pop("slowpath"),
        lambda d: d["agents"][0]["stages"].update(nap=None),
        lambda d: d["agents"][0]["step"].update(p99_ns="1ms"),
        lambda d: d["agents"][0]["step"].pop("p99_ns"),
        lambda d: d["cpus"][0].update(cpu=None),
    ],
)
def test_the_schema_tells_damage(validator: jsonschema.Draft202012Validator, damage: Any) -> None:
    document = json.loads(encode(made(Synth())))
    broken = copy.deepcopy(document)
    damage(broken)
    assert validator.is_valid(document)
    assert not validator.is_valid(broken)


def test_the_words_of_the_issue_are_the_keys() -> None:
    document = json.loads(encode(made(Synth(level="full"))))
    assert (document["schema"], document["version"]) == ("agenttop.snapshot", 1)
    assert {"host", "interval_ns", "trust", "cpus", "agents", "policies"} <= set(document)
    agent = document["agents"][0]
    for key in ("name", "pids", "steps", "steps_per_s", "sources", "gates"):
        assert key in agent
    assert list(agent["stages"]) == list(STAGES)
    for stat in (agent["step"], agent["slowpath"], *agent["stages"].values()):
        assert {"count", "sum_ns", "p50_ns", "p99_ns", "p999_ns", "max_ns"} <= set(stat)


@pytest.mark.parametrize("level", ["lite", "full"])
def test_stages_add_up_in_the_document(level: Any) -> None:
    for agent in json.loads(encode(made(Synth(level=level))))["agents"]:
        stages = agent["stages"]
        assert (stages["return"] is None) == (level == "lite")
        total = sum(stat["sum_ns"] for stat in stages.values() if stat)
        assert total == agent["step"]["sum_ns"]
        slow = sum(stages[name]["sum_ns"] for name in SLOWPATH_STAGES if stages[name])
        assert slow == agent["slowpath"]["sum_ns"]


def test_units_and_meanings_are_in_the_schema() -> None:
    definitions = schema()["$defs"]
    stat = definitions["Stat"]["properties"]
    assert "nanoseconds" in stat["p99_ns"]["description"]
    assert "fewer than 5 samples" in stat["estimated"]["description"]
    assert "per second" in definitions["Load"]["properties"]["per_s"]["description"]


def test_distributions_are_whole() -> None:
    snapshot = made(Synth(level="lite"), hdr=True)
    for agent in snapshot.agents:
        for stat in (agent.step, agent.slowpath, agent.stages["idle_exit"], agent.stages["queue"]):
            assert stat is not None
            assert isinstance(stat.hdr, str)
            coded = HdrHistogram.decode(stat.hdr)
            assert coded.get_total_count() == stat.count
            pairs = [(coded.get_value_at_percentile(50), stat.p50_ns)]
            pairs.append((coded.get_max_value(), stat.max_ns))
            if stat.count > 10_000:  # with fewer, one rank more or less is far away
                pairs.append((coded.get_value_at_percentile(99), stat.p99_ns))
            for theirs, ours in pairs:
                # Their buckets and ours overlap by a width each.
                assert theirs == pytest.approx(ours, rel=0.05, abs=2)


def test_without_being_asked_for_they_are_left_out() -> None:
    assert b'"hdr"' not in encode(made(Synth()))


def test_it_is_fit_for_a_terminal_whatever_a_recording_holds() -> None:
    evil = "a\x9b31m\u202eb\u200bc\x1b[2J"
    shot = made(Synth(), hdr=True)
    plain = encode(shot)
    shot.host.name = evil
    shot.agents[0].name = evil
    shot.agents[0].gates = {evil: 1}
    shot.trust.drops = {evil: 1}
    text = encode(shot).decode()
    assert text.replace("\n", "").isprintable()
    document = json.loads(text)
    assert document["agents"][0]["name"] == "a\ufffd31m\ufffdb\ufffdc\ufffd[2J"
    # Nothing else is changed.
    again = json.loads(plain)
    assert document["agents"][1:] == again["agents"][1:]
    assert document["agents"][0]["step"] == again["agents"][0]["step"]
    assert json.loads(plain) == json.loads(msgspec.json.encode(made(Synth(), hdr=True)))

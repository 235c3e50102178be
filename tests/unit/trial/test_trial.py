"""Trials: the schedule on made-up Samples, their results, and one of the guard in earnest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agenttop.collectors.procfs.energy import Energy
from agenttop.commands.trial_run import report
from agenttop.model.sample import Budget, Command, Effect, Host, IdleState
from agenttop.stats.rounds import MIN_ROUNDS
from agenttop.store.power import power
from agenttop.store.store import Store
from agenttop.store.toggles import SETTLE_NS, History, attach, blocks, counts, deeper
from agenttop.trial.plan import LABELS, Plan
from agenttop.trial.trial import Result, Trial
from tests.support.engines import needs_bpf
from tests.support.loops import loop
from tests.support.policy_rig import machine_lock, needs_qos, needs_root
from tests.support.synth import SECOND_NS, Synth


class Bench:
    """An engine of made-up Samples, a store, and a trial that switches the engine's policies."""

    def __init__(self, plan: Plan, on: tuple[str, ...] = (), seed: int = 1) -> None:
        self.synth = Synth(seed=seed)
        self.store = Store(clock=lambda: self.synth.t_ns)
        self.commands: list[Command] = []
        for name in on:
            self.synth.toggle(name)
        for _ in range(3):
            self.store.feed(self.synth.sample())
        self.trial = Trial(plan, self.synth.policies, self.send)
        #: Does the engine obey?
        self.obeys = True

    def send(self, command: Command) -> None:
        self.commands.append(command)
        if self.obeys and (self.state(command.name) == "on") != command.on:
            self.synth.toggle(command.name, command.trial)

    def state(self, name: str) -> str:
        return next(p.state for p in self.synth.policies if p.name == name)

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            sample = self.synth.sample()
            self.store.feed(sample)
            self.trial.take(sample, self.store.history.moments[-1])

    def finish(self) -> Result:
        for _ in range(2000):
            if self.trial.finished:
                break
            self.tick()
        assert self.trial.finished
        names = {a.counters.id: a.profile.name for a in self.synth.agents}
        return self.trial.result(names, self.store.host)


def effects(bench: Bench) -> dict[str, list[Effect]]:
    """As the JSON has them."""
    snapshot = bench.store.snapshot()
    assert snapshot is not None
    shown = attach(snapshot, bench.store.history.effect)
    return {policy.name: policy.effects for policy in shown.policies}


def test_what_a_trial_switched_is_no_toggle_of_the_operators() -> None:
    bench = Bench(Plan(("guard",), rounds=1, block_s=2, settle_s=1))
    bench.finish()
    bench.tick(10)
    last = bench.store.markers[-1].t_ns
    assert any(c.on for c in bench.commands)
    assert all(found == [] for found in effects(bench).values())
    # The operator's own toggle after it is told, from what lies behind the trial alone.
    bench.synth.toggle("guard")
    bench.tick(12)
    effect, *_ = effects(bench)["guard"]
    assert effect.on
    assert effect.steps_before > 0
    first = bench.store.history.toggles["guard"].before[0]
    assert first.start_ns >= last + SETTLE_NS


def test_the_operators_toggle_before_a_trial_stays_and_ends_with_it() -> None:
    bench = Bench(Plan(("guard",), rounds=1, block_s=2, settle_s=1))
    bench.synth.toggle("home")
    bench.synth.toggle("guard")
    bench.tick(6)
    before = effects(bench)["guard"][0].since_ns
    bench.trial = Trial(bench.trial.plan, bench.synth.policies, bench.send)
    bench.finish()
    bench.tick(3)
    assert effects(bench)["guard"][0].since_ns == before
    steps = effects(bench)["home"][0].steps_after
    bench.tick(20)
    assert effects(bench)["home"][0].steps_after == steps


# --------------------------------------------------------------------------- the order


def test_each_round_has_every_block_once_in_an_order_of_chance() -> None:
    order = Plan(("guard",), rounds=200, seed=1).order
    assert all(sorted(labels) == sorted(LABELS) for labels in order)
    assert len({tuple(labels) for labels in order}) == 6
    for place in range(3):
        first = sum(labels[place] == "on" for labels in order)
        assert 40 < first < 95  # 67 expected


def test_a_seed_repeats_an_order_and_another_one_does_not() -> None:
    assert Plan(("guard",), seed=7).order == Plan(("guard",), seed=7).order
    assert Plan(("guard",), seed=7).order != Plan(("guard",), seed=8).order
    assert len({Plan(("guard",)).seed for _ in range(5)}) > 1


# --------------------------------------------------------------------------- the schedule


def test_a_trial_finds_what_a_policy_does_and_what_it_costs() -> None:
    result = Bench(Plan(("guard",), rounds=8, seed=3)).finish()
    assert (result.rounds, result.ended) == (8, None)
    by_name = {agent.name: agent for agent in result.agents}
    retriever = by_name["retriever"]
    found = retriever.measures["slowpath"]["p50"]
    assert retriever.verdict == "better"
    assert found.verdict == "better"
    assert found.ratio == pytest.approx(0.69, abs=0.05)
    assert retriever.control["slowpath"]["p50"].ratio == pytest.approx(1, abs=0.05)
    assert retriever.control_verdict == "no difference"
    # Three seconds, eight rounds, 3,410 steps a second.
    assert retriever.steps_on == pytest.approx(24 * 3410, rel=0.05)
    assert by_name["voice"].measures["slowpath"]["p999"].missing_steps > 0
    assert result.cost.idle_before["0"] == pytest.approx(0.4)
    assert result.cost.idle_after["0"] == 0
    assert result.cost.watts_before is None
    assert result.cost.watts_missing


def test_what_settles_and_what_is_off_do_not_count_as_on() -> None:
    bench = Bench(Plan(("guard",), rounds=2, block_s=3, settle_s=2, seed=1))
    bench.finish()
    toggles = [marker.t_ns for marker in bench.store.markers]
    for label, found in bench.trial.by_label(2).items():
        assert len(found) == 2
        for block in found:
            assert sum(each.length_ns for each in block) == 3 * SECOND_NS
            for each in block:
                assert all(
                    not (toggle < each.end_ns and each.start_ns < toggle + 1.9 * SECOND_NS)
                    for toggle in toggles
                )
                # The guard closes the deeper idle states in the made-up engine.
                assert (sum(each.idle_ns.values()) == 0) == (label == "on")


@pytest.mark.parametrize("on", [(), ("guard",)])
def test_afterwards_a_policy_is_as_it_was(on: tuple[str, ...]) -> None:
    bench = Bench(Plan(("guard", "home"), rounds=1, seed=1), on)
    bench.finish()
    assert bench.state("guard") == ("on" if on else "off")
    assert bench.state("home") == "off"


def test_policies_of_one_trial_are_switched_together() -> None:
    bench = Bench(Plan(("guard", "home"), rounds=2, seed=1))
    bench.finish()
    pairs = [(c.name, c.on) for c in bench.commands]
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert {one[0], other[0]} == {"guard", "home"}
        assert one[1] == other[1]


def test_a_cancelled_trial_keeps_its_whole_rounds() -> None:
    bench = Bench(Plan(("guard",), rounds=8, seed=1), ("guard",))
    while bench.trial.rounds_done < 7:
        bench.tick()
    bench.tick(2)
    bench.trial.cancel()
    assert bench.state("guard") == "on"
    result = bench.finish()
    assert (result.rounds, result.rounds_planned, result.ended) == (7, 8, "cancelled")
    assert next(a for a in result.agents if a.name == "retriever").verdict == "better"


def test_a_trial_without_a_whole_round_says_so_and_claims_nothing() -> None:
    bench = Bench(Plan(("guard",), rounds=8, seed=1))
    bench.tick(2)
    bench.trial.cancel()
    result = bench.finish()
    assert result.rounds == 0
    assert {agent.verdict for agent in result.agents} == {"not enough"}
    assert "no verdict" in "\n".join(report(result))


def test_somebody_else_switching_ends_it() -> None:
    bench = Bench(Plan(("guard",), rounds=8, seed=1))
    while bench.trial.label != "on":
        bench.tick()
    bench.tick(3)
    bench.synth.toggle("guard")
    bench.tick(2)
    assert bench.trial.ended == "somebody else switched the policy"


def test_a_policy_that_cannot_be_had_ends_it() -> None:
    bench = Bench(Plan(("floor",), rounds=8, seed=1))
    bench.tick()
    assert bench.trial.ended == "floor: no cpufreq driver"
    bench = Bench(Plan(("nonsense",), rounds=8, seed=1))
    bench.tick()
    assert bench.trial.ended == "the engine has no policy nonsense"


def test_a_policy_that_does_not_switch_ends_it() -> None:
    bench = Bench(Plan(("guard",), rounds=1, seed=1))
    bench.obeys = False
    bench.tick(40)
    assert bench.trial.ended == "the policy did not go on"


def test_progress_rises_to_the_end() -> None:
    bench = Bench(Plan(("guard",), rounds=2, seed=1))
    seen = [bench.trial.progress]
    while not bench.trial.finished:
        bench.tick()
        seen.append(bench.trial.progress)
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert bench.trial.seconds_left == 0


def test_the_text_has_every_figure_and_hostile_names_as_text() -> None:
    bench = Bench(Plan(("guard",), rounds=MIN_ROUNDS, seed=3))
    bench.synth.agents[0].profile = type(bench.synth.agents[0].profile)(
        **{
            field: getattr(bench.synth.agents[0].profile, field)
            for field in bench.synth.agents[0].profile.__dataclass_fields__
            if field != "name"
        },
        name="\x1b[31mred\n",
    )
    text = "\n".join(report(bench.finish()))
    assert "\x1b" not in text
    for part in ("seed 3", "slow p99.9", "step p50", "deeper idle", "power", "N/A", "better"):
        assert part in text


# --------------------------------------------------------------------------- history


def toggled(seconds_before: int, seconds_after: int) -> tuple[Synth, Store]:
    synth = Synth()
    store = Store(clock=lambda: synth.t_ns)
    for _ in range(seconds_before + 1):
        store.feed(synth.sample())
    synth.toggle("guard")
    for _ in range(seconds_after):
        store.feed(synth.sample())
    return synth, store


def test_the_tick_of_the_toggle_and_the_settling_time_belong_to_neither_side() -> None:
    _, store = toggled(10, 8)
    toggle = store.history.toggles["guard"]
    assert len(toggle.before) == 10
    assert all(each.end_ns <= toggle.t_ns for each in toggle.before)
    assert all(each.start_ns >= toggle.t_ns + SETTLE_NS for each in toggle.after)
    assert len(toggle.after) == 6


def test_the_sides_end_at_the_toggles_of_other_policies() -> None:
    synth, store = toggled(10, 8)
    synth.toggle("home")
    for _ in range(8):
        store.feed(synth.sample())
    guard, home = store.history.toggles["guard"], store.history.toggles["home"]
    assert len(guard.after) == 6 + 1  # and the tick that ends before the toggle is told
    assert all(each.start_ns >= guard.t_ns + SETTLE_NS for each in home.before)
    assert all(each.end_ns <= home.t_ns for each in home.before)


def test_counts_of_a_moment_are_those_of_the_agents_steps() -> None:
    synth, store = toggled(3, 0)
    for agent in synth.agents:
        found = counts(list(store.history.moments), agent.counters.id)
        steps = agent.counters.steps
        first = 0 if not store.history.moments else found["step"].sum()
        assert first <= steps
        # Steps without any slowpath count as 0 in it: both have every step.
        assert found["step"].sum() == found["slowpath"].sum()
    assert counts(list(store.history.moments), 999)["step"].sum() == 0


def test_short_ticks_are_taken_together() -> None:
    _, store = toggled(9, 0)
    moments = list(store.history.moments)
    found = counts(moments, 1)["step"]
    assert len(blocks(found, moments)) == 9
    short = [
        type(each)(each.start_ns // 4, each.end_ns // 4, each.keys, each.added, {}, {}, {})
        for each in moments
    ]
    merged = blocks(found, short)
    assert len(merged) == 2
    assert merged.sum() == found.sum()


def test_the_snapshot_gets_the_effects_of_all_agents() -> None:
    _, store = toggled(10, 8)
    snapshot = store.snapshot()
    assert snapshot is not None
    made = attach(snapshot, store.history.effect)
    effects = {policy.name: policy.effects for policy in made.policies}
    assert [effect.agent for effect in effects["guard"]] == [1, 2, 3, 4, 5]
    assert effects["home"] == []
    assert all(not policy.effects for policy in snapshot.policies)
    one = effects["guard"][1].measures["slowpath"]["p50"]
    assert one.high is not None
    assert one.high < 1
    assert History().effect("guard", 1) is None


# --------------------------------------------------------------------------- what it costs


def test_deeper_idle_is_all_but_the_shallowest_state() -> None:
    _, store = toggled(5, 5)
    toggle = store.history.toggles["guard"]
    assert deeper(toggle.before) == {"0": pytest.approx(0.4), "1": pytest.approx(0.4)}
    assert deeper(toggle.after) == {"0": 0.0, "1": 0.0}
    assert deeper([]) == {}


def test_tokens_are_those_spent_on_the_side_that_was_on() -> None:
    synth, store = toggled(5, 0)
    guard = synth.policies[0]
    for spent in (0.0, 10.0, 30.0, 60.0, 5.0):  # the last one is another bucket
        guard.budgets = {"2": Budget(tokens=1, capacity=2, spent=spent), "nonsense": Budget(1, 2)}
        store.feed(synth.sample())
    effect = store.history.effect("guard", 2)
    assert effect is not None
    # The first tick holds the toggle, the second settles.
    assert effect.cost.tokens == 20 + 30 + 5
    other = store.history.effect("guard", 1)
    assert other is not None
    assert other.cost.tokens is None


class Part:
    """A second."""

    length_ns = SECOND_NS

    def __init__(self, energy: dict[str, int], states: dict[int, list[int]]) -> None:
        self.energy_uj = energy
        self.states_ns = states


def test_power_is_measured_or_estimated_or_missing() -> None:
    host = Host(name="", kernel="", cpus=1, level="lite", mode="tp_btf")
    measured = power([Part({"package-0": 5_000_000}, {}), Part({"package-0": 7_000_000}, {})], host)
    assert measured == (6.0, False, None)
    host.missing = {"power": "no RAPL"}
    assert power([Part({}, {0: [1, 2]})], host) == (None, False, "no RAPL")
    host.idle_states = [IdleState("C1", 1, 1, 1000), IdleState("C6", 99, 99, 10)]
    half = [SECOND_NS // 2, SECOND_NS // 2]
    estimate = power([Part({}, {0: half, 1: half})], host)
    assert estimate.estimated
    assert estimate.watts == pytest.approx(1.01)
    assert power([], host).watts is None


def test_energy_counters_go_on_when_they_wrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTTOP_SYS", str(tmp_path))
    assert Energy().missing == "no RAPL package in /sys/class/powercap"
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"),
                       ("intel-rapl:1", "psys")):  # fmt: skip
        folder = tmp_path / "class/powercap" / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text("900\n")
        (folder / "max_energy_range_uj").write_text("999\n")
    energy = Energy()
    assert energy.missing is None
    assert energy.read() == {"package-0": 0}
    counter = tmp_path / "class/powercap/intel-rapl:0/energy_uj"
    counter.write_text("950\n")
    assert energy.read() == {"package-0": 50}
    counter.write_text("10\n")
    assert energy.read() == {"package-0": 110}


# --------------------------------------------------------------------------- in earnest


def start(state: Path, *arguments: object, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "agenttop", "policy", "trial", *map(str, arguments)],
        env={**os.environ, "AGENTTOP_STATE": str(state), "PYTHONUNBUFFERED": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def limits() -> list[str]:
    folder = Path("/sys/devices/system/cpu")
    return [path.read_text() for path in sorted(folder.glob("cpu*/power/pm_qos_resume_latency_us"))]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nonsense",), "no policy or bundle 'nonsense'"),
        (("guard", "--rounds", "0"), "0 is not within 1 and 1000"),
        (("guard", "--block", "x"), "invalid number value"),
        (("guard", "--agent", "nope"), "nope"),
        (("guard", "--set", "guard.nope=1"), "guard has no parameter 'nope'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    process = start(tmp_path / "state", *arguments)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert text in err


@needs_root
@needs_qos
@pytest.mark.alone
def test_the_guard_in_earnest(tmp_path: Path) -> None:
    needs_bpf()
    before = limits()
    with machine_lock(), loop("--source", "timer", "--for", 60) as agent:
        agent.go()
        process = start(
            tmp_path / "state", "guard", "--rounds", 2, "--block", 0.6, "--settle", 0.3,
            "--seed", 5, "--json", "--agent", f"pid:{agent.pid}",
        )  # fmt: skip
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "seed 5" in err
    result = json.loads(out)
    assert (result["policies"], result["rounds"], result["ended"]) == (["guard"], 2, None)
    (found,) = result["agents"]
    assert found["steps_on"] > 300
    assert found["verdict"] == "not enough"  # of rounds
    assert found["measures"]["slowpath"]["p50"]["before_ns"] > 0
    # The CPUs that the loop uses no longer sleep as they did.
    before_s, after_s = result["cost"]["idle_before"], result["cost"]["idle_after"]
    assert min(after_s[cpu] - before_s[cpu] for cpu in after_s) < 0
    assert limits() == before


@needs_root
@needs_qos
@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_everything_is_given_back(tmp_path: Path, number: int) -> None:
    needs_bpf()
    before = limits()
    with machine_lock(), loop("--source", "timer", "--for", 60) as agent:
        agent.go()
        process = start(
            tmp_path / "state", "guard", "--rounds", 9, "--block", 0.6, "--settle", 0.3,
            "--agent", f"pid:{agent.pid}",
        )  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "round 2" in line:
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number
    else:
        assert process.returncode == 1
        assert "1 rounds of 9 (cancelled)" in out
    deadline = time.monotonic() + 2
    while limits() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert limits() == before


@needs_root
def test_a_bundle_is_tried_as_one(tmp_path: Path) -> None:
    needs_bpf()
    bundles = tmp_path / "config/agenttop/policies"
    bundles.mkdir(parents=True)
    # A machine without cpufreq and uclamp has no floor: it is left out, and said so.
    (bundles / "both.yaml").write_text("title: t\npolicies: {home: {}, vfs: {}, floor: {}}\n")
    process = start(
        tmp_path / "state", "both", "--block", 0.5, "--agent", "comm:^no-such-agent$",
        XDG_CONFIG_HOME=str(tmp_path / "config"),
    )  # fmt: skip
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "agenttop: home + vfs" in err
    assert "no agents found" in err.splitlines()[-1]


@needs_root
def test_a_trial_without_agents_is_an_error(tmp_path: Path) -> None:
    needs_bpf()
    process = start(tmp_path / "state", "guard", "--block", 0.5, "--agent", "comm:^no-such-agent$")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no agents found" in err.splitlines()[-1]

"""Snapshots agree with the steps that were really made, whatever comes and goes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenttop.model.histogram_layout import LAST_NS
from agenttop.model.sample import (
    AgentCounters,
    Exemplar,
    Histogram,
    Host,
    IdleState,
    PolicyStatus,
    Sample,
    Trust,
)
from agenttop.model.snapshot import Agent, Snapshot
from agenttop.model.vocabulary import MEASURES, SLOWPATH_STAGES, STAGES
from agenttop.render.snapshot_text import report
from agenttop.stats import histogram
from agenttop.store.store import EXEMPLARS, MAX_GONE, Store
from agenttop.widgets.header import trust_pieces
from tests.support.synth import SECOND_NS, Synth, pack

HOST = Host("h", "6.18", 2, "full", "tp_btf", idle_states=[IdleState("POLL", 0, 0)])
Chain = tuple[int, ...]


@dataclass
class Toy:
    """An engine whose every step a test decides: chains are tuples of STAGES' ns."""

    t_ns: int = 0
    seq: int = 0
    measured: Sequence[bool] = (True,) * len(STAGES)
    agents: dict[int, AgentCounters] = field(default_factory=dict)
    counts: dict[int, histogram.Counts] = field(default_factory=dict)
    sent: dict[int, histogram.Counts] = field(default_factory=dict)

    def tick(
        self,
        steps: dict[int, list[Chain]],
        full: bool = False,
        after_ns: int = SECOND_NS,
        policies: list[PolicyStatus] | None = None,
        exemplars: list[Exemplar] | None = None,
        trust: Trust | None = None,
    ) -> Sample:
        """The agents in ``steps`` are there, and made those steps."""
        self.t_ns += after_ns
        for gone in self.agents.keys() - steps.keys():
            del self.agents[gone], self.counts[gone], self.sent[gone]
        full = full or self.seq == 0
        sent = [self._advance(agent, chains, full) for agent, chains in steps.items()]
        self.seq += 1
        return Sample(
            t_ns=self.t_ns, wall_s=self.t_ns / 1e9, seq=self.seq, full=full,
            host=HOST if self.seq == 1 else None, agents=sent, policies=policies or [],
            exemplars=exemplars or [], trust=trust or Trust(),
        )  # fmt: skip

    def _advance(self, number: int, chains: list[Chain], full: bool) -> AgentCounters:
        if number not in self.agents:
            self.agents[number] = AgentCounters(number, f"a{number}", "r", 100 + number, threads=1)
            self.counts[number] = histogram.empty(len(MEASURES))
            self.sent[number] = histogram.empty(len(MEASURES))
        old = self.agents[number]
        counts, sent = self.counts[number], self.sent[number]
        for chain in chains:
            slow = slowpath(chain)
            for i, value in enumerate((*chain, sum(chain), slow)):
                measured = i >= len(STAGES) or self.measured[i]
                # The kernel side does not count the zeros of these four.
                if measured and (
                    value or MEASURES[i] not in ("irq", "softirq", "ipi", "idle_exit")
                ):
                    histogram.record(counts[i], value)
        packed = {
            name: part
            for i, name in enumerate(MEASURES)
            if (part := pack(sent[i], counts[i], full)) is not None
        }
        sent[:] = counts
        sums = [sum(chain[i] for chain in chains) for i in range(len(STAGES))]
        self.agents[number] = AgentCounters(
            number, old.name, "r", old.pid, threads=1, threads_tracked=1,
            steps=old.steps + len(chains),
            stage_sum_ns=[
                (before or 0) + more if here else None
                for before, more, here in zip(old.stage_sum_ns, sums, self.measured, strict=True)
            ],
            step_sum_ns=old.step_sum_ns + sum(sums),
            slowpath_sum_ns=old.slowpath_sum_ns + sum(map(slowpath, chains)),
            histograms=packed,
            cpu_steps={"0": old.steps + len(chains)},
        )  # fmt: skip
        return self.agents[number]


def slowpath(chain: Chain) -> int:
    return sum(v for name, v in zip(STAGES, chain, strict=True) if name in SLOWPATH_STAGES)


def fresh(window_s: float = 30) -> Store:
    return Store(window_ns=int(window_s * 1e9), clock=lambda: 0)


def shot(store: Store, window_ns: int | None = None, since_ns: int | None = None) -> Snapshot:
    snapshot = store.snapshot(window_ns, since_ns)
    assert snapshot is not None
    return snapshot


def only(snapshot: Snapshot) -> Agent:
    (agent,) = snapshot.agents
    return agent


def telescopes(snapshot: Snapshot) -> bool:
    return all(
        sum(stat.sum_ns for stat in agent.stages.values() if stat) == agent.step.sum_ns
        and sum(s.sum_ns for n in SLOWPATH_STAGES if (s := agent.stages[n]))
        == agent.slowpath.sum_ns
        for agent in snapshot.agents
    )


CHAINS = st.lists(
    st.tuples(*[st.one_of(st.just(0), st.integers(0, 5_000_000))] * len(STAGES)), max_size=6
)
TICKS = st.lists(
    st.tuples(
        st.dictionaries(st.integers(1, 4), CHAINS, max_size=4),
        st.booleans(),
        st.integers(SECOND_NS // 2, 2 * SECOND_NS),
        st.sampled_from(["", "", "", "restart"]),
    ),
    min_size=2,
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(TICKS)
def test_snapshots_tell_the_steps_that_were_made(
    ticks: list[tuple[dict[int, list[Chain]], bool, int, str]],
) -> None:
    """Against a list of every step with its time; ids are not used twice in a run."""
    toy, store = Toy(), fresh(window_s=5)
    made: list[tuple[int, int, Chain]] = []  # (end of the tick, agent, chain)
    ids: dict[int, int] = {}
    fresh_id = itertools.count(1)
    bounds: list[int] = []
    for steps, full, after, what in ticks:
        if what:
            toy = Toy(t_ns=toy.t_ns)
            made, bounds = [], []
        ids = {n: ids[n] if n in ids else next(fresh_id) for n in steps}
        chosen = {ids[n]: chains for n, chains in steps.items()}
        store.feed(toy.tick(chosen, full=full, after_ns=after))
        if bounds:  # the first Sample is the base of all that follows
            made += [(toy.t_ns, agent, c) for agent, chains in chosen.items() for c in chains]
        bounds.append(toy.t_ns)
        snapshot = shot(store)
        start = snapshot.t_ns - snapshot.interval_ns
        assert start in bounds
        assert snapshot.t_ns == toy.t_ns
        assert telescopes(snapshot)
        inside = [(agent, chain) for t, agent, chain in made if t > start]
        found = {agent.id: agent for agent in snapshot.agents}
        assert set(chosen) <= set(found)
        for number, agent in found.items():
            mine = [chain for a, chain in inside if a == number]
            assert (agent.steps, agent.step.count) == (len(mine), len(mine))
            assert agent.step.sum_ns == sum(map(sum, mine))
            assert agent.alive == (number in chosen)
            for i, name in enumerate(STAGES):
                stat = agent.stages[name]
                assert stat is not None
                assert stat.count == len(mine)
                assert stat.sum_ns == sum(chain[i] for chain in mine)
                assert (stat.p50_ns is None) == (len(mine) < 2)
                if stat.p50_ns is not None:
                    exact = sorted(chain[i] for chain in mine)[(len(mine) + 1) // 2 - 1]
                    assert abs(stat.p50_ns - exact) <= exact / 32 + 1
        assert {a for a, _ in inside} <= set(found)


def test_nothing_before_the_first_sample_and_no_rates_with_one() -> None:
    store, synth = fresh(), Synth()
    assert store.snapshot() is None
    store.feed(synth.sample())
    snapshot = shot(store)
    assert snapshot.interval_ns == 0
    assert [agent.steps for agent in snapshot.agents] == [0] * 5
    assert all(agent.step.p99_ns is None and agent.steps_per_s == 0 for agent in snapshot.agents)
    assert snapshot.cpus[0].busy_ratio is None


def test_rates_come_from_measured_time() -> None:
    toy, store = Toy(), fresh()
    chain = (1,) * len(STAGES)
    store.feed(toy.tick({1: []}))
    store.feed(toy.tick({1: [chain] * 30}, after_ns=3 * SECOND_NS))
    assert only(shot(store)).steps_per_s == pytest.approx(10)


def test_the_window_slides_and_shorter_ones_can_be_asked_for() -> None:
    toy, store = Toy(), fresh(window_s=5)
    for value in range(10):
        store.feed(toy.tick({1: [(value * 1000,) + (0,) * 7]}))
    assert shot(store).interval_ns == 5 * SECOND_NS
    assert only(shot(store)).steps == 5
    assert only(shot(store)).step.sum_ns == (5 + 6 + 7 + 8 + 9) * 1000
    assert only(shot(store, window_ns=2 * SECOND_NS)).step.sum_ns == (8 + 9) * 1000
    # Longer than what is kept: the interval says what it is.
    assert shot(store, window_ns=60 * SECOND_NS).interval_ns == 5 * SECOND_NS


def test_jitter_does_not_make_the_window_flicker() -> None:
    toy, store = Toy(), fresh(window_s=5)
    for i in range(20):
        store.feed(toy.tick({1: []}, after_ns=SECOND_NS + (3_000_000 if i % 2 else -3_000_000)))
        if i >= 5:
            assert round(shot(store).interval_ns / 1e9) == 5


def test_a_delay_longer_than_the_window_still_shows_the_last_tick() -> None:
    toy, store = Toy(), fresh(window_s=5)
    store.feed(toy.tick({1: []}))
    store.feed(toy.tick({1: [(1,) * 8] * 7}, after_ns=60 * SECOND_NS))
    assert only(shot(store)).steps == 7


def test_since_the_last_toggle_holds_nothing_from_before() -> None:
    toy, store = Toy(), fresh(window_s=3)
    off = PolicyStatus("guard", "g", "", "off")
    store.feed(toy.tick({1: []}, policies=[off]))
    for _ in range(5):
        store.feed(toy.tick({1: [(9_000,) * 8]}, policies=[off]))
    toggled = toy.t_ns + SECOND_NS // 2
    on = PolicyStatus("guard", "g", "", "on", since_ns=toggled)
    store.feed(toy.tick({1: [(9_000,) * 8]}, policies=[on]))
    assert [(m.t_ns, m.policy, m.on) for m in store.markers] == [(toggled, "guard", True)]
    assert shot(store, since_ns=toggled).interval_ns == 0
    for _ in range(8):  # longer than the window
        store.feed(toy.tick({1: [(100,) * 8]}, policies=[on]))
    since = shot(store, since_ns=toggled)
    assert since.interval_ns == 8 * SECOND_NS
    assert only(since).step.sum_ns == 8 * 800
    assert only(since).stages["wait"].max_ns < 9_000
    assert only(shot(store)).steps == 3


def test_a_toggle_is_marked_once() -> None:
    synth, store = Synth(), fresh()
    for i in range(12):
        if i in (4, 8):
            synth.toggle("guard")
        store.feed(synth.sample())
    assert [m.on for m in store.markers] == [True, False]
    assert [event.kind for event in store.events] == ["policy", "policy"]


def test_the_long_interval_outlasts_the_window() -> None:
    toy, store = Toy(), fresh(window_s=2)
    store.feed(toy.tick({1: [(5,) * 8]}))
    since = store.start_since()
    for _ in range(9):
        store.feed(toy.tick({1: [(1,) * 8]}))
    assert only(shot(store, since_ns=since)).steps == 9
    assert shot(store, since_ns=since).interval_ns == 9 * SECOND_NS


def test_an_ended_agent_stays_until_its_steps_leave_the_window() -> None:
    toy, store = Toy(), fresh(window_s=4)
    store.feed(toy.tick({1: [], 2: []}))
    store.feed(toy.tick({1: [(1,) * 8], 2: [(1,) * 8]}))
    store.start_since()
    for i in range(6):
        store.feed(toy.tick({1: [(1,) * 8]}))
        found = {agent.id: agent.alive for agent in shot(store).agents}
        assert found == ({1: True, 2: False} if i < 3 else {1: True})


def test_a_new_agents_rate_is_over_the_time_it_was_there() -> None:
    toy, store = Toy(), fresh()
    for _ in range(11):
        store.feed(toy.tick({1: []}))
    store.feed(toy.tick({1: [], 2: [(1,) * 8] * 50}))
    store.feed(toy.tick({1: [], 2: [(1,) * 8] * 50}))
    new = next(agent for agent in shot(store).agents if agent.id == 2)
    assert (new.steps, new.steps_per_s) == (100, pytest.approx(50))


def test_memory_stays_bounded_with_thousands_of_short_agents() -> None:
    toy, store = Toy(), fresh(window_s=30)
    for i in range(60):
        store.feed(toy.tick({n: [(n,) * 8] for n in range(i * 20, i * 20 + 20)}))
    snapshot = shot(store)
    assert len(snapshot.agents) <= 20 + MAX_GONE
    assert store._window.slots <= 256
    assert telescopes(snapshot)
    assert all(agent.steps == 1 and agent.step.sum_ns == 8 * agent.id for agent in snapshot.agents)


def test_a_burst_of_agents_gives_back_what_it_took() -> None:
    toy, store = Toy(), fresh(window_s=5)
    store.feed(toy.tick({0: []}))
    store.feed(toy.tick({n: [(9,) * 8] for n in range(3000)}))
    assert store._window.slots >= 3000
    for _ in range(10):
        store.feed(toy.tick({0: [(9,) * 8]}))
    assert store._weight == sum(tick.weight for tick in store._ticks), "or ticks are joined early"
    assert store._window.slots <= 4 * MAX_GONE
    assert len(store._current.counts) <= (MAX_GONE + 1) * len(MEASURES)
    assert telescopes(shot(store))


def test_an_agent_that_makes_no_step_takes_next_to_nothing() -> None:
    toy, store = Toy(), fresh()
    for _ in range(5):
        store.feed(toy.tick({n: [] for n in range(50)}))
    assert len(store._current.counts) == len(store._window.counts) == 0
    points = {id(point) for n in range(50) for point in store.trend(n)}
    assert len(points) == 4


def test_ticks_that_take_too_much_are_joined_and_the_sums_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agenttop.store.store.MAX_TICKS", 40_000)
    toy, store = Toy(), fresh(window_s=20)
    for second in range(40):
        store.feed(toy.tick({n: [(second * 100 + n,) * 8] for n in range(5)}))
        joined = shot(store)
        seconds = joined.interval_ns // SECOND_NS
        # The window is as long as its ticks let it be.
        assert min(second, 16) <= seconds <= 24
        assert joined.trust.steps == 5 * seconds
        assert telescopes(joined)
    assert len(store._ticks) <= 15


def test_the_steps_of_ended_agents_that_are_not_kept_stay_in_the_totals() -> None:
    toy, store = Toy(), fresh(window_s=10)
    store.feed(toy.tick({0: []}))
    store.start_since()
    for i in range(20):
        store.feed(toy.tick({0: [], **{n: [(5,) * 8] * 2 for n in range(i * 20 + 1, i * 20 + 21)}}))
    whole, rolling, short = shot(store, since_ns=0), shot(store), shot(store, window_ns=SECOND_NS)
    assert [snapshot.trust.steps for snapshot in (whole, rolling, short)] == [800, 400, 40]
    for snapshot in (whole, rolling, short):
        shown = sum(agent.steps or 0 for agent in snapshot.agents)
        assert snapshot.trust.steps == shown + snapshot.trust.steps_of_others
    assert short.trust.steps_of_others == 0
    told = f"800 steps (40.0/s), {whole.trust.steps_of_others} of them of ended agents"
    assert told in " ".join(report(whole).split())
    # With the window they go.
    for _ in range(10):
        store.feed(toy.tick({0: []}))
    assert (shot(store).trust.steps, shot(store).trust.steps_of_others) == (0, 0)


def test_what_is_longer_than_any_bucket_is_told_as_a_lower_bound_and_is_no_loss() -> None:
    toy, store = Toy(), fresh()
    store.feed(toy.tick({1: []}, trust=Trust(drops={"overflow": 0})))
    long_ns = 300 * SECOND_NS
    chains = [(long_ns, *(10,) * 7)] * 900 + [(10,) * 8] * 300
    store.feed(toy.tick({1: chains}, trust=Trust(drops={"overflow": 1_800})))
    snapshot = shot(store)
    agent = only(snapshot)
    wait = agent.stages["wait"]
    assert wait is not None
    for stat in (agent.step, wait):
        assert (stat.p50_ns, stat.p99_ns, stat.max_ns) == (LAST_NS,) * 3
        assert stat.over_range == ["p50_ns", "p99_ns", "p999_ns", "max_ns"]
    assert wait.sum_ns == 900 * long_ns + 300 * 10
    assert agent.slowpath.over_range == []
    assert (snapshot.trust.lost, snapshot.trust.drops) == (0, {"overflow": 1_800})
    lines = report(snapshot).splitlines()
    (row,) = [line.split() for line in lines if line.startswith("  step ")]
    assert row == ["step", *[">67.6s"] * 4]
    assert "lost 0  " in "  ".join(lines)
    pieces = trust_pieces(snapshot.trust, HOST, 0, False)
    words = "".join(text for _, spans in pieces for text, _ in spans)
    assert "drops 0" in words
    assert "overflow" not in words


def test_few_steps_that_are_longer_than_any_bucket() -> None:
    toy, store = Toy(), fresh()
    store.feed(toy.tick({1: []}))
    store.feed(toy.tick({1: [(300 * SECOND_NS, *(10,) * 7)] * 20}))
    step = only(shot(store)).step
    assert (step.p50_ns, step.p99_ns, step.max_ns) == (LAST_NS, None, LAST_NS)
    assert step.over_range == ["p50_ns", "max_ns"]


def test_an_engine_started_again_begins_anew() -> None:
    synth, store = Synth(), fresh()
    for sample in synth.samples(5):
        store.feed(sample)
    synth.restart()
    store.feed(synth.sample())
    assert shot(store).interval_ns in (0, SECOND_NS)
    for sample in synth.samples(3):
        store.feed(sample)
    snapshot = shot(store)
    assert snapshot.interval_ns <= 4 * SECOND_NS
    assert telescopes(snapshot)
    rates = {agent.name: agent.steps_per_s for agent in snapshot.agents}
    assert rates["voice"] == pytest.approx(100, rel=0.3)


def test_one_agents_counters_that_go_back_are_a_new_agents() -> None:
    toy, store = Toy(), fresh()
    store.feed(toy.tick({1: []}))
    store.feed(toy.tick({1: [(10,) * 8] * 9}))
    for table in (toy.agents, toy.counts, toy.sent):
        table.pop(1)
    store.feed(toy.tick({1: [(20,) * 8] * 2}))
    found = {agent.alive: agent for agent in shot(store).agents}
    assert (found[True].steps, found[True].step.sum_ns) == (2, 2 * 160)
    assert (found[False].steps, found[False].step.sum_ns) == (9, 9 * 80)


def test_a_full_sample_makes_good_for_lost_ones() -> None:
    toy, store = Toy(), fresh()
    store.feed(toy.tick({1: []}))
    store.feed(toy.tick({1: [(1_000,) * 8]}))
    toy.tick({1: [(2_000,) * 8] * 3})  # never arrives
    store.feed(toy.tick({1: [(3_000,) * 8]}, full=True))
    agent = only(shot(store))
    assert (agent.steps, agent.step.count) == (5, 5)
    assert agent.step.sum_ns == 8 * (1_000 + 3 * 2_000 + 3_000)


def test_from_proc_to_bpf_the_counters_are_others() -> None:
    before, after = Synth(mode="procfs", cpus=2), Synth(cpus=2)
    store = fresh()
    for sample in before.samples(3):
        store.feed(sample)
    assert all(agent.steps is None for agent in shot(store).agents)
    after.t_ns, after.seq = before.t_ns, before.seq
    samples = after.samples(4)
    samples[0].host = after._host()
    for sample in samples:
        store.feed(sample)
    snapshot = shot(store)
    assert snapshot.host.mode == "tp_btf"
    assert all(agent.steps for agent in snapshot.agents)
    assert telescopes(snapshot)
    assert all(load.per_s >= 0 for cpu in snapshot.cpus for load in cpu.irqs.values())


def test_with_another_number_of_cpus_the_counters_are_others() -> None:
    before, after = Synth(cpus=2), Synth(cpus=3)
    store = fresh()
    for sample in before.samples(4):
        store.feed(sample)
    after.t_ns, after.seq = before.t_ns, before.seq
    samples = after.samples(4)
    samples[0].host = after._host()
    for sample in samples:
        store.feed(sample)
    snapshot = shot(store)
    assert len(snapshot.cpus) == 3
    assert store.started_ns == samples[0].t_ns, "what came before is another interval"
    assert telescopes(snapshot)
    assert all(load.per_s >= 0 for cpu in snapshot.cpus for load in cpu.irqs.values())


def test_what_a_level_does_not_measure_is_null_and_the_rest_adds_up() -> None:
    store, synth = fresh(), Synth(level="lite")
    for sample in synth.samples(4):
        store.feed(sample)
    snapshot = shot(store)
    assert all(agent.stages["return"] is None for agent in snapshot.agents)
    assert telescopes(snapshot)
    full = fresh()
    for sample in Synth(level="full").samples(4):
        full.feed(sample)
    assert all(agent.stages["return"] for agent in shot(full).agents)
    assert telescopes(shot(full))


def test_without_chains_nothing_pretends_to_be_zero() -> None:
    store = fresh()
    for sample in Synth(mode="procfs").samples(3):
        store.feed(sample)
    snapshot = shot(store)
    for agent in snapshot.agents:
        assert agent.steps is None
        assert agent.steps_per_s is None
        assert agent.unattributed is None
        assert agent.slowpath.p99_ns is None
        assert set(agent.stages.values()) == {None}
        assert agent.tail.stage is None
        assert agent.home_cpu is None
        assert agent.run_delay_ns == 7_000
        assert agent.cpu_ratio == pytest.approx(0.25, abs=0.2)
    assert snapshot.trust.steps is None
    assert snapshot.trust.unattributed_ratio is None
    assert snapshot.trust.coverage_ratio is None
    assert snapshot.cpus[0].irq.ratio is None
    assert snapshot.cpus[0].irq.per_s > 0


def test_chains_without_an_agent_are_no_steps_rather_than_unknown() -> None:
    store = fresh()
    for sample in Synth(agents=0).samples(3):
        store.feed(sample)
    trust = shot(store).trust
    assert (trust.steps, trust.steps_per_s, trust.unattributed_ratio) == (0, 0, None)


def test_schedstat_of_a_process_older_than_its_agent_does_not_count() -> None:
    toy, store = Toy(), fresh()
    store.feed(toy.tick({}))
    sample = toy.tick({1: []})
    sample.agents[0].run_ns = 3_600 * SECOND_NS
    sample.agents[0].run_delay_ns, sample.agents[0].timeslices = 10**12, 10**6
    store.feed(sample)
    assert only(shot(store)).cpu_ratio == 0


def test_the_slowest_steps_of_the_window_come_first() -> None:
    toy, store = Toy(), fresh(window_s=10)

    def exemplar(agent: int, slow: int) -> Exemplar:
        return Exemplar(agent, toy.t_ns + SECOND_NS - 1, 1, 0, "read", None, [5, slow] + [0] * 6)

    rng = np.random.default_rng(5)
    made: list[Exemplar] = []
    for _ in range(40):
        batch = [exemplar(a, int(rng.integers(1, 10**6))) for a in (1, 2) for _ in range(8)]
        made += batch
        store.feed(toy.tick({1: [], 2: []}, exemplars=batch))
        snapshot = shot(store)
        start = snapshot.t_ns - snapshot.interval_ns
        slow = [e.stages_ns[1] or 0 for e in snapshot.exemplars]
        assert slow == sorted(slow, reverse=True)
        if snapshot.interval_ns:
            for agent in (1, 2):
                best = sorted(
                    (e.stages_ns[1] or 0 for e in made if e.agent == agent and e.t_ns > start),
                    reverse=True,
                )
                shown = [e.stages_ns[1] for e in snapshot.exemplars if e.agent == agent]
                assert shown == best[:EXEMPLARS]


def test_the_trend_has_a_point_per_tick_and_an_end() -> None:
    toy = Toy()
    store = Store(history_s=5, clock=lambda: 0)
    store.feed(toy.tick({1: []}))
    for i in range(1, 12):
        chains = [(0, i * 1_000, 0, 0, 0, 0, 0, 0)] * 100 if i % 2 else []
        store.feed(toy.tick({1: chains}))
    points = list(store.trend(1))
    assert [p.t_ns // SECOND_NS for p in points] == [7, 8, 9, 10, 11, 12]
    assert [p.steps for p in points] == [0, 100, 0, 100, 0, 100]
    assert points[0].p99_ns is None
    assert points[-1].p50_ns == pytest.approx(11_000, rel=0.04)
    assert list(store.trend(99)) == []


def test_losses_and_own_cost_are_those_of_the_interval() -> None:
    toy, store = Toy(), fresh(window_s=2)
    trusts = [
        Trust({"ring_full": n * 3}, recursion_misses=n, self_ns=n * 10**7, bpf_ns=b)
        for n, b in ((1, None), (2, None), (3, 5 * 10**8), (4, 6 * 10**8))
    ]
    for n, trust in enumerate(trusts):
        store.set_view_cpu(n * 2 * 10**7)
        store.feed(toy.tick({1: []}, trust=trust))
    line = shot(store).trust
    assert line.drops == {"ring_full": 6}
    assert line.recursion_misses == 2
    assert line.lost == 8
    assert line.self_ratio == pytest.approx(0.03)
    # Only the tick over which it was measured at both ends counts.
    assert line.bpf_ratio == pytest.approx(0.1)
    assert line.coverage_ratio == 1


def test_the_age_of_a_sample_is_told_also_when_the_clocks_are_of_two_machines() -> None:
    now = [0]
    toy, store = Toy(t_ns=10**15), Store(clock=lambda: now[0])
    for _ in range(3):
        now[0] += SECOND_NS
        store.feed(toy.tick({1: []}))
    assert shot(store).trust.sample_age_ns == 0
    now[0] += 4 * SECOND_NS
    assert shot(store).trust.sample_age_ns == 4 * SECOND_NS


def test_a_cpu_that_goes_and_comes_back_does_no_harm() -> None:
    synth, store = Synth(cpus=3), fresh()
    for i, sample in enumerate(synth.samples(9)):
        if i in (3, 4, 5):
            sample.cpus = sample.cpus[:2]
        store.feed(sample)
        snapshot = shot(store)
        assert len(snapshot.cpus) == len(sample.cpus)
        for cpu in snapshot.cpus:
            assert cpu.busy_ratio is None or 0 <= cpu.busy_ratio <= 1
            assert 0 <= sum(state.ratio for state in cpu.idle) <= 1


def test_cpus_that_are_not_in_each_sample_are_told_between_their_readings() -> None:
    every, now_and_then = fresh(), fresh()
    synth, since = Synth(cpus=3), 0
    for i, sample in enumerate(synth.samples(13)):
        every.feed(copy.deepcopy(sample))
        since = sample.t_ns if i == 4 else since
        if i % 4:
            sample.cpus = []
        now_and_then.feed(sample)
        shown = shot(now_and_then)
        assert len(shown.cpus) == 3
        if i < 4:
            assert shown.cpus[0].busy_ratio is None
    expected = every.snapshot(since_ns=since)
    found = now_and_then.snapshot(since_ns=since)
    assert found is not None
    assert expected is not None
    for cpu, other in zip(found.cpus, expected.cpus, strict=True):
        assert (cpu.busy_ratio, cpu.irq, cpu.irqs) == (other.busy_ratio, other.irq, other.irqs)
        assert (cpu.idle, cpu.softirq) == (other.idle, other.softirq)
    # Within an interval that has no reading, the figures are those between the last two.
    short = now_and_then.snapshot(window_ns=SECOND_NS)
    assert short is not None
    assert [cpu.busy_ratio for cpu in short.cpus] != [None] * 3
    assert short.cpus[0].irq.per_s > 0


def test_a_cpu_that_comes_later_is_unknown_rather_than_idle() -> None:
    synth, store = Synth(cpus=2), fresh()
    for i, sample in enumerate(synth.samples(4)):
        if i == 0:
            sample.cpus = sample.cpus[:1]
        store.feed(sample)
    old, new = shot(store).cpus
    assert old.busy_ratio is not None
    assert (new.busy_ratio, new.irq.ratio) == (None, None)


def test_damaged_counters_do_no_harm() -> None:
    toy, store = Toy(), fresh()
    store.feed(toy.tick({1: []}))
    sample = copy.deepcopy(toy.tick({1: [(1,) * 8]}))
    agent = sample.agents[0]
    agent.steps = (1 << 64) - 1
    agent.stage_sum_ns = [1, 2, 3]
    agent.sources = [1] * 50
    agent.cpu_steps = {"zero": 4, "1": 5}
    agent.histograms["step"] = Histogram(b"\xff\xff\x01", b"\x00")
    agent.histograms["nonsense"] = Histogram(b"\x01\x00", b"\x01" + b"\x00" * 7)
    sample.idle_exit = {"x": Histogram(), "99": Histogram(b"\x01\x00", b"\x01" + b"\x00" * 7)}
    store.feed(sample)
    store.feed(toy.tick({1: [(1,) * 8]}))
    assert telescopes(shot(store))


def test_the_same_samples_give_the_same_snapshots() -> None:
    def run() -> list[Snapshot]:
        synth, store = Synth(seed=7), fresh()
        out = []
        for sample in synth.samples(5):
            store.feed(sample)
            out.append(shot(store))
        return out

    assert run() == run()

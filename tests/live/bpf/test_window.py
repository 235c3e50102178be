"""Windows in the kernel: opened by wake-ups, paid for, told once, over by themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.read.ring_buffer import Ring
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.stats.token_bucket import Bucket, Rates, Terms
from tests.support.loops import loop
from tests.support.tracing import VARIANTS, free_slot, load_variant

pytestmark = pytest.mark.bpf

WINDOW_NS = 2_000_000
#: A budget that is never empty.
AMPLE = Rates.of(Terms(capacity=1e6, refill_per_s=1e6))


@pytest.fixture(scope="module", params=VARIANTS)
def tracer(request: pytest.FixtureRequest) -> Iterator[Tracer]:
    tracer = load_variant(request.param)
    yield tracer
    tracer.close()


class Armed(NamedTuple):
    t: int
    cell: int
    slot: int


class Edges:
    """The ring of newly held cells; ``let_go`` as the guardian does."""

    def __init__(self, tracer: Tracer) -> None:
        wiring = tracer.windows.wiring
        self._ring = Ring(wiring.ring, wiring.pages)
        self._cells = tracer.windows._cells
        self._cells["told"] = 0
        self.take()

    def take(self) -> list[Armed]:
        return [
            Armed(*(int.from_bytes(record[i : i + 8], "little") for i in (0, 8, 16)))
            for record in self._ring.records()
        ]

    def let_go(self) -> None:
        self._cells["told"] = 0

    def close(self) -> None:
        self._ring.close()


@pytest.fixture
def edges(tracer: Tracer) -> Iterator[Edges]:
    edges = Edges(tracer)
    yield edges
    edges.close()


def fresh(tracer: Tracer, rates: Rates | None = None, floor: bool = False) -> int:
    slot = free_slot()
    tracer.clear(slot)
    if rates is not None:
        tracer.windows.open(slot, WINDOW_NS, rates, floor)
    return slot


def steps(tracer: Tracer, slot: int) -> int:
    return int(tracer.rows([slot])["steps"].sum())


def woken(tracer: Tracer, slot: int) -> int:
    """Steps whose wake-up was seen: some machines do not tell of each (switch_in_lost)."""
    return steps(tracer, slot) - int(tracer.rows([slot])["sources"][..., 0].sum())


def test_each_wake_up_opens_or_moves_on_a_window(tracer: Tracer, edges: Edges) -> None:
    slot = fresh(tracer, AMPLE)
    with loop("--interval-us", 1000, "--steps", 500) as one:
        tracer.assign({one.pid: slot}, {})
        one.run()
    opened = tracer.windows.read(slot, AMPLE)
    assert opened.bucket.grants >= woken(tracer, slot) >= 400
    assert opened.bucket.refusals == 0
    # Each millisecond moves a window of two on by one.
    assert opened.held_ns < 500 * 2 * WINDOW_NS
    # Nobody lets go, so each CPU is told of once at most, and of this agent.
    told = edges.take()
    assert 1 <= len(told) == len({edge.cell for edge in told})
    assert all(edge.slot == slot for edge in told)


def test_an_agent_without_a_window_has_none(tracer: Tracer, edges: Edges) -> None:
    slot = fresh(tracer)
    with loop("--interval-us", 1000, "--steps", 200) as one:
        tracer.assign({one.pid: slot}, {})
        one.run()
    assert steps(tracer, slot) >= 150
    opened = tracer.windows.read(slot, AMPLE)
    assert (opened.bucket.grants, opened.bucket.refusals, opened.held_ns) == (0, 0, 0)
    assert edges.take() == []


@pytest.mark.measures
def test_shut_windows_run_out(tracer: Tracer, edges: Edges) -> None:
    slot = fresh(tracer, AMPLE)
    with loop("--interval-us", 1000, "--for", 30) as one:
        tracer.assign({one.pid: slot}, {})
        one.go()
        deadline = time.monotonic() + 20
        while not tracer.windows.held_cpus(time.monotonic_ns()):
            assert time.monotonic() < deadline, "no window was opened"
        tracer.windows.shut(slot)
        time.sleep(0.05)  # wake-ups under way, and the window
        grants = tracer.windows.read(slot, AMPLE).bucket.grants
        assert tracer.windows.held_cpus(time.monotonic_ns()) == []
        time.sleep(0.1)
        assert tracer.windows.read(slot, AMPLE).bucket.grants == grants


def test_told_again_only_after_letting_go(tracer: Tracer, edges: Edges) -> None:
    slot = fresh(tracer, AMPLE, floor=True)
    own = tracer.windows.cell_of(slot)
    with loop("--interval-us", 1000, "--for", 30) as one:
        tracer.assign({one.pid: slot}, {})
        one.go()
        for _ in range(3):
            deadline = time.monotonic() + 20
            while own not in {edge.cell for edge in edges.take()}:
                assert time.monotonic() < deadline, "the agent's own cell was not told of"
                time.sleep(0.001)
            time.sleep(0.02)
            assert own not in {edge.cell for edge in edges.take()}
            edges.let_go()


@pytest.mark.measures
def test_the_edge_says_when_and_the_cell_until_when(tracer: Tracer, edges: Edges) -> None:
    slot = fresh(tracer, AMPLE, floor=True)
    own = tracer.windows.cell_of(slot)
    start = time.monotonic_ns()
    with loop("--interval-us", 1000, "--steps", 20) as one:
        tracer.assign({one.pid: slot}, {})
        one.run()
    end = time.monotonic_ns()
    (edge,) = [edge for edge in edges.take() if edge.cell == own]
    assert start < edge.t < end
    until = int(tracer.windows._cells[own]["until"])
    assert edge.t + WINDOW_NS <= until < end + WINDOW_NS


def test_not_a_nanosecond_is_lost(tracer: Tracer, edges: Edges) -> None:
    """After hundreds of grants, refusals and throttlings the bucket is where Python has it.

    It was full at the first wake-up, whose time the edge tells, and never again
    (the loop asks for more than comes back): so what is in it is what was, less
    the grants, plus the time.
    """
    rates = Rates.of(Terms(capacity=50, refill_per_s=20, recovery=0.2))
    slot = fresh(tracer, rates)
    with loop("--interval-us", 1000, "--for", 30) as one:
        tracer.assign({one.pid: slot}, {})
        one.go()
        deadline = time.monotonic() + 25
        while tracer.windows.read(slot, rates).bucket.throttles < 4:
            assert time.monotonic() < deadline, "the budget was never empty"
            time.sleep(0.01)
    bucket = tracer.windows.read(slot, rates).bucket
    first = edges.take()[0].t
    assert bucket.zero == first - rates.cap_ns + bucket.grants * rates.cost_ns
    # Thrown out when empty, back at the mark: each of these took that long, give or take a token.
    assert bucket.paid_ns == bucket.grants * rates.cost_ns
    full = bucket.throttles - (bucket.throttled != 0)
    degraded = bucket.degraded_ns
    assert full >= 3
    assert full * (rates.mark_ns - rates.cost_ns) < degraded <= full * rates.mark_ns
    # What the same bucket in Python grants to one who asks every millisecond.
    model, now = Bucket(rates), first
    while model.throttles < bucket.throttles:
        model.pay(rates.cost_ns, now)
        now += 1_000_000
    assert bucket.grants == pytest.approx(model.grants, rel=0.25)


@pytest.mark.measures
def test_priced_by_the_time_that_cpus_are_held(tracer: Tracer, edges: Edges) -> None:
    # So little comes back that it is never full again.
    rates = Rates.of(Terms(capacity=1e6, refill_per_s=10_000, price="time"))
    slot = fresh(tracer, rates)
    with loop("--interval-us", 1000, "--steps", 300) as one:
        tracer.assign({one.pid: slot}, {})
        one.run()
    bucket, held_ns = tracer.windows.read(slot, rates)
    assert bucket.refusals == 0
    assert bucket.paid_ns == bucket.zero - edges.take()[0].t + rates.cap_ns
    # A window that follows its thread to another CPU is paid for once.
    assert 200_000 < bucket.spent() <= held_ns / 1000


@pytest.mark.measures
def test_a_moderate_agent_keeps_its_window_beside_an_abuser(tracer: Tracer) -> None:
    terms = Terms(capacity=200, refill_per_s=400, recovery=0.5)
    rates = Rates.of(terms)
    moderate, abuser = fresh(tracer, rates), fresh(tracer, rates)
    with (
        loop("--interval-us", 5000, "--for", 30) as good,
        loop("--interval-us", 200, "--for", 30) as bad,
    ):
        tracer.assign({good.pid: moderate, bad.pid: abuser}, {})
        start = time.monotonic_ns()
        good.go()
        bad.go()
        time.sleep(4)
        now = time.monotonic_ns()
        kept = tracer.windows.read(moderate, rates).bucket
        thrown = tracer.windows.read(abuser, rates).bucket
    assert kept.grants > 400
    assert kept.refusals == 0
    assert thrown.throttles >= 2
    assert thrown.refusals > thrown.grants
    assert thrown.grants <= terms.capacity + terms.refill_per_s * (now - start) / 1e9 + 1
    assert thrown.degraded(now) > 0.4 * (now - start)


def test_a_slots_next_agent_starts_with_a_full_bucket(tracer: Tracer) -> None:
    rates = Rates.of(Terms(capacity=10, refill_per_s=0.1))
    slot = fresh(tracer, rates)
    with loop("--interval-us", 1000, "--steps", 100) as one:
        tracer.assign({one.pid: slot}, {})
        one.run()
    assert tracer.windows.read(slot, rates).bucket.tokens(time.monotonic_ns()) < 1
    tracer.clear(slot)
    bucket = tracer.windows.read(slot, rates).bucket
    assert bucket.tokens(time.monotonic_ns()) == pytest.approx(10)
    assert (bucket.grants, bucket.refusals, bucket.throttled) == (0, 0, 0)


def test_layout_has_a_cell_for_each_cpu_and_slot(tracer: Tracer) -> None:
    windows = tracer.windows
    cells = {windows.cell_of_cpu(cpu) for cpu in range(tracer.cpu_rows.span)}
    cells |= {windows.cell_of(slot) for slot in range(layout.SLOTS)}
    assert cells == set(range(windows.wiring.size))

"""The budget's arithmetic: never negative, never above capacity, no drift, whatever the clock."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.stats.token_bucket import Bucket, Price, Rates, Terms

S = 1_000_000_000

terms = st.builds(
    lambda capacity, share, **rest: Terms(capacity=capacity, cost=capacity * share, **rest),
    st.floats(1, 1e6),
    st.floats(1e-4, 1),
    refill_per_s=st.floats(0.1, 1e6),
    recovery=st.floats(0, 1),
)
#: Steps of the clock: mostly forwards, also by years, sometimes back.
steps = st.one_of(
    st.integers(0, 10_000_000),
    st.integers(0, 300 * 365 * 86400 * S // 10),
    st.integers(-10 * S, 0),
)
forward = st.one_of(st.integers(0, 10_000_000), st.integers(0, 40 * 365 * 86400 * S))


@given(terms, st.lists(steps, max_size=60), st.integers(0, 10**15))
def test_never_negative_never_above_capacity(t: Terms, clock: list[int], start: int) -> None:
    rates = Rates.of(t)
    bucket = Bucket(rates)
    now = start
    for step in clock:
        now = max(0, now + step)
        before = bucket.level_ns(now)
        granted = bucket.pay(rates.cost_ns, now)
        after = bucket.level_ns(now)
        assert 0 <= after <= rates.cap_ns
        assert after == (before - rates.cost_ns if granted else before)
        assert bucket.paid_ns == bucket.grants * rates.cost_ns
        # What the kernel stores fits into its words.
        assert 0 <= bucket.zero < 1 << 64
        assert bucket.zero <= now


@given(terms, st.lists(forward, min_size=1, max_size=60))
def test_equal_to_a_bucket_of_fractions(t: Terms, clock: list[int]) -> None:
    """The textbook's: a level that is topped up before each debit, with exact numbers."""
    rates = Rates.of(t)
    bucket = Bucket(rates)
    now = 1 << 61  # so late that the bucket is full at first
    token = Fraction(rates.cost_ns)
    capacity = Fraction(rates.cap_ns) / token
    mark = Fraction(rates.mark_ns) / token
    level, last, throttled = capacity, now, False
    for step in clock:
        now += step
        level = min(capacity, level + Fraction(now - last) / token)
        last = now
        if throttled and level >= mark:
            throttled = False
        expected = not throttled and level >= 1
        if expected:
            level -= 1
        else:
            throttled = True
        assert bucket.pay(rates.cost_ns, now) == expected
        assert Fraction(bucket.level_ns(now)) / token == level
        assert bucket.refuses(now) == (throttled and level < mark)


@given(terms, st.integers(1, 40 * 365 * 86400 * S), st.integers(2, 50))
def test_long_idle_does_not_drift(t: Terms, idle: int, looks: int) -> None:
    """Looking at a bucket, however often, changes nothing; a full one stays exactly full."""
    rates = Rates.of(t)
    looked, left = Bucket(rates), Bucket(rates)
    now = 1 << 61
    for bucket in (looked, left):
        assert bucket.pay(rates.cost_ns, now)
    for i in range(looks):
        looked.tokens(now + idle * i // looks)
    now += idle
    assert looked == left
    assert looked.level_ns(now) == min(rates.cap_ns, rates.cap_ns - rates.cost_ns + idle)
    assert looked.level_ns(now + rates.cap_ns) == rates.cap_ns


@given(terms, st.integers(1, 10**15))
def test_a_clock_that_went_back_empties_and_refills(t: Terms, back: int) -> None:
    rates = Rates.of(t)
    bucket = Bucket(rates)
    now = 1 << 61
    assert bucket.pay(rates.cost_ns, now)
    bucket.zero = now  # paid empty
    past = now - back
    assert not bucket.pay(rates.cost_ns, past)
    assert bucket.level_ns(past) == 0
    # From there it refills as always: the future that was is forgotten.
    assert bucket.level_ns(past + rates.mark_ns) == rates.mark_ns
    assert bucket.pay(rates.cost_ns, past + max(rates.mark_ns, rates.cost_ns))


@given(
    st.integers(1, 1000), st.integers(1, 100_000), st.floats(0, 1), st.integers(10_000, 10_000_000)
)
def test_what_is_granted_in_the_long_run(
    capacity: int, refill: int, recovery: float, gap: int
) -> None:
    """At most the capacity and what was refilled; all of it for one who asks for less."""
    rates = Rates.of(Terms(capacity=capacity, refill_per_s=refill, recovery=recovery))
    bucket = Bucket(rates)
    start = now = 1 << 61
    for _ in range(500):
        bucket.pay(rates.cost_ns, now)
        now += gap
    assert bucket.grants + bucket.refusals == 500
    assert bucket.grants <= capacity + (now - start) / rates.token_ns + 1
    if gap >= rates.cost_ns:
        assert bucket.refusals == 0
        assert bucket.degraded(now) == 0


def test_throttled_until_the_mark() -> None:
    """10 tokens, 100 a second, back from 5 tokens on."""
    rates = Rates.of(Terms(capacity=10, refill_per_s=100, recovery=0.5))
    bucket = Bucket(rates)
    now = 100 * S
    assert [bucket.pay(rates.cost_ns, now) for _ in range(12)] == [True] * 10 + [False] * 2
    assert bucket.refuses(now)
    # A token is there after 10 ms, but the mark is not reached before 50.
    assert not bucket.pay(rates.cost_ns, now + 49_000_000)
    assert bucket.degraded(now + 49_000_000) == 49_000_000
    assert not bucket.refuses(now + 50_000_000)
    # Nobody asked until much later: it was over at the mark all the same.
    assert bucket.degraded(now + 80_000_000) == 50_000_000
    assert bucket.pay(rates.cost_ns, now + 80_000_000)
    assert (bucket.degraded_ns, bucket.throttled, bucket.throttles) == (50_000_000, 0, 1)


def test_priced_by_time() -> None:
    """2,000 us of holding, half of each second comes back."""
    rates = Rates.of(Terms(capacity=2_000, refill_per_s=500_000, price="time"))
    bucket = Bucket(rates)
    now = 100 * S
    assert bucket.pay(rates.price_of(2_000_000), now)
    assert bucket.tokens(now) == 0
    assert bucket.tokens(now + 1_000_000) == 500
    # What another window holds already costs nothing.
    assert rates.price_of(0) == 0


def test_priced_by_joules() -> None:
    """2,000 uJ, half a watt comes back; a held CPU loses 2.5 W."""
    terms = Terms(capacity=2_000, refill_per_s=500_000, price="joules")
    rates = Rates.of(terms, watts=2.5)
    bucket = Bucket(rates)
    now = 100 * S
    assert bucket.pay(rates.price_of(400_000), now)
    assert bucket.tokens(now) == 1_000
    assert not bucket.pay(rates.price_of(401_000), now)
    assert rates.price_of(0) == 0
    with pytest.raises(ValueError, match="needs the power that is lost"):
        Rates.of(terms)


held = st.integers(0, 100_000_000)
watts = st.floats(0, 1000)


@given(
    st.floats(1, 1e9), st.floats(0.1, 1e9), st.sampled_from(["time", "joules"]), watts,
    st.lists(st.tuples(held, forward), max_size=60),
)  # fmt: skip
def test_any_price_by_time_keeps_the_bucket_within_its_bounds(
    capacity: float,
    refill: float,
    price: Price,
    lost: float,
    armings: list[tuple[int, int]],
) -> None:
    rates = Rates.of(Terms(capacity=capacity, refill_per_s=refill, price=price), lost)
    bucket = Bucket(rates)
    now = 1 << 62
    for longer, step in armings:
        # The kernel multiplies in 64 bits before it shifts.
        assert longer * rates.price < 1 << 64
        now += step
        before = bucket.level_ns(now)
        granted = bucket.pay(rates.price_of(longer), now)
        assert bucket.level_ns(now) == (before - rates.price_of(longer) if granted else before)
        assert 0 <= bucket.level_ns(now) <= rates.cap_ns


@given(st.floats(10, 1e6), st.floats(0.01, 50), st.integers(1_000, 100_000_000))
def test_a_joule_costs_the_same_whatever_the_watts(refill: float, lost: float, longer: int) -> None:
    """Half the time at twice the power: the same energy, the same price."""
    terms = Terms(refill_per_s=refill, price="joules")
    one, two = Rates.of(terms, lost), Rates.of(terms, 2 * lost)
    exact = longer / 1000 * lost * one.token_ns
    # Half a step of the fixed point, at most 5 % of these prices, and what a shift cuts off.
    assert one.price_of(longer) == pytest.approx(exact, abs=0.05 * exact + 1)
    assert two.price_of(longer) == pytest.approx(2 * exact, abs=0.05 * exact + 1)


def test_terms_that_never_grant_are_named() -> None:
    with pytest.raises(ValueError, match="costs 5 tokens"):
        Terms(capacity=2, cost=5)

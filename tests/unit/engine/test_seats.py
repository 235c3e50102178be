"""Seats are shared by user, and root's own choice comes first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agenttop.engine.seats import Plan, Seat, parse_subuid, plan

MALLORY, ALICE, BOB = 666, 1000, 1001
ALL = 256


def seats(user: int, number: int, first: int = 0, **more: bool) -> list[Seat]:
    return [Seat(more.get("chosen", False), user, first + i, more.get("opted_in", False))
            for i in range(number)]  # fmt: skip


def test_one_user_alone_may_have_all_seats() -> None:
    made = plan(seats(ALICE, 300), [], ALL, 0, 64)
    assert made == Plan(list(range(ALL)), [])


def test_who_took_all_seats_gives_some_to_a_user_with_fewer() -> None:
    flood = seats(MALLORY, ALL)
    made = plan(seats(ALICE, 3, ALL), flood, 0, 0, 64)
    assert made == Plan([], [255, 254, 253])
    # Their seats are on their way: nobody else has to leave for these three.
    assert plan(seats(ALICE, 3, ALL), flood[:253], 0, 3, 64) == Plan([], [])
    assert plan(seats(ALICE, 3, ALL), flood[:253], 3, 0, 64) == Plan([0, 1, 2], [])


def test_freed_seats_go_to_who_has_fewest_not_to_who_asked_first() -> None:
    asking = [*seats(MALLORY, 100), *seats(ALICE, 2, 1000)]
    assert plan(asking, seats(MALLORY, 250), 2, 0, 64).seated == [100, 101]


def test_a_flood_never_takes_a_seat_of_who_has_fewer() -> None:
    having = [*seats(ALICE, 100), *seats(MALLORY, 156, 100)]
    assert plan(seats(MALLORY, 500, 300), having, 0, 0, 64) == Plan([], [])


def test_roots_choice_comes_first_whoever_has_how_many() -> None:
    having = [*seats(ALICE, 1), *seats(MALLORY, 255, 1)]
    made = plan(seats(BOB, 254, 1000, chosen=True), having, 0, 0, 64)
    assert len(made.evicted) == 254
    assert 0 not in made.evicted  # alice's only one is the last to go
    assert plan(seats(MALLORY, 5), seats(BOB, ALL, chosen=True), 0, 0, 64) == Plan([], [])


def test_opted_in_threads_share_their_part() -> None:
    flood = seats(MALLORY, 64, opted_in=True)
    made = plan(seats(ALICE, 2, 100, opted_in=True), flood, 100, 0, 64)
    assert made == Plan([0, 1], [63, 62])
    assert plan(seats(MALLORY, 9, 100, opted_in=True), flood, 100, 0, 64) == Plan([], [])


claims = st.lists(
    st.builds(Seat, st.booleans(), st.integers(0, 5), st.integers(0, 1000), st.booleans()),
    max_size=60,
)


@given(claims, claims, st.integers(0, 20), st.integers(0, 5))
def test_the_plan_ends_with_fair_shares(
    asking: list[Seat], having: list[Seat], free: int, opt_ins: int
) -> None:
    asking = [seat._replace(opted_in=seat.opted_in and not seat.chosen) for seat in asking]
    having = [seat._replace(opted_in=seat.opted_in and not seat.chosen) for seat in having]
    made = plan(asking, having, free, 0, opt_ins)
    assert len(made.seated) <= free
    assert len(set(made.seated)) == len(made.seated)
    assert len(set(made.evicted)) == len(made.evicted)
    before = Counter(seat.user for seat in having if not seat.chosen)
    after = before - Counter(having[place].user for place in made.evicted)
    losers = {having[place].user for place in made.evicted if not having[place].chosen}
    if not any(seat.chosen for seat in (*asking, *having)):
        # Nobody is pushed below the fair share of all who have or want seats.
        room = len(having) + free
        fair = room // max(1, len({seat.user for seat in (*asking, *having)}))
        if not any(seat.opted_in for seat in (*asking, *having)):
            assert all(after[user] >= min(fair, before[user]) for user in losers)


def test_subordinate_ids_are_their_owners() -> None:
    text = [b"1000:100000:65536", b"root:500000:10", b"nosuchuser:1:2", b"x", b"1:a:b", b"1:2"]
    assert list(parse_subuid(text)) == [(100000, 65536, 1000)]

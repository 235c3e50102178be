"""The budget of an agent's windows: a token bucket in one number.

The kernel debits it at each arming (collectors/bpf/window.bpf.c, ``pay``), on
whatever CPU that happens, so the whole bucket is one word that a
compare-and-swap can change: ``zero``, the time at which the bucket would have
been empty. What has been refilled since is the level:

    level = clamp(now - zero, 0, cap)          in ns of refilling

A token is ``1e9 / refill_per_s`` of these ns. Paying moves ``zero`` on by the
price, starting from ``now - cap`` at the earliest, because a full bucket does
not gain. So the level can be neither negative nor above the capacity, and an
idle bucket is not touched at all: nothing drifts. If the clock should go back
behind ``zero``, the bucket is empty now.

A bucket that cannot pay is throttled: it grants nothing until the level has
reached the recovery mark, so that an agent which asks too often gets long
stretches of either instead of a flicker. The time in between is degraded time.

Everything is in whole ns, and the same here as in the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

#: What an arming is priced by: each one, or the time by which it holds a CPU for longer, or the
#: energy that is lost in that time.
Price = Literal["arming", "time", "joules"]
#: Fixed point of the kernel's price per ns.
PRICE_SHIFT: Final = 10
#: The highest price: with the longest window (100 ms) it still fits into the kernel's 64 bits.
PRICE_MAX: Final = 1 << 36

_Tokens = Annotated[float, msgspec.Meta(gt=0, le=1_000_000_000)]


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a budget is made of, as people write it.

    The default is for ever enough for 2,000 armings a second. With ``price:
    time`` a token is a microsecond by which a CPU is held out of deeper idle,
    with ``price: joules`` a microjoule that is lost by that (held_power.py).
    """

    #: Tokens of a full bucket.
    capacity: _Tokens = 2_000
    #: Tokens that come back each second.
    refill_per_s: Annotated[float, msgspec.Meta(ge=0.1, le=1_000_000_000)] = 2_000
    #: Tokens for each arming (price: arming).
    cost: _Tokens = 1
    #: Share of the capacity from which an emptied bucket grants again, 0..1.
    recovery: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    #: arming: each one costs ``cost``; time: each us of holding a CPU for longer costs a token;
    #: joules: as many tokens as watts are lost meanwhile.
    price: Price = "arming"

    def __post_init__(self) -> None:
        """Raises ValueError (which msgspec tells with its place) for terms that never grant."""
        if self.price == "arming" and self.cost > self.capacity:
            raise ValueError(
                f"an arming costs {self.cost:g} tokens, the budget holds only {self.capacity:g}"
            )


@dataclass(frozen=True, slots=True)
class Rates:
    """Terms as the kernel counts: ns of refilling."""

    #: ns for a token.
    token_ns: float
    cap_ns: int
    mark_ns: int
    #: Price of each arming, or 0 ...
    cost_ns: int
    #: ... and of each ns of holding, in 1 / 2**PRICE_SHIFT.
    price: int

    @classmethod
    def of(cls, terms: Terms, watts: float | None = None, part: float = 1.0) -> Rates:
        """``watts``: what a held CPU loses; needed for a price in joules. Raises ValueError.

        ``part`` (above 0, at most 1) of the capacity and the refill is the bucket's.
        """
        if terms.price == "joules" and watts is None:
            raise ValueError("a price in joules needs the power that is lost")
        per_us = {"arming": 0.0, "time": 1.0, "joules": watts or 0.0}[terms.price]
        token_ns = 1e9 / (terms.refill_per_s * part)
        cap_ns = max(1, round(terms.capacity * part * token_ns))
        by_time = terms.price != "arming"
        cost_ns = 0 if by_time else min(cap_ns, max(1, round(terms.cost * token_ns)))
        mark_ns = min(cap_ns, max(cost_ns, round(terms.recovery * cap_ns)))
        exact = token_ns * per_us / 1000 * (1 << PRICE_SHIFT)
        price = min(PRICE_MAX, max(1, round(exact))) if by_time else 0
        return cls(token_ns, cap_ns, mark_ns, cost_ns, price)

    def price_of(self, longer_ns: int) -> int:
        """What an arming costs that holds a CPU for this much longer."""
        return longer_ns * self.price >> PRICE_SHIFT if self.price else self.cost_ns


@dataclass(slots=True)
class Bucket:
    """One bucket. Times are ns of one clock, the kernel's CLOCK_MONOTONIC."""

    rates: Rates
    #: When it would have been empty. 0: it has never paid.
    zero: int = 0
    #: Since when it grants nothing; 0: it does.
    throttled: int = 0
    grants: int = 0
    refusals: int = 0
    throttles: int = 0
    #: Degraded time before ``throttled``.
    degraded_ns: int = 0
    #: All that it paid, ns of refilling.
    paid_ns: int = 0

    def pay(self, cost_ns: int, now: int) -> bool:
        """Whether it grants this price at ``now``; if so it has been paid."""
        if now < self.zero:
            self.zero = now
        level = min(now - self.zero, self.rates.cap_ns)
        if self.throttled:
            if level < self.rates.mark_ns:
                self.refusals += 1
                return False
            self.degraded_ns += self._throttled_for(now)
            self.throttled = 0
        if level < cost_ns:
            self.throttled = now
            self.throttles += 1
            self.refusals += 1
            return False
        self.zero = now - level + cost_ns
        self.grants += 1
        self.paid_ns += cost_ns
        return True

    def level_ns(self, now: int) -> int:
        """What is in it, ns of refilling."""
        return min(max(0, now - self.zero), self.rates.cap_ns)

    def tokens(self, now: int) -> float:
        """What is in it."""
        return self.level_ns(now) / self.rates.token_ns

    def spent(self) -> float:
        """Tokens that it paid."""
        return self.paid_ns / self.rates.token_ns

    def refuses(self, now: int) -> bool:
        """Whether it is throttled at ``now`` (it recovers without being asked)."""
        return bool(self.throttled) and self.level_ns(now) < self.rates.mark_ns

    def degraded(self, now: int) -> int:
        """All time spent throttled, ns."""
        return self.degraded_ns + (self._throttled_for(now) if self.throttled else 0)

    def _throttled_for(self, now: int) -> int:
        return max(0, min(now, self.zero + self.rates.mark_ns) - self.throttled)

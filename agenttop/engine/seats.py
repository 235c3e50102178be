"""Who gets the seats (slots in the kernel's maps) when there are fewer than agents.

Anybody may call a process as an agent is called, or opt in. So seats are
shared by user, not by who comes first:

- what root's rules chose in a way that nobody can fake (``pid:``, ``user:``,
  ``cgroup:``, ``users:``) goes before everything else;
- then the user with the fewest seats comes first. When none is free, the user
  with the most loses the newest of them, as long as it keeps at least as many
  as the one who gets it;
- threads that opted in share a part of the seats by the same rule.

A user is who owns the process really (its real user id, as the machine and
not a container numbers it), and its subordinate ids (subuid(5)) are its own.
"""

from __future__ import annotations

import functools
import pwd
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

SUBUID: Final = Path("/etc/subuid")


class Seat(NamedTuple):
    """A seat that an agent has, or asks for."""

    #: By root, in a way that nobody can fake.
    chosen: bool
    user: int
    #: Older ones have a lower number.
    order: int
    opted_in: bool = False


class Plan(NamedTuple):
    """Places in the lists that ``plan`` was given."""

    #: Of those who ask: they get a free seat now, in this order.
    seated: list[int]
    #: Of those who have one: they lose it.
    evicted: list[int]


def plan(
    asking: Sequence[Seat], having: Sequence[Seat], free: int, leaving: int, opt_ins: int
) -> Plan:
    """Who gets which of the ``free`` seats, and who has to leave for the others.

    ``leaving``: seats that will be free soon, as their agents are on their way out.
    ``opt_ins``: seats that opted-in threads may have together.
    """
    counts = Counter((seat.chosen, seat.user) for seat in having)
    opted = Counter(seat.user for seat in having if seat.opted_in)
    #: Those that could lose theirs: (chosen, user) -> places, the newest last.
    owned: dict[tuple[bool, int], list[int]] = defaultdict(list)
    for place in sorted(range(len(having)), key=lambda place: having[place].order):
        owned[having[place].chosen, having[place].user].append(place)
    queues: dict[tuple[bool, int], deque[int]] = defaultdict(deque)
    for place in sorted(range(len(asking)), key=lambda place: asking[place].order):
        queues[asking[place].chosen, asking[place].user].append(place)
    out = Plan([], [])

    def evict(group: tuple[bool, int], opted_in: bool = False) -> bool:
        for place in reversed(owned[group]):
            if having[place].opted_in or not opted_in:
                owned[group].remove(place)
                counts[group] -= 1
                opted[group[1]] -= having[place].opted_in
                out.evicted.append(place)
                return True
        return False

    while queues:
        group = min(queues, key=lambda group: (not group[0], counts[group], group))
        queue = queues[group]
        place = queue.popleft()
        if not queue:
            del queues[group]
        seat = asking[place]
        if seat.opted_in and opted.total() >= opt_ins:
            most = max(opted, key=lambda user: opted[user], default=seat.user)
            if opted[most] <= opted[seat.user] + 1 or not evict((False, most), opted_in=True):
                continue
            leaving += 1
        if free:
            free -= 1
            out.seated.append(place)
        elif leaving:
            leaving -= 1
        else:
            if seat.chosen and any(n for (chosen, _), n in counts.items() if not chosen):
                from_chosen, least = False, 0
            else:
                from_chosen, least = seat.chosen, counts[group] + 1
            most_of = max(
                (one for one in counts if one[0] is from_chosen),
                key=lambda one: counts[one],
                default=None,
            )
            if most_of is None or counts[most_of] <= least or not evict(most_of):
                continue
        counts[group] += 1
        opted[seat.user] += seat.opted_in
    return out


def most(counts: Counter[int], number: int) -> dict[str, int]:
    """The users with most, as text."""
    return {str(user): n for user, n in counts.most_common(number) if n > 0}


# --------------------------------------------------------------------------- users


def user_of(uid: int) -> int:
    """Who is behind a user id: itself, or the user to whom it was given as a subordinate one."""
    for first, count, owner in _subordinate():
        if first <= uid < first + count:
            return owner
    return uid


@functools.cache
def _subordinate() -> tuple[tuple[int, int, int], ...]:
    try:
        return tuple(parse_subuid(SUBUID.read_bytes()[: 1 << 20].splitlines()))
    except OSError:
        return ()


def parse_subuid(lines: Iterable[bytes]) -> Iterable[tuple[int, int, int]]:
    """First id, number of ids, owner of each line of /etc/subuid; other lines are left out."""
    for line in lines:
        name, _, rest = line.decode("utf-8", "replace").strip().partition(":")
        first, _, count = rest.partition(":")
        if not (first.isdecimal() and count.isdecimal() and len(first + count) < 24):
            continue
        try:
            owner = int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
        except (KeyError, ValueError, OSError):
            continue
        # Root's are those of the containers that it starts: they stay apart.
        if owner:
            yield int(first), int(count), owner

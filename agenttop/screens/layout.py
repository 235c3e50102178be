"""Which panel stands where, for a size of the terminal: plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Below this nothing useful can be shown.
LEAST: Final = (40, 8)
#: From here on two columns of panels stand side by side.
WIDE: Final = (110, 30)

#: Panels by the key that shows them; the order is that of the Tab key.
PANELS: Final = ("chain", "slowest", "cpus", "trend", "policies")


@dataclass(frozen=True)
class Plan:
    """Heights in rows; a panel that is not named is hidden."""

    too_small: bool
    header: int
    agents: int
    left: tuple[tuple[str, int], ...] = ()
    right: tuple[tuple[str, int], ...] = ()

    @property
    def shown(self) -> list[str]:
        return [name for name, _ in (*self.left, *self.right)]


def plan(
    width: int, height: int, header: int, agents: int, cpus: int, policies: int, panel: str
) -> Plan:
    """Rows for each panel.

    ``header`` is what the header wants; ``agents``, ``cpus`` and ``policies``
    are how many there are; ``panel`` is the one to show where there is room
    for one only.
    """
    if width < LEAST[0] or height < LEAST[1]:
        return Plan(True, 0, 0)
    body = height - header - 1
    if width < WIDE[0] or height < WIDE[1]:
        return _narrow(header, body, agents, cpus, policies, panel)
    # The table has all agents, as long as half of the screen is left for why.
    table = min(max(agents, 3) + 3, body // 2 if height < 45 else body * 2 // 5)
    rest = body - table
    chain = 12 if rest >= 22 else 11
    if height >= 45:
        chain = 13
    cpu = min(max(cpus, 2) + 3, max(rest - chain - 5, 4), rest // 3)
    slowest = rest - chain - cpu
    if slowest < 4:
        cpu, slowest = rest - chain, 0
    elif slowest > 22:
        # Enough is as good as a feast: the table may have more.
        table += min(slowest - 22, max(agents + 3 - table, 0))
        slowest = body - table - chain - cpu
    rest = body - table
    left = [("chain", chain), ("slowest", slowest), ("cpus", cpu)]
    policy = min(max(policies + 6, 9), max(rest - 8, 6))
    trend = rest - policy
    right = [("trend", trend), ("policies", policy)]
    if trend >= 20:
        right = [("trend", trend - trend // 2), ("compare", trend // 2), ("policies", policy)]
    return Plan(
        False,
        header,
        table,
        tuple((name, rows) for name, rows in left if rows),
        tuple(right),
    )


def _narrow(header: int, body: int, agents: int, cpus: int, policies: int, panel: str) -> Plan:
    """The table and one panel below it; on a very low screen the table alone."""
    if body < 9:
        return Plan(False, header, body)
    want = {"chain": 12, "slowest": 10, "cpus": cpus + 3, "trend": 12, "policies": policies + 8}
    below = min(max(want[panel], 6), body - 5)
    table = min(max(agents, 2) + 3, max(body - below, 5))
    below = body - table
    return Plan(False, header, table, left=((panel, below),))

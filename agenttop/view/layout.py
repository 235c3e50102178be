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
    #: Side by side below the two columns, all of the same height.
    bottom: tuple[tuple[str, int], ...] = ()

    @property
    def heights(self) -> dict[str, int]:
        """Panel -> rows."""
        return dict((*self.left, *self.right, *self.bottom))


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
    # The table has all agents as long as there is room left to say why.
    table = min(max(agents, 3) + 3, body * 2 // 5)
    rest = body - table
    bottom = min(max(cpus + 3, policies + 7), max(rest // 3, 7))
    top = rest - bottom
    chain = 13 if top >= 20 else 11
    left = [("chain", chain), ("slowest", top - chain)]
    if 10 <= top - 4 < chain:
        chain = top - 4
    if top - chain < 4:
        left = [("chain", top)]
    right = [("trend", top)]
    if top >= 20:
        right = [("trend", top - top // 2), ("compare", top // 2)]
    return Plan(
        False,
        header,
        table,
        tuple(left),
        tuple(right),
        (("cpus", bottom), ("policies", bottom)),
    )


def _narrow(header: int, body: int, agents: int, cpus: int, policies: int, panel: str) -> Plan:
    """The table and one panel below it; on a very low screen the table alone."""
    if body < 9:
        return Plan(False, header, body)
    want = {"chain": 12, "slowest": 10, "cpus": cpus + 3, "trend": 12, "policies": policies + 8}
    below = min(max(want[panel], 6), body - 5)
    table = min(max(agents, 2) + 3, max(body - below, 5))
    below = body - table
    place = {"trend": "right", "cpus": "bottom", "policies": "bottom"}.get(panel, "left")
    return Plan(False, header, table, **{place: ((panel, below),)})

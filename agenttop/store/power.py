"""Watts over some ticks: measured by RAPL, or estimated from the idle states' own figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from agenttop.model.sample import Host


class Part(Protocol):
    """A tick, as far as power goes (history.Moment)."""

    @property
    def length_ns(self) -> int: ...
    @property
    def energy_uj(self) -> Mapping[str, int]: ...
    @property
    def states_ns(self) -> Mapping[int, Sequence[int]]: ...


class Power(NamedTuple):
    """Watts of all packages; None with the reason why."""

    watts: float | None
    estimated: bool = False
    missing: str | None = None


def power(parts: Sequence[Part], host: Host | None) -> Power:
    """Over these ticks.

    The estimate counts what the time in each idle state takes by the state's
    own figure, and nothing for running: only differences of it mean something.
    """
    if not parts:
        return Power(None, missing="no tick yet")
    measured = [each for each in parts if each.energy_uj]
    if measured:
        joules = sum(sum(each.energy_uj.values()) for each in measured) / 1e6
        return Power(joules * 1e9 / sum(each.length_ns for each in measured))
    states = host.idle_states if host else []
    figures = [state.power_mw for state in states]
    if not figures or None in figures:
        missing = host.missing.get("power") if host else None
        return Power(None, missing=missing or "no energy counters here")
    millijoules = sum(
        time_ns * (milliwatts or 0) / 1e9
        for each in parts
        for times in each.states_ns.values()
        for time_ns, milliwatts in zip(times, figures, strict=False)
    )
    return Power(millijoules / 1e3 * 1e9 / sum(each.length_ns for each in parts), estimated=True)

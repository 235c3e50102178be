"""What a policy asks for, knob by knob, and what it leaves out with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from agenttop.policies.base import Key, Settings
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import KnobError


class Wishes:
    """Collects settings; ``held`` are the knobs that the policy has already."""

    def __init__(self, held: Mapping[Key, str]) -> None:
        self._held = held
        self.settings: Settings = {}
        #: What is left out, each with its reason.
        self.left: list[str] = []

    def set(self, kind: str, target: str, value: str) -> None:
        """This value, whatever there is now."""
        if (kind, target) in self._held or self._read(kind, target) is not None:
            self.settings[kind, target] = value

    def lower(self, kind: str, target: str, value: int) -> None:
        """This number, unless it is as low already: then somebody wanted that."""
        if (kind, target) not in self._held:
            current = self._read(kind, target)
            if current is None:
                return
            if current.isdecimal() and int(current) <= value:
                self.left.append(f"{KNOBS[kind].label(target)} is {current} already")
                return
        self.settings[kind, target] = str(value)

    def _read(self, kind: str, target: str) -> str | None:
        label = KNOBS[kind].label(target)
        try:
            current = KNOBS[kind].read(target)
        except KnobError as error:
            self.left.append(f"{label}: {error}")
            return None
        if current is None:
            self.left.append(f"{label}: not there")
        return current

    def left_text(self, limit: int = 3) -> list[str]:
        """The first few of what is left out, as one part of a detail line; none if nothing is."""
        if not self.left:
            return []
        more = len(self.left) - limit
        return ["; ".join(self.left[:limit]) + (f"; {more} more left out" if more > 0 else "")]

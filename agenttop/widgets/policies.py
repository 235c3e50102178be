"""The policies: a key each, what holds, what they changed, and what happened lately."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agenttop.model.sample import PolicyStatus
from agenttop.text.ages import roughly
from agenttop.text.figures import clean
from agenttop.view.trials import row_text, shown
from agenttop.widgets.effect_rows import panel_rows
from agenttop.widgets.paint import Line, Row, Span, size_of
from agenttop.widgets.panel import Panel

#: State -> glyph, word, role.
STATES: Final = {
    "on": ("●", "on", "good"),
    "off": ("○", "off", "dim"),
    "drift": ("◌", "drift", "warn"),
    "n/a": ("✕", "n/a", "faint"),
    "error": ("✕", "error", "alarm"),
}
_EVENT_ROLES: Final = {"policy": "marker", "warning": "warn", "error": "alarm", "agent": "accent"}


def brief(text: str) -> str:
    """A change without the path that everybody knows."""
    for prefix in ("/sys/devices/system/", "/sys/", "/proc/sys/"):
        text = text.removeprefix(prefix)
    return text


class Policies(Panel):
    """One row per policy; below them the chosen one's changes, then the latest events."""

    def title(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        policies = self.view.policies
        on = sum(policy.state in ("on", "drift") for policy in policies)
        left: list[Span] = [("Policies ", "title")]
        left.append((f"{on} on", "good" if on else "dim"))
        why_not = ["readonly"] if self.view.options.readonly else []
        if (holder := self.view.held_by) is not None:
            why_not.append(f"held by pid {holder}" if holder else "held by another")
        if why_not:
            return left, [(", ".join(why_not), "warn")]
        return left, [("l", "key"), (" plan and changes", "dim")]

    def rows(self, width: int, height: int) -> list[Row]:
        view = self.view
        if not view.policies:
            reason = view.reason("policies") or "the engine has told of none"
            rows = [Line(width).add(f" N/A, {reason}", "dim").row()]
        else:
            at = min(view.policy, len(view.policies) - 1)
            names = max(len(clean(p.name, 12)) for p in view.policies)
            rows = [
                self._row(policy, width, names, index == at)
                for index, policy in enumerate(view.policies)
            ]
            rows += self._effects(view.policies[at], width, height - len(rows))
            if height >= len(rows) + 2:
                rows += self._changes(view.policies[at], width, height - len(rows))
        room = height - len(rows)
        if room >= 2:
            rows += self._events(width, room)
        return rows

    def _row(self, policy: PolicyStatus, width: int, names: int, here: bool) -> Row:
        here = here and self.active
        glyph, word, role = STATES.get(policy.state, ("?", policy.state, "warn"))
        line = Line(width).add("▸" if here else " ", "accent")
        line.fit(clean(policy.key, 2), 2, "key")
        line.fit(clean(policy.name, 12), names + 1, "strong" if role == "good" else "text")
        line.add(f"{glyph} ", role).fit(word, 6, role)
        held = [f"cpu {_ranges(policy.cpus)}"] if policy.cpus else []
        if policy.tids:
            held.append(f"{len(policy.tids)} thread" + ("s" if len(policy.tids) > 1 else ""))
        if held and policy.state in ("on", "drift") and width > 50:
            line.add(", ".join(held) + "  ", "text")
        detail = clean(policy.detail or policy.title, 200)
        view = self.view
        effect = view.effect(policy.name)
        found, found_role = row_text(policy, view.trials, effect, view.agent, view.host)
        # The figure matters more than the words before it.
        room = max(line.left - size_of([(found, "")]) - 2, 0) if found else line.left
        line.fit(detail, room, "warn" if policy.state in ("drift", "error") else "dim")
        line.fit(found, line.left, found_role, right=True)
        return line.row("cursor" if here else "")

    def _effects(self, policy: PolicyStatus, width: int, room: int) -> list[Row]:
        """The selected policy's effect on the selected agent."""
        view = self.view
        if view.trials.of(policy.name) is not None:
            return []
        effect = view.effect(policy.name)
        measures = shown(policy, view.trials, effect, view.agent, view.host)
        return panel_rows(measures, clean(policy.name, 12), width, room) if measures else []

    def _changes(self, policy: PolicyStatus, width: int, room: int) -> list[Row]:
        changes = policy.changes
        if not changes:
            return []
        most = max(room - 4, 1) if len(changes) > room - 4 else len(changes)
        shown = changes[:most]
        rows = [Line(width).add(f" {clean(policy.name, 12)} changed ", "head")
                .add(f"{len(changes)}", "text").row()]  # fmt: skip
        for change in shown:
            rows.append(
                Line(width).add("   ").fit(brief(clean(change, 200)), width - 4, "dim").row()
            )
        if len(changes) > len(shown):
            rows.append(Line(width).add(f"   and {len(changes) - len(shown)} more: l", "dim").row())
        return rows[:room]

    def _events(self, width: int, room: int) -> list[Row]:
        view = self.view
        events = list(view.data.events)[-(room - 1) :]
        rows = [Line(width).add(" events", "head").row()]
        if not events:
            return [*rows, Line(width).add("   none yet", "dim").row()]
        now = view.snapshot.t_ns if view.snapshot else 0
        for event in reversed(events):
            line = Line(width).add(" ").fit(roughly(now - event.t_ns), 5, "dim", right=True)
            role = _EVENT_ROLES.get(event.kind, "text")
            word = f"{event.kind}: " if event.kind in ("warning", "error") else ""
            line.add("  ").fit(word + clean(event.text, 200), line.left, role)
            rows.append(line.row())
        return rows


def _ranges(cpus: Sequence[int]) -> str:
    """``0-3,8``."""
    out: list[str] = []
    ordered = sorted(set(cpus))
    start = 0
    for index in range(1, len(ordered) + 1):
        if index == len(ordered) or ordered[index] != ordered[index - 1] + 1:
            first, last = ordered[start], ordered[index - 1]
            out.append(str(first) if first == last else f"{first}-{last}")
            start = index
    return ",".join(out)

"""One row per CPU: interrupts, softirqs, idle states, frequency, and who lives there."""

from __future__ import annotations

from collections.abc import Sequence

from agenttop.model.snapshot import Cpu, Load
from agenttop.text.figures import NA, clean, duration, frequency, percent, rate
from agenttop.widgets.paint import BLOCKS, Line, Row, Span, blocks, heat
from agenttop.widgets.panel import Panel, window


class Cpus(Panel):
    """Interrupt heat beside the agents that live on the CPU."""

    _top = 0

    def title(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        view = self.view
        left: list[Span] = [("CPUs ", "title"), (str(len(view.cpus)), "accent")]
        right: list[Span] = []
        host = view.host
        if host is not None and host.cpus_every_s:
            left.append((f" every {host.cpus_every_s:g} s", "dim"))
        if host is not None and host.idle_driver:
            right = [(clean(host.idle_driver, 24), "dim")]
            if host.idle_governor:
                right.append((f", {clean(host.idle_governor, 16)} governor", "dim"))
        return left, right

    def foot(self, width: int) -> tuple[Sequence[Span], Sequence[Span]]:
        """What there is to know about the selected CPU."""
        view = self.view
        if not self.active or not view.cpus:
            return (), ()
        cpu = view.cpus[min(view.cpu, len(view.cpus) - 1)]
        out: list[str] = []
        if cpu.freq_khz is None and view.reason("freq"):
            out.append(f"MHz N/A, {view.reason('freq')}")
        if not cpu.idle and view.reason("idle"):
            out.append(f"idle N/A, {view.reason('idle')}")
        ranked = sorted(cpu.irqs.items(), key=lambda item: -item[1].per_s)[:2]
        out += [f"{clean(name, 20)} {rate(load.per_s)}/s" for name, load in ranked]
        for name, load in sorted(cpu.softirqs.items(), key=_weight)[:1]:
            if load.p99_ns is not None:
                out.append(f"{name} raise to entry p99 {duration(load.p99_ns)}")
        for state in cpu.idle:
            if state.exit_p50_ns is not None:
                out.append(
                    f"{clean(state.name, 8)} promises {duration(state.latency_ns)}, "
                    f"takes {duration(state.exit_p50_ns)}"
                )
        return [(f"cpu {cpu.cpu}: ", "head_active"), (" · ".join(out), "dim")], ()

    def rows(self, width: int, height: int) -> list[Row]:
        cpus = self.view.cpus
        if not cpus:
            return [Line(width).add(" waiting for the first sample", "dim").row()]
        freq = any(cpu.freq_khz is not None for cpu in cpus)
        plan = _Plan(width, freq, bool(self.view.heat))
        rows = [plan.head()]
        room = height - 1
        at = min(self.view.cpu, len(cpus) - 1)
        self._top = window(len(cpus), at if self.active else 0, room, self._top)
        for index, cpu in enumerate(cpus[self._top : self._top + room], self._top):
            rows.append(self._row(cpu, plan, width, self.active and index == at))
        if height - len(rows) >= 4:
            rows += self._busiest(width, height - len(rows))
        return rows

    def _busiest(self, width: int, room: int) -> list[Row]:
        """What keeps the CPUs from the agents: interrupts and softirqs, the longest first."""
        found = [
            (name, cpu.cpu, load, kind)
            for cpu in self.view.cpus
            for kind, loads in (("irq", cpu.irqs), ("softirq", cpu.softirqs))
            for name, load in loads.items()
            if load.per_s > 0
        ]
        found.sort(key=lambda item: _weight((item[0], item[2])))
        line = Line(width).add("     ").fit("busiest", 26, "head").fit("kind", 9, "head")
        line.fit("CPU", 4, "head", right=True).fit("/s", 9, "head", right=True)
        line.fit("time", 8, "head", right=True)
        line.fit("raise to entry p99", 20, "head", right=True)
        rows = [Line(width).row(), line.row()]
        for name, number, load, kind in found[: room - 2]:
            line = Line(width).add("     ").fit(clean(name, 40), 25).add(" ")
            line.fit(kind, 9, "dim").fit(str(number), 4, right=True)
            line.fit(rate(load.per_s), 9, "text", right=True)
            line.fit(percent(load.ratio), 8, f"heat.{heat(load.ratio)}", right=True)
            if load.p99_ns is not None:
                line.fit(duration(load.p99_ns), 20, "text", right=True)
            rows.append(line.row())
        return rows

    def _row(self, cpu: Cpu, plan: _Plan, width: int, here: bool) -> Row:
        line = Line(width).add("▸" if here else " ", "accent")
        line.fit(str(cpu.cpu), 3, "strong", right=True).add(" ")
        if not cpu.online:
            return line.add(" offline", "dim").row("cursor" if here else "")
        line.extend(_heat(cpu.irq)).add(" ")
        top = min(cpu.softirqs.items(), key=_weight, default=("", None))[0]
        line.extend(_heat(cpu.softirq)).add(" ").fit(top[:7], 8, "dim")
        line.extend(self._idle(cpu, plan.idle)).add(" ")
        line.fit(percent(cpu.busy_ratio), 5, "text", right=True)
        steal = cpu.steal_ratio
        hot = steal is not None and steal > 0.02
        line.fit(percent(steal), 6, "alarm" if hot else "dim", right=True)
        if plan.freq:
            role = "dim" if cpu.freq_khz is None else "text"
            line.fit(frequency(cpu.freq_khz), plan.freq, role, right=True)
        line.add("  ")
        if plan.history:
            line.extend(self._history(cpu.cpu, plan.history)).add("  ")
        names = [self.view.name_of(agent) for agent in cpu.agents]
        text = " ".join(clean(name, 24) for name in names)
        if text:
            line.add("⌂ ", "good").fit(text, max(line.left, 0), "text")
        return line.row("cursor" if here else "")

    def _idle(self, cpu: Cpu, width: int) -> list[Span]:
        """What the CPU did with its time: idle states from shallow to deep, the rest ran."""
        if not cpu.idle:
            return [(f"{NA:<{width}}", "dim")]
        asleep = sum(state.ratio for state in cpu.idle)
        parts = [(max(1 - asleep, 0.0), "run", "block.busy")]
        parts += [
            (state.ratio, clean(state.name, 8), f"block.{self.view.appearance.idle(index)}")
            for index, state in enumerate(cpu.idle)
        ]
        spans = blocks(parts, width)
        used = sum(len(text) for text, _ in spans)
        return [*spans, (" " * (width - used), "text")]

    def _history(self, cpu: int, width: int) -> list[Span]:
        values = self.view.heat.get(cpu, [])[-width:]
        spans: list[Span] = [("·" * (width - len(values)), "faint")] if len(values) < width else []
        for value in values:
            if value is None:
                spans.append(("·", "faint"))
            else:
                level = heat(value)
                spans.append((BLOCKS[level], f"heat.{level}"))
        return spans


class _Plan:
    """Which columns there is room for."""

    def __init__(self, width: int, freq: bool, history: bool) -> None:
        self.width = width
        self.freq = 0 if width < 64 else 8 if freq else 5
        left = width - 5 - 8 - 8 - 8 - 12 - self.freq - 3
        # The agents that live there have twelve cells at least.
        self.idle = max(min(left - 12, 30), 8)
        left -= self.idle
        self.history = min(left - 22, 60) if history and left >= 34 else 0

    def head(self) -> Row:
        line = Line(self.width).add(" CPU ", "head").fit("irq", 7, "head").add(" ")
        line.fit("softirq", 16, "head").fit("running and idle", self.idle, "head").add(" ")
        line.fit("busy", 5, "head", right=True).fit("steal", 6, "head", right=True)
        if self.freq:
            line.fit("MHz", self.freq, "head", right=True)
        line.add("  ")
        if self.history:
            line.fit("irq+softirq", self.history, "head").add("  ")
        return line.fit("lives here", max(line.left, 0), "head").row()


def _heat(load: Load) -> list[Span]:
    """A block and the share of the time, or what counts can tell."""
    if load.ratio is None:
        return [("· ", "faint"), (f"{rate(load.per_s):>5}"[:5], "text")]
    level = heat(load.ratio)
    return [(f"{BLOCKS[level]} ", f"heat.{level}"), (f"{percent(load.ratio):>5}", "text")]


def _weight(item: tuple[str, Load]) -> tuple[float, float]:
    """Sorts the busiest first."""
    return -(item[1].ratio or 0.0), -item[1].per_s

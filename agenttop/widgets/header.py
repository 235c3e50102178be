"""Two lines (one on small screens): who and where, and what makes the figures believable."""

from __future__ import annotations

from typing import ClassVar

from agenttop.model.sample import Host
from agenttop.model.snapshot import TrustLine
from agenttop.model.vocabulary import OVERFLOW
from agenttop.text.ages import ago
from agenttop.text.figures import NA, clean, percent, rate
from agenttop.widgets.paint import Line, Row, Span, size_of
from agenttop.widgets.panel import Panel

#: A piece of the trust line, with how early it is given up when room is short (0: never).
Piece = tuple[int, list[Span]]

MODES = {"tp_btf": "BPF", "raw_tp": "BPF raw", "procfs": "/proc only"}


class Header(Panel):
    """Host and state, trust line, banner when something is missing."""

    DEFAULT_CSS = """
    Header { height: 2; width: 100%; }
    """
    FRAME: ClassVar[bool] = False

    def wanted_height(self, height: int) -> int:
        """One line, two, or three with a banner."""
        if height < 12:
            return 1
        host = self.view.host
        return 3 if host is not None and host.banner else 2

    def rows(self, width: int, height: int) -> list[Row]:
        rows = [self._first(width)]
        host = self.view.host
        if height > 1:
            rows.append(self._trust(width))
        if height > 2 and host is not None and host.banner:
            rows.append(
                Line(width).add(" ▪ " + clean(host.banner, width), "banner").to(
                    width, " ", "banner"
                ).row()
            )  # fmt: skip
        return rows

    def _first(self, width: int) -> Row:
        view, snapshot = self.view, self.view.snapshot
        line = Line(width).add(" agenttop ", "brand")
        if snapshot is None:
            return line.add("  waiting for the first sample", "dim").row()
        steps = snapshot.trust.steps_per_s
        right: list[Piece] = [(0, _state(view.paused, view.stale, view.age_ns))]
        if steps is not None:
            right.insert(0, (1, [(rate(steps), "strong"), (" steps/s", "dim")]))
        if view.since_toggle:
            right.insert(1, (2, [("since toggle", "marker")]))
        else:
            over = snapshot.interval_ns / 1e9
            right.insert(1, (4, [("over ", "dim"), (f"{over:.0f}s", "text")]))
        tail = _joined(right, width - line.used - 2)
        left = _joined(_host(snapshot.host), width - line.used - size_of(tail) - 4)
        line.add("  ").extend(left)
        return line.to(width - size_of(tail) - 1).extend(tail).row()

    def _trust(self, width: int) -> Row:
        view, snapshot = self.view, self.view.snapshot
        line = Line(width).add(" ")
        if snapshot is None:
            return line.row()
        pieces = trust_pieces(snapshot.trust, snapshot.host, view.age_ns, view.stale)
        return line.extend(_joined(pieces, width - 2)).row()


def _state(paused: bool, stale: bool, age_ns: int) -> list[Span]:
    if paused:
        return [("⏸ paused", "warn")]
    if stale:
        return [(f"stale {ago(age_ns)}", "alarm")]
    return [("● live", "good")]


def _host(host: Host) -> list[Piece]:
    cpus = f"{host.cpus} CPU" + ("s" if host.cpus != 1 else "")
    return [
        (0, [(clean(host.name, 32), "strong")]),
        (3, [("Linux ", "dim"), (clean(host.kernel, 32), "text")]),
        (2, [(cpus, "text")]),
        (1, [(MODES.get(host.mode, host.mode), "accent"), (f" {host.level}", "accent")]
            if host.mode != "procfs" else [("/proc only", "warn")]),
    ]  # fmt: skip


def trust_pieces(trust: TrustLine, host: Host, age_ns: int, stale: bool) -> list[Piece]:
    """The trust line; what is wrong is said in words and never given up."""
    chains = host.mode != "procfs"
    pieces: list[Piece] = [(3, [("trust", "head")])]
    if chains:
        lost = trust.lost
        named = ", ".join(
            f"{kind} {n:,}" for kind, n in trust.drops.items() if n and kind != OVERFLOW
        )
        what = f" LOST ({clean(named, 40)})" if named else " LOST"
        pieces.append(
            (0, [("drops ", "dim"), (f"{lost:,}" + (what if lost else ""), _mood(lost > 0))])
        )
        ratio = trust.unattributed_ratio
        pieces.append(
            (4, [("unattributed ", "dim"), (percent(ratio), _mood((ratio or 0) > 0.01, "warn"))])
        )
        coverage = trust.coverage_ratio
        thin = coverage is not None and coverage < 0.995
        pieces.append(
            (0 if thin else 5, [("coverage ", "dim"),
             (percent(coverage) + (" threads missing" if thin else ""), _mood(thin, "warn"))])
        )  # fmt: skip
        if trust.events_dropped:
            pieces.append(
                (4, [("process events dropped ", "dim"), (f"{trust.events_dropped:,}", "warn")])
            )
        if trust.slots_full:
            pieces.append((0, [(f"{trust.slots_full} agents WITHOUT A SLOT", "alarm")]))
    else:
        pieces.append((1, [("chains ", "dim"), (f"{NA}", "warn")]))
    bpf = percent(trust.bpf_ratio) if trust.bpf_ratio is not None else "off"
    pieces.append((2, [("self ", "dim"), (percent(trust.self_ratio), "text")]))
    if chains:
        pieces.append((6, [("bpf ", "dim"), (bpf, "text" if bpf != "off" else "dim")]))
    pieces.append(
        (0 if stale else 7, [("age ", "dim"), (ago(age_ns) + (" STALE" if stale else ""),
         _mood(stale))])
    )  # fmt: skip
    return pieces


def _mood(bad: bool, role: str = "alarm") -> str:
    return role if bad else "text"


def _joined(pieces: list[Piece], room: int) -> list[Span]:
    """The pieces with dots between them; those of the highest number go first when it is tight."""
    kept = list(pieces)

    def width() -> int:
        return sum(size_of(spans) for _, spans in kept) + 3 * max(len(kept) - 1, 0)

    while kept and width() > room:
        worst = max(range(len(kept)), key=lambda i: kept[i][0])
        if kept[worst][0] == 0 and len(kept) == 1:
            break
        kept.pop(worst)
    out: list[Span] = []
    for index, (_, spans) in enumerate(kept):
        if index:
            out.append((" · ", "faint"))
        out += spans
    return out

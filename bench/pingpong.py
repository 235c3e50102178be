"""What watching costs those who are watched: a pipe ping-pong on one CPU, traced and untraced."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import observers
from bench.report import Report

ROUND_TRIPS = 150_000

Observer = Callable[[], contextlib.AbstractContextManager[observers.Adopt]]


def run(report: Report, rounds: int) -> None:
    """Ratios of traced to untraced, each round's pair taken in one go."""
    candidates: list[tuple[str, Observer, float | None]] = [
        ("lite, not an agent", lambda: observers.agenttop("lite", False), 1.10),
        ("lite, as an agent", lambda: observers.agenttop("lite", True), 1.25),
        ("full, not an agent", lambda: observers.agenttop("full", False), 1.30),
        ("full, as an agent", lambda: observers.agenttop("full", True), 1.48),
    ]
    if observers.have_runqlat():
        candidates.append(("bcc runqlat", observers.runqlat, None))
    if observers.have_bpftrace():
        candidates.append(("bpftrace runqlat", observers.bpftrace, None))
        candidates.append(("bpftrace chain one-liners", observers.bpftrace_chain, None))
    with tempfile.TemporaryDirectory() as folder:
        program = compile_c(Path(__file__).with_name("pingpong.c"), Path(folder))
        untraced: list[float] = []
        ratios: dict[str, list[float]] = {name: [] for name, _, _ in candidates}
        for _ in range(rounds):
            for name, observer, _ in candidates:
                # Nobody before and after: the machine's drift falls out of the ratio.
                before = ping_pong(program, observers.nobody)
                traced = ping_pong(program, observer)
                after = ping_pong(program, observers.nobody)
                untraced += [before, after]
                ratios[name].append(2 * traced / (before + after))
    report.add("untraced", "ns", untraced)
    for name, _, limit in candidates:
        report.add(name, "x", ratios[name], limit)


def compile_c(source: Path, folder: Path) -> Path:
    """The program, made with the machine's C compiler."""
    target = folder / source.stem
    subprocess.run(["cc", "-O2", "-Wall", "-o", str(target), str(source)], check=True)
    return target


def ping_pong(program: Path, observer: Observer) -> float:
    """ns per round trip."""
    cpu = max(os.sched_getaffinity(0))
    with observer() as adopt:
        child = subprocess.Popen(
            [str(program), str(ROUND_TRIPS), str(cpu)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        pid = int(child.stdout.readline().split()[1])
        adopt(pid)
        out, _ = child.communicate("\n")
        return float(out)

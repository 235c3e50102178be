"""What the screen takes: CPU and bytes at 1 Hz, 200x50, on the demo."""

from __future__ import annotations

import time

from bench.processes import agenttop, cpu_s, rss_mb
from bench.report import Report
from bench.terminal import Terminal

WARM_S, MEASURE_S = 12, 10


def run(report: Report, rounds: int) -> None:
    """The process that draws, apart from the engine and from the demo's agents."""
    cpu: list[float] = []
    drawn: list[float] = []
    memory: list[float] = []
    terminal = Terminal(agenttop("demo"), emulate=False)
    try:
        terminal.read(WARM_S)
        for _ in range(rounds):
            before, count, started = cpu_s(terminal.pid), terminal.bytes, time.monotonic()
            terminal.read(MEASURE_S)
            elapsed = time.monotonic() - started
            cpu.append(100 * (cpu_s(terminal.pid) - before) / elapsed)
            drawn.append((terminal.bytes - count) / 1000 / elapsed)
            memory.append(rss_mb(terminal.pid))
    finally:
        terminal.close()
    report.add("screen CPU, demo, 200x50, 1 Hz", "% core", cpu, 2.0)
    report.add("drawn", "kB/s", drawn, 12.0)
    report.add("screen resident", "MB", memory)

"""From the command to the first step figures on the screen."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time

from bench.processes import agenttop
from bench.report import Report
from bench.terminal import Terminal

PATIENCE_S = 20.0


def run(report: Report, rounds: int) -> None:
    """An agent that runs already, 200x50; its row with steps a second must be drawn.

    Each round once as a later start, and once as the first start on a machine
    (an empty cache of compiled programs).
    """
    loop = subprocess.Popen(
        agenttop("loop", "--name", "benchloop", "--for", rounds * 30 + 60),
        stdout=subprocess.DEVNULL,
    )
    row = re.compile(rf"benchloop\s+{loop.pid}\s+1/1\s+[1-9]")
    kept = os.environ.get("AGENTTOP_CACHE")
    later: list[tuple[float, float]] = []
    first: list[tuple[float, float]] = []
    try:
        time.sleep(1)
        with tempfile.TemporaryDirectory() as cache:
            os.environ["AGENTTOP_CACHE"] = cache
            start(row)
            for _ in range(rounds):
                later.append(start(row))
                with tempfile.TemporaryDirectory() as empty:
                    os.environ["AGENTTOP_CACHE"] = empty
                    first.append(start(row))
                os.environ["AGENTTOP_CACHE"] = cache
    finally:
        if kept is None:
            os.environ.pop("AGENTTOP_CACHE", None)
        else:
            os.environ["AGENTTOP_CACHE"] = kept
        loop.kill()
        loop.wait()
    report.add("first frame", "s", [frame for frame, _ in later])
    report.add("first step figures", "s", [data for _, data in later], 2.0)
    report.add("first frame, first start ever", "s", [frame for frame, _ in first])
    report.add("first step figures, first start ever", "s", [data for _, data in first], 2.0)


def start(row: re.Pattern[str]) -> tuple[float, float]:
    """Seconds to the first frame, and to the row with figures."""
    terminal = Terminal(agenttop("--agent", "comm:^benchloop$"))
    frame = data = 0.0
    while not data and time.monotonic() - terminal.started < PATIENCE_S:
        terminal.read(0.02)
        if not frame and "CPU" in terminal.drawn():
            frame = time.monotonic() - terminal.started
        if row.search(terminal.drawn()):
            data = time.monotonic() - terminal.started
    terminal.close()
    if not data:
        raise RuntimeError("the loop's row never came")
    return frame, data

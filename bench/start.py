"""From the command to the first step figures on the screen."""

from __future__ import annotations

import re
import subprocess
import time

from bench.processes import agenttop
from bench.report import Report
from bench.terminal import Terminal

PATIENCE_S = 20.0


def run(report: Report, rounds: int) -> None:
    """An agent that runs already, 200x50; its row with steps a second must be drawn."""
    loop = subprocess.Popen(
        agenttop("loop", "--name", "benchloop", "--for", rounds * 15 + 30),
        stdout=subprocess.DEVNULL,
    )
    row = re.compile(rf"benchloop\s+{loop.pid}\s+1/1\s+[1-9]")
    frame: list[float] = []
    data: list[float] = []
    try:
        time.sleep(1)
        for _ in range(rounds):
            terminal = Terminal(agenttop("--agent", "comm:^benchloop$"))
            first = found = 0.0
            while not found and time.monotonic() - terminal.started < PATIENCE_S:
                terminal.read(0.02)
                if not first and "CPU" in terminal.drawn():
                    first = time.monotonic() - terminal.started
                if row.search(terminal.drawn()):
                    found = time.monotonic() - terminal.started
            terminal.close()
            if not found:
                raise RuntimeError("the loop's row never came")
            frame.append(first)
            data.append(found)
    finally:
        loop.kill()
        loop.wait()
    report.add("first frame", "s", frame)
    report.add("first step figures", "s", data, 2.0)

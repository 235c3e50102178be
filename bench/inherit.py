"""What the record of who inherits costs each system call while a thread is held."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from agenttop.policies.guardian import inheritance_programs
from bench.pingpong import compile_c
from bench.report import Report

RUNS = 9


def run(report: Report, rounds: int) -> None:
    """getppid(2) in a loop, the record attached and not, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        program = compile_c(Path(__file__).with_name("getppid.c"), Path(folder))
        untraced: list[float] = []
        cost: list[float] = []
        for _ in range(rounds):
            before = _measure(program)
            attached = inheritance_programs.Attached()
            try:
                traced = _measure(program)
            finally:
                attached.close().join()
            after = _measure(program)
            untraced += [before, after]
            cost.append(traced - (before + after) / 2)
    report.add("a system call, no thread held", "ns", untraced)
    report.add("more while a thread is held", "ns", cost)


def _measure(program: Path) -> float:
    """ns a call: the least of some runs, as what else the machine does only adds."""
    return min(float(subprocess.check_output([program], text=True)) for _ in range(RUNS))

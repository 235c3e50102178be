"""Start ``agenttop loop`` in tests: hold it before its first step, read its own figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: What ends a process, two of them in the long tier.
ENDINGS = [
    signal.SIGTERM,
    signal.SIGKILL,
    pytest.param(signal.SIGINT, marks=pytest.mark.long),
    pytest.param(signal.SIGHUP, marks=pytest.mark.long),
]
#: Long enough for a start on a loaded machine; a test fails by it, it never measures with it.
PATIENCE_S = 60


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "agenttop", "loop", *map(str, options)]


class Loop:
    """A loop started with --wait --json: ``pid`` is known before the first step."""

    def __init__(self, *options: object) -> None:
        self.process = subprocess.Popen(
            [*command(*options), "--wait", "--json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        if not ready.startswith("READY pid="):
            _, stderr = self.process.communicate(timeout=PATIENCE_S)
            raise AssertionError(f"the loop did not get ready: {ready!r} {stderr}")
        self.pid = int(ready.partition("=")[2])

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Waits for the end; the loop's own figures."""
        stdout, stderr = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, stderr
        return dict(json.loads(stdout))

    def run(self) -> dict[str, Any]:
        self.go()
        return self.result()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextmanager
def loop(*options: object) -> Iterator[Loop]:
    """A loop that is ready and has not begun; killed with the block if it still runs."""
    started = Loop(*options)
    try:
        yield started
    finally:
        started.close()


def until(condition: Callable[[], bool]) -> bool:
    """Whether the condition came true within PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def processes(*, session: int | None = None, holding: str | None = None) -> set[int]:
    """Running pids with this session, or with this text as an argument of their command line."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not alive(int(entry.name)):
            continue
        try:
            if session is not None and os.getsid(int(entry.name)) != session:
                continue
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if holding is None or holding.encode() in arguments:
            found.add(int(entry.name))
    return found


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[str, str]:
    """Send a signal and wait for the end; stdout and stderr."""
    process.send_signal(number)
    return process.communicate(timeout=PATIENCE_S)

"""Starts the demo's agents and noise, knows their pids, and ends them all.

Whatever ends the demo ends them: each asks the kernel to be killed with it,
has an alarm of its own, and their files have no names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from agenttop.linux.isolation import PACKAGE_ROOT
from agenttop.workloads.sources import tcp_pair

#: Size -> how many of each kind of agent.
SIZES: Final = {"small": 1, "medium": 3, "large": 8}
AGENTS: Final = ("coder", "retriever", "toolcaller", "voice")
#: Agents that talk to a server process of their own, and that server's comm.
SERVERS: Final = {"coder": "model-server", "toolcaller": "tool-server"}
HOGS: Final = 2

#: Nothing of the demo outlives this, even with the screen left open.
LIMIT_S: Final = 3600

#: On top of it for what starts beside them: the BPF programs, the screen.
START_S: Final = 60

_START: Final = (
    "import sys; sys.path.append(sys.argv.pop(1));"
    "from agenttop.workloads.actors import main; main(sys.argv[1:])"
)


class Demo:
    """Running agents and noise; a context manager that ends them."""

    def __init__(self, size: str = "small", seconds: float = LIMIT_S) -> None:
        """Start everything; ``seconds`` bounds it should nobody end it. Raises OSError.

        Call it from a thread that lasts as long as the demo (PR_SET_PDEATHSIG
        follows the thread).
        """
        #: Agent's name -> its root process.
        self.agents: dict[str, int] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # Where the actors' last words go: in memory, without a name.
        self._words = os.memfd_create("agenttop-demo-errors")
        self._rules = -1
        self._seconds = int(min(seconds, LIMIT_S)) + START_S
        self._stretch = SIZES[size]
        try:
            for kind in AGENTS:
                for number in range(self._stretch):
                    name = kind if self._stretch == 1 else f"{kind}-{number + 1}"
                    self.agents[name] = self._agent(kind, name)
            for number in range(HOGS):
                self._start("hog", f"hog-{number + 1}")
            self._start("writer", "writer")
        except BaseException:
            self.close()
            raise

    def _agent(self, kind: str, name: str) -> int:
        if kind not in SERVERS:
            return self._start(kind, name)
        near, far = tcp_pair()
        with near, far:
            server = SERVERS[kind] + name.removeprefix(kind)
            self._start("server", server, far.fileno())
            return self._start(kind, name, near.fileno())

    def _start(self, kind: str, name: str, fd: int = -1) -> int:
        seed = len(self._processes) + 1
        numbers = (os.getpid(), self._seconds, seed, self._stretch, fd)
        process = subprocess.Popen(
            # -S: none of them needs a package, and they start in half the time.
            [
                sys.executable,
                "-I",
                "-S",
                "-c",
                _START,
                PACKAGE_ROOT,
                kind,
                name,
                *map(str, numbers),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._words,
            pass_fds=(fd,) if fd >= 0 else (),
        )
        self._processes[name] = process
        return process.pid

    def rules_file(self) -> str:
        """A path of rules for exactly these agents; there while this object is open."""
        if self._rules < 0:
            self._rules = os.memfd_create("agenttop-demo-rules")
            rules = "".join(
                f"  - name: {name}\n    match: pid:{pid}\n" for name, pid in self.agents.items()
            )
            os.write(self._rules, f"rules:\n{rules}".encode())
        return f"/proc/{os.getpid()}/fd/{self._rules}"

    @property
    def background(self) -> list[int]:
        """Processes of the noise: the hogs and the writer."""
        return [p.pid for name, p in self._processes.items() if name.startswith(("hog", "writer"))]

    def failed(self) -> list[str]:
        """The last line of each actor that could not run; empty when all are well."""
        ended = [name for name, process in self._processes.items() if process.poll() is not None]
        words = os.pread(self._words, 1 << 16, 0).decode(errors="replace").splitlines()
        told = {line.partition(":")[0]: line for line in words}
        return [told.get(name, f"{name}: ended early") for name in ended]

    def close(self) -> None:
        """End every process and wait for it."""
        for process in self._processes.values():
            # They hold nothing that a gentler signal would help them put away.
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        for fd in (self._words, self._rules):
            if fd >= 0:
                os.close(fd)
        self._words = self._rules = -1

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""``agenttop`` without its start: a process that has imported it forks for each command.

What a command does and says is the same: arguments, environment, working directory, standard
streams and exit code are those of a process of its own. How it starts is shown elsewhere.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.loops import PATIENCE_S

SERVER = """
import importlib, json, os, signal, socket, sys
from agenttop import cli
for command in cli.COMMANDS:
    importlib.import_module(f"agenttop.commands.{command}")
channel = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, fds, _, _ = socket.recv_fds(channel, 1 << 20, 3)
    if not message:
        sys.exit()
    pid = os.fork()
    if pid == 0:
        break
    for fd in fds:
        os.close(fd)
    channel.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
channel.close()
for number, fd in enumerate(fds):
    os.dup2(fd, number)
    os.close(fd)
wanted = json.loads(message)
os.environ.clear()
os.environ.update(wanted["environ"])
os.chdir(wanted["cwd"])
sys.argv[1:] = wanted["arguments"]
sys.exit(cli.main())
"""


class Warm:
    """Runs commands, one after the other."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-c", SERVER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        self._channel.settimeout(PATIENCE_S)

    def run(
        self, *arguments: str, cwd: Path, environ: dict[str, str]
    ) -> subprocess.CompletedProcess[bytes]:
        """As subprocess.run would, with nothing to read on stdin."""
        message = {"arguments": arguments, "cwd": str(cwd), "environ": environ}
        with (
            open(os.devnull, "rb") as stdin,
            tempfile.TemporaryFile() as stdout,
            tempfile.TemporaryFile() as stderr,
        ):
            fds = [stdin.fileno(), stdout.fileno(), stderr.fileno()]
            socket.send_fds(self._channel, [json.dumps(message).encode()], fds)
            code = int(self._channel.recv(64))
            for file in (stdout, stderr):
                file.seek(0)
            return subprocess.CompletedProcess(arguments, code, stdout.read(), stderr.read())

    def close(self) -> None:
        self._channel.close()
        try:
            self._server.wait(5)
        except subprocess.TimeoutExpired:  # it waits for a command that does not end
            self._server.kill()
            self._server.wait()


@contextmanager
def warm() -> Iterator[Warm]:
    started = Warm()
    try:
        yield started
    finally:
        started.close()

"""Starts a loop's peer outside the loop's process tree.

agenttop counts a process's children as part of the agent, and the peer must
not be: so it is forked twice (the system adopts it), in a session of its own.
It cannot then follow its starter by PR_SET_PDEATHSIG; the request channel's
end-of-file tells it instead.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agenttop.errors import UserError

PEER_SCRIPT: Final = Path(__file__).with_name("peer.py")


def peer_command(
    kind: str, name: str, interval_ns: int, cpu: int | None, slack_ns: int, fds: Sequence[int]
) -> list[str]:
    """The command line of a peer; ``fds``: request, answer and shared page, which it inherits."""
    numbers = (interval_ns, -1 if cpu is None else cpu, slack_ns, *fds)
    return [sys.executable, "-I", "-S", str(PEER_SCRIPT), kind, name, *map(str, numbers)]


def start_outside(command: list[str], fds: Sequence[int]) -> int:
    """Run ``command`` with ``fds`` open and nothing else; its pid, once it is ready.

    The command gets one more argument: a descriptor that it closes when it is
    ready. Waiting is a plain read: a sleep or a poll would tell agenttop that
    this thread's gates are of that kind (agenttop.model.vocabulary). Call it while the
    process has one thread. Raises UserError.
    """
    report, reply = os.pipe()
    middle = os.fork()
    if middle == 0:
        _middle(command, fds, reply)
    os.close(reply)
    os.waitpid(middle, 0)
    with open(report, "rb") as pipe:
        # End-of-file: the peer has closed the other end, or is gone.
        pid, _, failure = pipe.read().partition(b"\n")
    if failure or not pid:
        raise UserError(f"cannot start the peer: {failure.decode() or 'no process to be had'}")
    return int(pid)


def _middle(command: list[str], fds: Sequence[int], reply: int) -> None:
    """Between the two forks: never returns."""
    try:
        os.setsid()
        pid = os.fork()
        if pid:
            os.write(reply, b"%d\n" % pid)
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        for fd in (*fds, reply):
            os.set_inheritable(fd, True)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.execv(command[0], [*command, str(reply)])
    except OSError as error:
        os.write(reply, str(error).encode())
    finally:
        os._exit(127)

"""The demo's processes, one kind each (demo.py starts them).

Each takes the comm of its kind and dies with the demo. The agents wait in
the gates that such programs really use; what they compute is a busy loop.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import socket
import sys
import sysconfig
import time
from collections.abc import Callable
from typing import Final

from agenttop.errors import UserError
from agenttop.workloads import noise, syscalls, uring
from agenttop.workloads.blockfile import BLOCK, BlockFile
from agenttop.workloads.noise import ASK, burn

MS: Final = 1_000_000
US: Final = 1_000

#: Of the retriever's index, read past the page cache.
INDEX_SIZE: Final = 16 << 20

#: Agents that are started ``stretch`` times pause that much longer, so that
#: a larger demo shows more agents and uses about the same CPU.
Stretch = int


def coder(model: socket.socket, seed: int, stretch: Stretch) -> None:
    """Reads the model's streamed answer, then files, then runs a tool: one epoll loop."""
    chance = random.Random(seed)
    poller = select.epoll()
    poller.register(model, select.EPOLLIN)
    library = sysconfig.get_path("stdlib")
    files = [entry.path for entry in os.scandir(library) if entry.name.endswith(".py")]
    tool = shutil.which("true")
    while True:
        tokens = chance.randint(10, 40)
        model.send(ASK.pack(tokens, chance.randint(2, 5) * MS * stretch, 120))
        left = tokens * 120
        while left:
            poller.poll()
            left -= len(model.recv(4096))
            burn(round(chance.lognormvariate(0, 0.6) * 150 * US))  # parse what came
        for path in chance.sample(files, min(6, len(files))):
            os.stat(path)
            with open(path, "rb") as file:
                file.read()
        burn(chance.randint(300, 3000) * US)  # plan the next turn
        if tool and chance.random() < 0.7:
            pid = os.posix_spawn(tool, ["true"], {})
            ended = os.pidfd_open(pid)
            poller.register(ended, select.EPOLLIN)
            poller.poll()
            os.close(ended)
            os.waitpid(pid, 0)


def toolcaller(tools: socket.socket, seed: int, stretch: Stretch) -> None:
    """One request, one answer, over TCP: the shortest loop, the most steps."""
    chance = random.Random(seed)
    poller = select.epoll()
    poller.register(tools, select.EPOLLIN)
    while True:
        size = chance.choice((200, 2_000, 40_000))
        tools.send(ASK.pack(1, chance.randint(500, 1500) * US * stretch, size))
        while size:
            poller.poll()
            size -= len(tools.recv(1 << 16))
        burn(chance.randint(60, 160) * US)


def voice(frame_ns: int) -> None:
    """A frame of sound at each tick of a timer; a late one is a gap to be heard."""
    timer = syscalls.timerfd_create()
    syscalls.timerfd_start(timer, time.monotonic_ns() + frame_ns, frame_ns)
    poller = select.epoll()
    poller.register(timer, select.EPOLLIN)
    while True:
        poller.poll()
        os.read(timer, 8)
        burn(700 * US)


def retriever(seed: int, stretch: Stretch) -> None:
    """Looks passages up in an index on disk: one process by io_uring, its child by pread."""
    index = BlockFile(None, INDEX_SIZE)
    chance = random.Random(seed)
    pause = 15 * MS * stretch
    parent = os.getpid()
    if os.fork() == 0:
        syscalls.die_with(parent)
        _by_pread(index, chance, pause)
    try:
        ring = uring.Uring()
    except UserError:
        _by_pread(index, random.Random(-seed), pause)  # io_uring is forbidden here
    _by_uring(index, ring, chance, pause)


def _offset(index: BlockFile, chance: random.Random) -> int:
    return chance.randrange(index.blocks) * BLOCK


def _by_pread(index: BlockFile, chance: random.Random, pause: int) -> None:
    # Its pauses are reads of a timer: a sleep would make that its only gate (model.vocabulary).
    timer = syscalls.timerfd_create()
    while True:
        for _ in range(8):
            syscalls.pread(index.fd, index.address, BLOCK, _offset(index, chance))
            burn(120 * US)  # score the passage
        syscalls.timerfd_start(timer, time.monotonic_ns() + pause, 0)
        os.read(timer, 8)


def _by_uring(index: BlockFile, ring: uring.Uring, chance: random.Random, pause: int) -> None:
    until = syscalls.Timespec()
    until_address = syscalls.address(until)
    while True:
        for _ in range(8):
            ring.queue(uring.OP_READ, index.fd, index.address, BLOCK, _offset(index, chance))
            ring.wait()
            ring.reap()
            burn(120 * US)
        until.sec, until.nsec = divmod(time.monotonic_ns() + pause, 1000 * MS)
        ring.queue(uring.OP_TIMEOUT, -1, until_address, 1, 0, uring.TIMEOUT_ABS)
        ring.wait()
        ring.reap()


def main(arguments: list[str]) -> None:
    """KIND NAME PARENT SECONDS SEED STRETCH SOCKET (-1: none)."""
    kind, name, *numbers = arguments
    parent, seconds, seed, stretch, fd = map(int, numbers)
    syscalls.die_with(parent)
    signal.alarm(seconds)  # ends it, should the demo forget to
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the demo's to answer
    syscalls.set_name(name)
    link = socket.socket(fileno=fd) if fd >= 0 else socket.socket()
    actors: dict[str, Callable[[], None]] = {
        "coder": lambda: coder(link, seed, stretch),
        "retriever": lambda: retriever(seed, stretch),
        "toolcaller": lambda: toolcaller(link, seed, stretch),
        "voice": lambda: voice(10 * MS * stretch),
        "server": lambda: noise.server(link),
        "hog": lambda: noise.hog(seed),
        "writer": noise.writer,
    }
    try:
        actors[kind]()
    except ConnectionError:
        pass
    except (UserError, OSError) as error:
        # One line for the demo to pass on.
        sys.exit(f"{name}: {error}")

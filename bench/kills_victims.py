"""Processes whose settings are changed beside kills: ``python -m bench.kills_victims KIND``.

odd     threads with names that break readers, and with choices of their own
forker  forks all the time; some of its children choose CPU 0 themselves, some fork too
hog     named killhog, what demote takes
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from contextlib import suppress

from bench.kills_owner import die_with_parent

NAMES = (b"\xff\xfe\x80", b"a\nb", b") R 1 (", b"", b"\x1b[2J", b"% s %n", b"a b\\c")
#: Of a child that chose CPU 0, and while it does.
CHOSE, CHOOSING = b"chose", b"choosing"
#: How often the forker forks, and how long its children live, s.
EVERY_S, LIFE_S = 0.04, 0.8

_libc = ctypes.CDLL(None)


def _name(name: bytes) -> None:
    _libc.prctl(15, ctypes.c_char_p(name))


def _loop() -> None:
    while True:
        time.sleep(0.02)


def odd() -> None:
    ready = threading.Barrier(len(NAMES) + 1)

    def start(number: int, name: bytes) -> None:
        _name(name)
        if number == 1:
            os.sched_setaffinity(0, {0})
        if number == 2:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)
        if number == 3:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        ready.wait()
        _loop()

    for number, name in enumerate(NAMES):
        threading.Thread(target=start, args=(number, name), daemon=True).start()
    ready.wait()
    print("ready", flush=True)
    _loop()


def _child(number: int) -> None:
    end = time.monotonic() + LIFE_S
    if number % 5 == 0:
        _name(CHOOSING)
        os.sched_setaffinity(0, {0})
        _name(CHOSE)
    if number % 3 == 0 and not os.fork():
        time.sleep(LIFE_S / 2)
        os._exit(0)
    while time.monotonic() < end:
        time.sleep(0.1)
        with suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)


def forker() -> None:
    print("ready", flush=True)
    number = 0
    while True:
        number += 1
        if not os.fork():
            _child(number)
            os._exit(0)
        time.sleep(EVERY_S)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def hog() -> None:
    _name(b"killhog")
    print("ready", flush=True)
    _loop()


if __name__ == "__main__":
    die_with_parent()
    {"odd": odd, "forker": forker, "hog": hog}[sys.argv[1]]()

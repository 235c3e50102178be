"""The engine's end of a lease: starts the guardian, renews, sends it what to write.

Whatever happens to the guardian, the knobs come back: if it is killed or
does not answer, the engine ends it and undoes what the journal holds.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from agenttop.policies import inherit_bpf, lock
from agenttop.policies.guardian import LEASE_S, MAX_MESSAGE
from agenttop.policies.heart import Heart
from agenttop.policies.journal import JournalError, Key, load, open_state_dir
from agenttop.policies.knobs import Change
from agenttop.policies.undo import Outcome, recover
from agenttop.ready import readable

#: The guardian starts within some 40 ms; a loaded or emulated machine gets more.
START_S: Final = 20.0
#: It answers within a millisecond or two.
ANSWER_S: Final = 2.0
#: Changes in one message.
BATCH: Final = 200
#: Processes in one.
HEIRS: Final = 10_000

_START: Final = (
    "import sys; sys.path.insert(0, sys.argv.pop());"
    "from agenttop.policies.guardian import main; main()"
)


class Result(NamedTuple):
    """What became of one change."""

    change: Change
    #: ok; changed: somebody else set it meanwhile, text has the value;
    #: gone: the target has ended; refused: text has the kernel's reason.
    status: str
    text: str


class Notice(NamedTuple):
    """What the guardian, or the engine in its place, undid unasked."""

    why: str
    outcomes: list[Outcome]
    #: The lease is over: nothing is held any more.
    lost: bool
    #: Else: the policy that was given back, "" for all.
    policy: str = ""


class LeaseLostError(Exception):
    """The lease ended during a request; everything has been undone."""

    def __init__(self, notice: Notice) -> None:
        super().__init__(notice.why)
        self.notice = notice


class Lease:
    """One lease. Raises LockedError and JournalError when it cannot be had."""

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir
        self._lock = lock.acquire(state_dir)
        self._inbox: list[dict[str, Any]] = []
        #: Those that came before the message that they belong to.
        self._rows: list[Any] = []
        self._id = 0
        self._kernel: inherit_bpf.Attached | None = None
        self._unanswered: float | None = None
        self._heart: Heart | None = None
        self._polled = time.monotonic()
        #: What the guardian did for the latency windows (window_watch.Watch.figures).
        self.figures: dict[str, Any] = {}
        self.watching = False
        #: What a dead predecessor had left, undone now; None: it had left no journal.
        self.recovered: list[Outcome] | None = None
        try:
            if kept(state_dir):
                raise JournalError(
                    "policies were left applied with --keep: 'agenttop restore' undoes them first"
                )
            self.recovered = self._recover()
            # Who inherits what is held; None where the kernel cannot tell (inherit_bpf.py).
            self._kernel = inherit_bpf.attach()
            self._spawn()
        except BaseException:
            self._end_record()
            lock.release(self._lock)
            raise

    def keep(self) -> list[Outcome]:
        """End the guardian and leave applied what can be; what was given back nevertheless.

        The journal stays, marked, for ``agenttop restore``. Raises LeaseLostError.
        """
        outcomes = _outcomes(self._request({"op": "keep"}))
        try:
            self._guardian.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            pass
        self._end_guardian()
        self._end_record()
        lock.release(self._lock)
        return outcomes

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            engine = os.pidfd_open(os.getpid())
        except (AttributeError, OSError):
            engine = -1  # Without pidfds the closing socket tells of our death.
        package_root = str(Path(__file__).resolve().parents[2])
        fds = [theirs.fileno(), engine, *self._lock]
        record = self._kernel.fds if self._kernel else []
        map_fd = str(record[0]) if record else "-1"
        arguments = [*map(str, fds[:2]), os.path.abspath(self._state_dir), map_fd, package_root]
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # All of the record's, so that it goes on when the engine is killed.
            pass_fds=[fd for fd in [*fds, *record] if fd >= 0],
            start_new_session=True,
            cwd="/",
        )
        theirs.close()
        if engine >= 0:
            os.close(engine)
        self._channel = ours
        try:
            self._pidfd = os.pidfd_open(self._guardian.pid)
        except (AttributeError, OSError):
            self._pidfd = -1
        lock.sign(self._lock, os.getpid(), self._guardian.pid)
        message = self._read(START_S)
        if message is None or message.get("op") != "ready":
            self._end_guardian()
            raise JournalError("the guardian process did not start; no policy without it")
        self._heart = Heart(self._renew)

    # ----------------------------------------------------------------- at work

    @property
    def guardian(self) -> int:
        """Its process id."""
        return self._guardian.pid

    def fds(self) -> list[int]:
        """Readable when poll() has something to tell."""
        return [fd for fd in (self._channel.fileno(), self._pidfd) if fd >= 0]

    def beat(self) -> None:
        """Renew the lease. Between two calls, up to heart.BUSY_S apart, it renews itself."""
        assert self._heart is not None
        self._heart.came_by()
        if self._unanswered is None:
            self._unanswered = time.monotonic()
        self._renew()

    def _renew(self) -> None:
        self._send({"op": "beat"})

    def poll(self) -> list[Notice]:
        """What happened by itself. After one with ``lost`` the lease is of no more use."""
        while (message := self._read(0)) is not None:
            self._inbox.append(message)
            if message["op"] in ("lost", "closed"):
                break
        notices = []
        for message in self._inbox:
            if message["op"] == "reverted":
                outcomes = _outcomes(message["outcomes"])
                notices.append(Notice(message["why"], outcomes, False, message["policy"]))
            elif message["op"] in ("lost", "closed"):
                notices.append(self._lost(message))
                break
        self._inbox.clear()
        now = time.monotonic()
        stalled, self._polled = now - self._polled > LEASE_S / 2, now
        if self._unanswered is not None and now - self._unanswered > LEASE_S:
            if stalled:  # It was us who did not run.
                self._unanswered = now
            elif not any(notice.lost for notice in notices):
                notices.append(self._lost({"op": "closed", "why": "the guardian does not answer"}))
        return notices

    def apply(self, changes: Sequence[Change]) -> list[Result]:
        """Write knobs. Raises LeaseLostError."""
        results = []
        for start in range(0, len(changes), BATCH):
            batch = changes[start : start + BATCH]
            answers = self._request({"op": "apply", "changes": batch})
            results += [Result(c, *answer) for c, answer in zip(batch, answers, strict=True)]
        return results

    def watch(self, ring: int, cells: int, pages: int, size: int) -> None:
        """Have the guardian watch the kernel's windows: two maps, and what is in them."""
        message = {"op": "watch", "pages": pages, "size": size}
        try:
            socket.send_fds(self._channel, [_packed(message)], [ring, cells], socket.MSG_DONTWAIT)
            self.watching = True
        except OSError:
            pass  # Reading tells what became of the guardian.

    def follow(self, changes: Sequence[Change], cells: Sequence[Sequence[int]]) -> list[Result]:
        """Have knobs changed while a window holds one of their cells. Raises LeaseLostError."""
        results = []
        for start in range(0, len(changes), BATCH):
            batch, where = changes[start : start + BATCH], cells[start : start + BATCH]
            answers = self._request({"op": "follow", "changes": batch, "cells": where})
            results += [Result(c, *answer) for c, answer in zip(batch, answers, strict=True)]
            self.figures.pop("foreign", None)  # Told before these began.
        return results

    def undo(self, keys: Sequence[Key]) -> list[Outcome]:
        """Give knobs back. Raises LeaseLostError."""
        outcomes = []
        for start in range(0, len(keys), BATCH):
            batch = keys[start : start + BATCH]
            outcomes += _outcomes(self._request({"op": "undo", "keys": batch}))
        return outcomes

    def release_heirs(self, groups: Iterable[Iterable[int]]) -> list[Outcome]:
        """Give back what threads of these processes (of an agent each) inherited. LeaseLostError.

        See undo.release_heirs.
        """
        outcomes: list[Outcome] = []
        message: list[list[int]] = []
        room = HEIRS
        for group in groups:
            pids = sorted(group)[:HEIRS]
            if len(pids) > room:
                outcomes += _outcomes(self._request({"op": "heirs", "groups": message}))
                message, room = [], HEIRS
            message.append(pids)
            room -= len(pids)
        return outcomes + _outcomes(self._request({"op": "heirs", "groups": message}))

    def close(self) -> list[Outcome]:
        """Give everything back and end the guardian."""
        try:
            outcomes = _outcomes(self._request({"op": "close"}))
        except LeaseLostError as lost:
            return lost.notice.outcomes
        try:
            self._guardian.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            pass
        self._end_guardian()
        return self._repair(outcomes)

    # ----------------------------------------------------------------- the channel

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(_packed(message), socket.MSG_DONTWAIT)
        except OSError:
            pass  # Reading tells what became of the guardian.

    def _read(self, timeout: float) -> dict[str, Any] | None:
        """The next message; None when none came in time; "closed" once the guardian is dead."""
        if not readable(self._channel.fileno(), timeout):
            return None
        try:
            data = self._channel.recv(MAX_MESSAGE * 2, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            return {"op": "closed", "why": "the guardian was killed"}
        message: dict[str, Any] = json.loads(data)
        if message["op"] == "more":
            self._rows += message["rows"]
            return self._read(timeout)
        if message["op"] == "alive":
            self._unanswered = None
            self.figures = message.get("watch", {})
        for key in ("results", "outcomes"):
            if key in message:
                message[key] = self._rows + message[key]
                self._rows = []
        return message

    def _request(self, message: dict[str, Any]) -> list[Any]:
        self._id += 1
        self._send({**message, "id": self._id})
        deadline = time.monotonic() + ANSWER_S
        while (left := deadline - time.monotonic()) > 0:
            answer = self._read(left)
            if answer is None:
                continue
            if answer["op"] == "done" and answer["id"] == self._id:
                results: list[Any] = answer["results"]
                return results
            if answer["op"] in ("lost", "closed"):
                raise LeaseLostError(self._lost(answer))
            self._inbox.append(answer)
        raise LeaseLostError(self._lost({"op": "closed", "why": "the guardian does not answer"}))

    # ----------------------------------------------------------------- the end

    def _lost(self, message: dict[str, Any]) -> Notice:
        """The guardian is dead, dying or deaf: make sure, and undo what it has left."""
        outcomes = _outcomes(message.get("outcomes", []))
        if message["op"] == "lost":
            try:
                self._guardian.wait(ANSWER_S)
            except subprocess.TimeoutExpired:
                pass
        self._end_guardian()
        return Notice(message["why"], self._repair(outcomes), True)

    def _repair(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Undo what the guardian has left; ``outcomes``: what it did, to which that is added."""
        try:
            again = self._recover() or []
        except (JournalError, OSError) as error:
            return [*outcomes, Outcome("", "", "", str(error), settled=False)]
        finally:
            self._end_record()
            lock.release(self._lock)
        # What it could not give back is told of as it is now, once.
        return [outcome for outcome in outcomes if outcome.settled] + again

    def _recover(self) -> list[Outcome] | None:
        dir_fd = open_state_dir(self._state_dir)
        assert dir_fd is not None
        try:
            return recover(dir_fd, self._kernel.record if self._kernel else None)
        finally:
            os.close(dir_fd)

    def _end_record(self) -> None:
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def _end_guardian(self) -> None:
        if self._heart is not None:
            self._heart.stop()
        self._guardian.kill()
        self._guardian.wait()
        self._channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def kept(state_dir: str) -> bool:
    """Whether a journal is there whose changes were left applied on purpose. JournalError."""
    dir_fd = open_state_dir(state_dir, create=False)
    if dir_fd is None:
        return False
    try:
        found = load(dir_fd)
    finally:
        os.close(dir_fd)
    return found is not None and found.kept


def _packed(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def _outcomes(rows: list[list[Any]]) -> list[Outcome]:
    return [Outcome(*row) for row in rows]

"""The engine's end of a lease: starts the guardian, renews, sends it what to write.

Whatever happens to the guardian, the knobs come back: if it is killed or
does not answer, the engine ends it and undoes what the journal holds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from agenttop.linux.readiness import readable, writable
from agenttop.policies.guardian import inheritance_programs, liveness, lock, protocol
from agenttop.policies.guardian.heartbeat import Heart
from agenttop.policies.guardian.journal import JournalError, Key, load, open_state_dir
from agenttop.policies.guardian.process import LEASE_S
from agenttop.policies.guardian.undo import THREAD_KINDS, Outcome, recover
from agenttop.policies.knobs.base import Change

#: The guardian starts within some 40 ms; a loaded or emulated machine gets more.
START_S: Final = 20.0
#: It answers within a millisecond or two, or says that it is busy (guardian.BUSY_S).
ANSWER_S: Final = 2.0
#: And for each new setting so much more: they are noted on a disk together.
EACH_S: Final = 0.02
#: asm-generic/socket.h; needs CAP_NET_ADMIN.
_SO_SNDBUFFORCE: Final = 32
#: Changes in one message.
BATCH: Final = 200
#: Processes in one.
HEIRS: Final = 10_000

_START: Final = (
    "import sys; sys.path.insert(0, sys.argv.pop());"
    "from agenttop.policies.guardian.process import main; main()"
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


#: The types of an Outcome's fields.
_OUTCOME: Final = [str, str, str, str, bool, bool]
#: Words that it could not say itself.
_KILLED: Final = protocol.Lost("the guardian was killed", [])
_STOPPED: Final = protocol.Lost("the guardian was stopped", [])
_DEAF: Final = protocol.Lost("the guardian does not answer", [])

Request = (
    protocol.Apply
    | protocol.Follow
    | protocol.Undo
    | protocol.Heirs
    | protocol.Record
    | protocol.Close
    | protocol.Keep
)


class Lease:
    """One lease. Raises LockedError and JournalError when it cannot be had."""

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir
        self._lock = lock.acquire(state_dir)
        self._inbox: list[protocol.Message] = []
        #: Those that came before the message that they belong to.
        self._rows: list[Any] = []
        self._id = 0
        #: Who inherits from held threads; None while none is held, as it costs every system call
        #: of the machine, and where the kernel has no such record.
        self._kernel: inheritance_programs.Attached | None = None
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
            self._spawn()
        except BaseException:
            lock.release(self._lock)
            raise

    def keep(self) -> list[Outcome]:
        """End the guardian and leave applied what can be; what was given back nevertheless.

        The journal stays, marked, for ``agenttop restore``. Raises LeaseLostError.
        """
        outcomes = _outcomes(self._request(protocol.Keep(self._next())))
        try:
            self._guardian.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            pass
        self._end_guardian()
        self._close_record()
        lock.release(self._lock)
        return outcomes

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            # A packet has to fit, whatever net.core.wmem_default is.
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 4 * protocol.MAX_BYTES)
        try:
            engine = os.pidfd_open(os.getpid())
        except (AttributeError, OSError):
            engine = -1  # Without pidfds the closing socket tells of our death.
        package_root = str(Path(__file__).resolve().parents[3])
        fds = [theirs.fileno(), engine, *self._lock]
        arguments = [*map(str, fds[:2]), os.path.abspath(self._state_dir), package_root]
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[fd for fd in fds if fd >= 0],
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
        if not isinstance(message, protocol.Ready):
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
        self._send(protocol.Beat())

    def poll(self) -> list[Notice]:
        """What happened by itself. After one with ``lost`` the lease is of no more use."""
        while (message := self._read(0)) is not None:
            self._inbox.append(message)
            if isinstance(message, protocol.Lost):
                break
        notices = []
        for message in self._inbox:
            if isinstance(message, protocol.Reverted):
                outcomes = _outcomes(message.rows)
                notices.append(Notice(message.why, outcomes, False, message.policy))
            elif isinstance(message, protocol.Lost):
                notices.append(self._lost(message))
                break
        self._inbox.clear()
        now = time.monotonic()
        stalled, self._polled = now - self._polled > LEASE_S / 2, now
        if self._unanswered is not None and not any(notice.lost for notice in notices):
            if stalled:  # It was us who did not run.
                self._unanswered = now
            elif deaf := self._deaf(now - self._unanswered, LEASE_S):
                notices.append(self._lost(deaf))
        return notices

    def apply(self, changes: Sequence[Change]) -> list[Result]:
        """Write knobs. Raises LeaseLostError."""
        self._begin_record(changes)
        results: dict[int, Result] = {}
        for batch in _batches(changes, results):
            wanted = [changes[n] for n in batch]
            rows = self._request(protocol.Apply(self._next(), wanted), len(batch))
            results.update(zip(batch, map(_result, wanted, rows), strict=True))
        return [results[n] for n in range(len(changes))]

    def watch(self, ring: int, cells: int, pages: int, size: int) -> None:
        """Have the guardian watch the kernel's windows: two maps, and what is in them."""
        self.watching = self._send(protocol.Watched(pages, size), fds=[ring, cells])

    def follow(self, changes: Sequence[Change], cells: Sequence[Sequence[int]]) -> list[Result]:
        """Have knobs changed while a window holds one of their cells. Raises LeaseLostError."""
        self._begin_record(changes)
        results: dict[int, Result] = {}
        for batch in _batches(changes, results, cells):
            wanted, where = [changes[n] for n in batch], [list(cells[n]) for n in batch]
            rows = self._request(protocol.Follow(self._next(), wanted, where), len(batch))
            results.update(zip(batch, map(_result, wanted, rows), strict=True))
            self.figures.pop("foreign", None)  # Told before these began.
        return [results[n] for n in range(len(changes))]

    def undo(self, keys: Sequence[Key]) -> list[Outcome]:
        """Give knobs back. Raises LeaseLostError."""
        outcomes = []
        for batch in protocol.split(map(list, keys)):
            wanted = [(kind, target) for kind, target in batch]
            outcomes += _outcomes(self._request(protocol.Undo(self._next(), wanted)))
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
                outcomes += _outcomes(self._request(protocol.Heirs(self._next(), message)))
                message, room = [], HEIRS
            message.append(pids)
            room -= len(pids)
        return outcomes + _outcomes(self._request(protocol.Heirs(self._next(), message)))

    def _begin_record(self, changes: Iterable[Change]) -> None:
        """Before the first thread is held: have the kernel record who inherits."""
        if self._kernel is None and any(change.kind in THREAD_KINDS for change in changes):
            self._kernel = inheritance_programs.attach()
            if self._kernel is not None:
                request = protocol.Record(self._next())
                if self._request(request, fds=self._kernel.fds) != [[True]]:
                    self._close_record()

    def end_record(self) -> None:
        """Let the kernel record nothing more if no thread is held. Raises LeaseLostError."""
        if self._kernel is not None and self._request(protocol.Record(self._next())) == [[True]]:
            self._close_record()

    def close(self) -> list[Outcome]:
        """Give everything back and end the guardian."""
        try:
            outcomes = _outcomes(self._request(protocol.Close(self._next())))
        except LeaseLostError as lost:
            return lost.notice.outcomes
        try:
            self._guardian.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            pass
        self._end_guardian()
        return self._repair(outcomes)

    # ----------------------------------------------------------------- the channel

    def _next(self) -> int:
        """The number of a new request."""
        self._id += 1
        return self._id

    def _send(
        self, message: protocol.Message, patience: float = 0, fds: Sequence[int] = ()
    ) -> bool:
        """Whether it was sent; if not, reading tells what became of the guardian."""
        data = protocol.encode(message)
        try:
            if not writable(self._channel.fileno(), patience):
                return False
            if fds:
                socket.send_fds(self._channel, [data], fds, socket.MSG_DONTWAIT)
            else:
                self._channel.send(data, socket.MSG_DONTWAIT)
        except (OSError, ValueError):
            return False
        return True

    def _read(self, timeout: float) -> protocol.Message | None:
        """The next message; None when none came in time; Lost once the guardian is dead."""
        if not readable(self._channel.fileno(), timeout):
            return None
        try:
            data = self._receive()
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            return _KILLED
        try:
            message = protocol.decode(data)
        except protocol.WireError:
            return None  # Without its answer a request ends the lease.
        match message:
            case protocol.More(rows=rows):
                self._rows += rows
                return protocol.Busy()
            case protocol.Busy():
                self._unanswered = None
            case protocol.Alive(figures=figures):
                self._unanswered = None
                self.figures = figures
            case protocol.Done(rows=rows) | protocol.Reverted(rows=rows) | protocol.Lost(rows=rows):
                message = message._replace(rows=self._rows + rows)
                self._rows = []
            case protocol.Refused():
                self._rows = []  # It was refused in the middle of its answer.
        return message

    def _receive(self) -> bytes:
        """A packet; nothing once the other end is closed. Raises BlockingIOError, OSError."""
        try:
            return self._channel.recv(protocol.MAX_BYTES + 1, socket.MSG_DONTWAIT)
        except ConnectionResetError:
            # It ended with a beat unread. Said once, and before what it had sent
            # (net/unix/af_unix.c, unix_release_sock).
            return self._channel.recv(protocol.MAX_BYTES + 1, socket.MSG_DONTWAIT)

    def _request(
        self, message: Request, count: int | None = None, fds: Sequence[int] = ()
    ) -> list[protocol.Row]:
        """The rows of its answer, ``count`` of them if so many are due. Raises LeaseLostError.

        However long it takes, as long as the guardian says that it goes on.
        """
        silence = ANSWER_S + (count or 0) * EACH_S
        sent = False
        heard = time.monotonic()
        while True:
            # The queue of one that takes nothing may be full of beats: it is stopped, or says that
            # it is busy.
            sent = sent or self._send(message, liveness.SILENT_S, fds)
            match self._read(liveness.SILENT_S):
                case None if deaf := self._deaf(time.monotonic() - heard, silence):
                    raise LeaseLostError(self._lost(deaf))
                case None:
                    continue
                case protocol.Busy():
                    heard = time.monotonic()
                case protocol.Done(id=message.id, rows=rows) if count in (None, len(rows)):
                    return rows
                case protocol.Refused(id=number, why=why) if number in (0, message.id):
                    if count is None:
                        return [[*Outcome("", "", "", f"the guardian: {why}", settled=False)]]
                    return [["refused", why]] * count
                case protocol.Lost() as lost:
                    raise LeaseLostError(self._lost(lost))
                case answer:
                    self._inbox.append(answer)

    def _deaf(self, silence_s: float, patience_s: float) -> protocol.Lost | None:
        """What to say of a guardian silent for so long, if it is to be given up."""
        since = self._unanswered
        # It may have been stopped long before the request that finds it silent.
        silent_s = silence_s if since is None else max(silence_s, time.monotonic() - since)
        if how := liveness.lost(self._guardian.pid, silent_s):
            return _STOPPED if how == "stopped" else _KILLED
        return _DEAF if silence_s > patience_s else None

    # ----------------------------------------------------------------- the end

    def _lost(self, message: protocol.Lost) -> Notice:
        """The guardian is dead, dying or deaf: make sure, and undo what it has left."""
        if message not in (_KILLED, _STOPPED, _DEAF):
            try:
                self._guardian.wait(ANSWER_S)
            except subprocess.TimeoutExpired:
                pass
        self._end_guardian()
        outcomes = _outcomes(self._rows + message.rows)
        return Notice(message.why, self._repair(outcomes), True)

    def _repair(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Undo what the guardian has left; ``outcomes``: what it did, to which that is added."""
        try:
            again = self._recover() or []
        except (JournalError, OSError) as error:
            return [*outcomes, Outcome("", "", "", str(error), settled=False)]
        finally:
            self._close_record()
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

    def _close_record(self) -> None:
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


def _batches(
    changes: Sequence[Change], refused: dict[int, Result], cells: Sequence[Sequence[int]] = ()
) -> Iterator[list[int]]:
    """Numbers of changes for a packet each; ``refused`` gets those that fit into none."""
    batch: list[int] = []
    taken = 0
    for n, change in enumerate(changes):
        part = [*change, list(cells[n]) if cells else []]
        if not protocol.fits(part):
            refused[n] = Result(change, "refused", "too long for a message to the guardian")
            continue
        size = protocol.size(part)
        if batch and (len(batch) == BATCH or not protocol.has_room(taken + size)):
            yield batch
            batch, taken = [], 0
        batch.append(n)
        taken += size
    if batch:
        yield batch


def _result(change: Change, row: protocol.Row) -> Result:
    status, text = (*row, "", "")[:2]
    return Result(change, str(status), str(text))


def _outcomes(rows: list[protocol.Row]) -> list[Outcome]:
    """Outcomes as the guardian sent them; others are left out."""
    return [Outcome(*row) for row in rows if [type(one) for one in row] == _OUTCOME]

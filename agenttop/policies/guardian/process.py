"""The guardian: the only process that writes knobs, and the one that gives them back.

A small process in a session of its own, started with the first policy. The
engine sends it what to write and renews the lease several times a second.
When the engine dies, falls silent or says so, everything is restored from
what the journal holds. When the guardian itself is killed, the kernel drops
its /dev/cpu_dma_latency request and the engine restores the rest.

What they say to each other is in protocol.py, one message a packet of a SOCK_SEQPACKET pair.

Signals: SIGTERM reverts everything and ends it. SIGUSR1 reverts the policy
named in the file ``request`` of the state directory, everything without one.
SIGINT and SIGHUP, meant for the terminal's foreground, do nothing.

Started by lease.py with an interpreter that loads no site packages; imports
only what it needs to start in some 30 ms and to stay at a few MB.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from agenttop.linux.readiness import readable, writable
from agenttop.policies.guardian import journal as journals
from agenttop.policies.guardian import liveness, protocol
from agenttop.policies.guardian.cpu_choice import Aside
from agenttop.policies.guardian.heirs import THREAD_KINDS, release_heirs
from agenttop.policies.guardian.inheritance import Inherited
from agenttop.policies.guardian.journal import Journal
from agenttop.policies.guardian.outcome import Outcome, left_alone, shown, words
from agenttop.policies.guardian.rt_priority import Urgency
from agenttop.policies.guardian.undo import undo_all
from agenttop.policies.guardian.window_watch import Watch
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import Change
from agenttop.policies.knobs.cpusets import as_found

#: No renewal for this long and the lease is over.
LEASE_S = 1.5
#: If the guardian itself was not run for this long, the engine gets another chance.
STALL_S = 1.0
#: The engine, waiting for an answer, reads within this.
SEND_S = 1.0
#: And hears this often that a request which takes long goes on.
BUSY_S = 0.25
#: Descriptors that come with a message.
MAX_FDS = 32
REQUEST = "request"


class Guardian:
    """See the module. ``channel``: packet socket; ``engine``: pidfd or -1."""

    def __init__(self, channel: int, engine: int, dir_fd: int) -> None:
        self._channel = channel
        #: Who inherits from held threads; None while none is held, and where the kernel has none.
        self._record: Inherited | None = None
        #: Its descriptors: they keep it going when the engine is killed.
        self._record_fds: list[int] = []
        # The socket module itself takes too long to load; os.read would drop descriptors.
        self._socket = _socket.socket(fileno=channel)
        self._watch: Watch | None = None
        self._urgency = Urgency()
        self._aside = Aside()
        self._dir_fd = dir_fd
        left = journals.load(dir_fd)
        self._journal = Journal(dir_fd, left.holds if left and left.this_boot else ())
        #: Held knobs that could not be given back, by us or before us: tried again before
        #: anybody gets them, and at the end.
        self._left = set(self._journal.holds)
        self._kept = False
        self._told = 0.0
        self._signals: set[int] = set()
        #: The engine, when it was heard last, and when to look after it if it stays silent.
        self._parent = os.getppid()
        self._hear(time.monotonic())
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)
        # The engine may have had signals blocked when it started us.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        if engine >= 0:
            self._poll.register(engine, select.POLLIN)
        self._engine = engine

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.add(number)

    def run(self) -> None:
        """Serve until the lease ends; returns with everything restored that can be."""
        why = "the guardian failed"
        try:
            self._send(protocol.Ready())
            why = self._serve()
        finally:
            outcomes = [] if self._kept else self._undo(None)
            self._journal.close()
            self._report(outcomes, lambda last: protocol.Lost(why, last))

    def _hear(self, now: float, lease_s: float = LEASE_S) -> None:
        """The engine lives: the lease goes on for so long."""
        self._heard = now
        self._deadline = now + lease_s
        self._look_at = now + liveness.SILENT_S

    def _serve(self) -> str:
        while True:
            before = time.monotonic()
            until = min(self._deadline, self._look_at)
            if self._watch is not None and (due := self._watch.due()) is not None:
                until = min(until, due)
            timeout = max(0.0, until - before)
            ready = {fd for fd, _ in self._poll.poll(timeout * 1000)}
            now = time.monotonic()
            if self._watch is not None:
                # First of all: an agent is about to run.
                if self._watch.fileno() in ready:
                    self._watch.edges()
                if (due := self._watch.due()) is not None and now >= due:
                    self._watch.look()
                wanted = len(self._watch) > 0
                self._urgency.update(wanted, now)
                for cpu in self._watch.take_opened():
                    self._aside.opened(cpu)
                self._aside.update(wanted, now)
            if now - before > timeout + STALL_S:
                # Not run for long (machine paused, or we were stopped): the engine neither.
                self._hear(now, LEASE_S / 3)
            if self._engine in ready:
                return "agenttop was killed"
            # Before the deadline: renewals may wait in the socket.
            if self._channel in ready and (end := self._receive()):
                return end
            if self._wake in ready:
                os.read(self._wake, 64)
            if signal.SIGTERM in self._signals:
                return "the guardian was told to end"
            if signal.SIGUSR1 in self._signals:
                self._signals.clear()
                self._revert_requested()
            now = time.monotonic()
            if now >= self._look_at and not self._waiting():
                self._look_at = now + liveness.SILENT_S
                if how := liveness.lost(self._parent, now - self._heard):
                    return f"agenttop was {how}"
            if now >= self._deadline and not self._waiting():
                return "agenttop did not renew its lease (was it stopped?)"

    def _waiting(self) -> bool:
        return readable(self._channel, 0)

    def _receive(self) -> str | None:
        """One message; the reason to end, if it is one."""
        data, fds = self._read()
        if not data and self._hung_up():
            return "agenttop has gone"
        try:
            message = protocol.decode(data)
        except protocol.WireError as error:
            # It renews nothing; the engine, if it was the engine, tells by the answer.
            _close(fds)
            self._send(protocol.Refused(0, f"the guardian cannot read it: {error}"))
            return None
        self._hear(time.monotonic())
        try:
            return self._obey(message, fds)
        except Exception as error:
            # Whatever it was: what is held stays held, and this process lives to restore it.
            self._send(protocol.Refused(_id(message), f"{type(error).__name__}: {error}"[:200]))
            return None
        finally:
            _close(fds)

    def _obey(self, message: protocol.Message, fds: list[int]) -> str | None:
        """Do what it asks for; the reason to end, if any. Takes out of ``fds`` what it keeps."""
        match message:
            case protocol.Beat():
                self._send(protocol.Alive(self._watch.figures() if self._watch is not None else {}))
            case protocol.Close(id=number):
                self._done(number, self._undo(None))
                return "agenttop ended"
            case protocol.Keep(id=number):
                self._done(number, self._keep())
                return "agenttop ended"
            case protocol.Apply(id=number, changes=changes):
                self._done(number, self._apply(changes))
            case protocol.Undo(id=number, keys=keys):
                self._done(number, self._undo(keys))
            case protocol.Heirs(id=number, groups=groups):
                self._done(number, self._release(groups))
            case protocol.Watched(pages=pages, size=size) if len(fds) == 2 and self._watch is None:
                ring, cells = fds
                self._watch = Watch(ring, cells, pages, size)
                fds.clear()
                self._poll.register(self._watch.fileno(), select.POLLIN)
            case protocol.Record(id=number):
                self._done(number, [[self._take_record(fds) if fds else self._drop_record()]])
            case protocol.Follow(id=number, changes=changes, cells=cells):
                self._done(number, self._follow(changes, cells))
            case _:
                self._send(protocol.Refused(_id(message), "the guardian does no such thing"))
        return None

    def _hung_up(self) -> bool:
        """Whether the other end is closed: reading nothing may be an empty packet."""
        poll = select.poll()
        poll.register(self._channel, 0)
        return bool(poll.poll(0))

    def _read(self) -> tuple[bytes, list[int]]:
        """A packet, and the descriptors that came with it; nothing when the engine has gone."""
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                protocol.MAX_BYTES + 1, _socket.CMSG_SPACE(4 * MAX_FDS), _socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return b"", []
        fds = []
        for level, kind, raw in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                fds += [fd for (fd,) in struct.iter_unpack("i", raw[: len(raw) // 4 * 4])]
        if flags & _socket.MSG_CTRUNC:
            # Not with some of what was sent: the message is refused without any.
            _close(fds)
            fds.clear()
        return data, fds

    # ----------------------------------------------------------------- writing

    def _apply(self, changes: list[Change]) -> list[list[str]]:
        """Write knobs, journal first: for each [status, text], see lease.Result."""
        refused = _unfit(changes)
        fit = [change for number, change in enumerate(changes) if number not in refused]
        results = iter(self._apply_fit(fit))
        return [refused[n] if n in refused else next(results) for n in range(len(changes))]

    def _apply_fit(self, changes: list[Change]) -> list[list[str]]:
        """The same for settings that the journal can have, each named once."""
        self._try_again(changes)
        fresh = {change.key for change in changes} - self._journal.holds.keys()
        changes = [as_found(change) if change.key in fresh else change for change in changes]
        found = [self._check(change) for change in changes]
        try:
            self._journal.record(
                change for change, (status, _) in zip(changes, found, strict=True) if not status
            )
        except (OSError, journals.JournalError) as error:
            found = [("refused", f"the journal cannot be written: {error}")] * len(changes)
        results = []
        for change, (status, text) in zip(changes, found, strict=True):
            if not status:
                if self._record is not None:
                    self._record.add(*change.key)
                status, text = self._write(change)
                if status == "ok":
                    self._journal.confirm(change.key)
                if status == "changed":
                    # The journal knows what was asked for only: it could not be restored.
                    status, text = "refused", f"the kernel makes {text[:40]} of {change.after}"
                if status == "refused" and not self._take_back(change) and change.key in fresh:
                    self._left.add(change.key)
            results.append([status, text])
        self._journal.undone(
            change.key
            for change, (status, _) in zip(changes, results, strict=True)
            if status != "ok" and change.key in fresh and change.key not in self._left
        )
        return results

    def _follow(self, changes: list[Change], cells: list[list[int]]) -> list[list[str]]:
        """Have knobs follow the kernel's cells: journalled once, tried once, then left to it."""
        if self._watch is None:
            return [["refused", "the guardian sees no windows"]] * len(changes)
        if refused := _unfit(changes):
            fit = [n for n in range(len(changes)) if n not in refused]
            rest = iter(self._follow([changes[n] for n in fit], [cells[n] for n in fit]))
            return [refused[n] if n in refused else next(rest) for n in range(len(changes))]
        self._try_again(changes)
        held = self._journal.holds
        # One that gets another value starts anew, from the value that it was found with.
        anew = {c.key: held[c.key].original for c in changes if c.key in self._watch}
        self._undo(list(anew))
        changes = [c._replace(before=anew.get(c.key, c.before)) for c in changes]
        mine = [c for c in changes if c.key not in held]
        # Written and read back once, so that what cannot be is known before it is needed.
        results = dict(zip((c.key for c in mine), self._apply(mine), strict=True))
        for change, where in zip(changes, cells, strict=True):
            if change.key not in results:
                text = f"the policy {held[change.key].policy} holds it"
                results[change.key] = ["refused", text]
            elif results[change.key][0] == "ok":
                again = self._write(change._replace(after=change.before))
                if again[0] == "ok":
                    again = self._watched(change, where)
                results[change.key] = list(again)
                if again[0] != "ok":
                    self._undo([change.key])
        return [results[change.key] for change in changes]

    def _watched(self, change: Change, cells: list[int]) -> tuple[str, str]:
        """Have one knob followed; [status, text]. Whatever it meets is its own."""
        assert self._watch is not None
        try:
            self._watch.add(change, cells)
        except Exception as error:
            return "refused", words(error)
        return "ok", ""

    def _undo(self, keys: list[journals.Key] | None) -> list[Outcome]:
        """Give knobs back (all of them without ``keys``), those first that are followed."""
        theirs: dict[journals.Key, str] = {}
        if self._watch is not None:
            theirs = self._end_watch() if keys is None else self._watch.forget(keys)
        holds = self._journal.holds
        left = [left_alone(holds[key], now) for key, now in theirs.items() if key in holds]
        rest = [key for key in (holds if keys is None else keys) if key not in theirs]
        self._journal.undone(theirs)
        outcomes = undo_all(self._journal, rest, self._record, self._step)
        # Also those whose heirs could not all be restored.
        self._left.update(rest)
        self._left.intersection_update(holds)
        return left + outcomes

    def _release(self, groups: list[list[int]]) -> list[Outcome]:
        """Release the heirs among these processes."""
        holds = self._journal.holds
        return release_heirs(holds.values(), groups, holds, self._record, self._step)

    def _take_record(self, fds: list[int]) -> bool:
        """From now on the kernel records who inherits; whether it does."""
        try:
            record = Inherited(*fds[:2])
        except (OSError, TypeError):
            return False
        self._close_record()
        self._record = record
        self._record_fds += fds
        fds.clear()
        return True

    def _drop_record(self) -> bool:
        """Let go of the record unless a thread is held; whether it was.

        The engine does after this: the last to let go waits until the kernel has detached it.
        """
        if any(kind in THREAD_KINDS for kind, _ in self._journal.holds):
            return False
        self._close_record()
        return True

    def _close_record(self) -> None:
        self._record = None
        _close(self._record_fds)
        self._record_fds.clear()

    def _end_watch(self) -> dict[journals.Key, str]:
        """Stop following. Never raises: what is held is still to be restored."""
        watch, self._watch = self._watch, None
        theirs: dict[journals.Key, str] = {}
        if watch is None:
            return theirs
        with suppress(Exception):
            self._poll.unregister(watch.fileno())
        with suppress(Exception):
            theirs = watch.close()
        for part in (self._urgency, self._aside):
            with suppress(Exception):
                part.update(False, 0)
        return theirs

    def _try_again(self, changes: list[Change]) -> None:
        """Give back what could not be given back, if it is wanted by somebody now."""
        if keys := [change.key for change in changes if change.key in self._left]:
            self._undo(keys)

    def _keep(self) -> list[Outcome]:
        """Leave everything applied; give back what lives only as long as we do."""
        watch = self._watch
        ours = [k for k in self._journal.holds if k[0] == "cpu_latency" or (watch and k in watch)]
        outcomes = self._undo([*ours, *self._left])
        if self._journal.holds.keys() - self._left:
            try:
                self._journal.keep()
                self._kept = True
            except (OSError, journals.JournalError):
                # Nobody would know that it is to stay.
                outcomes += self._undo(None)
        return outcomes

    def _check(self, change: Change) -> tuple[str, str]:
        """Whether the knob still has the value that the plan saw: ("", "") if so."""
        self._step()
        knob = KNOBS[change.kind]
        hold = self._journal.holds.get(change.key)
        if self._watch is not None and change.key in self._watch and hold is not None:
            return "refused", f"the policy {hold.policy} holds it"
        if hold is not None and change.key in self._left:
            return "refused", f"what {hold.policy} had set could not be given back yet"
        try:
            current = knob.read(change.target)
        except Exception as error:
            return "refused", words(error)
        if current is None:
            return "gone", ""
        if hold is None and not knob.valid(change.target, current):
            return "refused", f"its value {current[:40]!r} is none that could be given back"
        if hold is None and knob.same(current, change.before):
            return "", ""
        if hold is not None and any(knob.ours(current, value) for value in hold.ours):
            return "", ""
        return "changed", current

    def _write(self, change: Change) -> tuple[str, str]:
        self._step()
        knob = KNOBS[change.kind]
        try:
            knob.write(change.target, change.after)
            now = knob.read(change.target)
        except Exception as error:
            return "refused", words(error)
        if now is None:
            return "gone", ""
        return ("ok", "") if knob.same(now, change.after) else ("changed", now)

    def _take_back(self, change: Change) -> bool:
        """After a write that failed, or of which the kernel made another value.

        Whether all is as if it had not been; what cannot even be read may have been written.
        """
        knob = KNOBS[change.kind]
        try:
            now = knob.read(change.target)
            if now is None or knob.same(now, change.before):
                return True
        except Exception:
            pass
        try:
            knob.write(change.target, change.before)
        except Exception:
            return False
        return True

    def _revert_requested(self) -> None:
        """SIGUSR1: give back one policy, or all."""
        policy = ""
        try:
            fd = journals.open_own(self._dir_fd, REQUEST, os.O_RDONLY)
            with open(fd) as file:
                policy = file.read(64).strip()
            os.unlink(REQUEST, dir_fd=self._dir_fd)
        except (OSError, ValueError, journals.JournalError):
            pass
        keys = [key for key, hold in self._journal.holds.items() if policy in ("", hold.policy)]
        outcomes = self._undo(keys)
        why = "reverted by 'agenttop policy revert'"
        self._report(outcomes, lambda last: protocol.Reverted(why, policy, last))

    def _done(self, number: int, rows: Iterable[Sequence[Any]]) -> None:
        self._report(rows, lambda last: protocol.Done(number, last))

    def _report(
        self,
        rows: Iterable[Sequence[Any]],
        message: Callable[[list[protocol.Row]], protocol.Message],
    ) -> None:
        """Send a message with as many rows as fit, and the others before it."""
        *parts, last = protocol.split(map(list, rows))
        for part in parts:
            self._send(protocol.More(part))
        self._send(message(last))

    def _step(self) -> None:
        """One of many settings has been dealt with."""
        now = time.monotonic()
        if now - self._told >= BUSY_S:
            self._told = now
            with suppress(OSError):  # Full: the engine does not wait for it.
                os.write(self._channel, protocol.encode(protocol.Busy()))

    def _send(self, message: protocol.Message) -> None:
        try:
            data = protocol.encode(message)
        except protocol.WireError as error:
            data = protocol.encode(protocol.Refused(_id(message), str(error)))
        until = time.monotonic() + SEND_S
        while True:
            try:
                os.write(self._channel, data)
                return
            except OSError as error:
                # Full: the engine reads while it waits for an answer. Else it has gone.
                left = until - time.monotonic()
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS) or left <= 0:
                    return
            writable(self._channel, left)


def _id(message: protocol.Message) -> int:
    """The number of a request, or of the answer to one; 0 for what has none."""
    return int(getattr(message, "id", 0))


def _unfit(changes: list[Change]) -> dict[int, list[str]]:
    """Those that are not even tried, by number: [status, text]."""
    found: dict[int, list[str]] = {}
    seen: set[journals.Key] = set()
    for number, change in enumerate(changes):
        if not journals.valid(change):
            text = "no setting that the journal could restore"
            if journals.valid(change._replace(before=change.after)):
                text = f"its value {shown(change.before[:40])} is none that could be restored"
            found[number] = ["refused", text]
        elif change.key in seen:
            found[number] = ["refused", "named twice in one request"]
        seen.add(change.key)
    return found


def _close(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _stay_alive() -> None:
    """Not the one to be killed for memory, and on time beside CPU hogs, as far as allowed."""
    # Among sessions it is the autogroup's nice value that counts (sched(7)); this is our own.
    for name, text in (
        ("comm", "agenttop.guard"),
        ("oom_score_adj", "-1000"),
        ("autogroup", "-10"),
    ):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError:
            pass
    try:
        os.nice(-10)
    except OSError:
        pass


def main() -> None:
    """``guardian CHANNEL ENGINE STATE_DIR``: descriptors, and the directory's path.

    It inherits the descriptors of the lock as well, and so holds it until it ends.
    """
    channel, engine = map(int, sys.argv[1:3])
    dir_fd = journals.open_state_dir(sys.argv[3])
    assert dir_fd is not None
    os.chdir("/")
    os.set_blocking(channel, False)
    _stay_alive()
    Guardian(channel, engine, dir_fd).run()

"""The journal: what was changed, on disk before it is changed, so that anybody can undo it.

One file, ``journal`` in the state directory, append-only. Each line is the
CRC of its JSON, a blank, and the JSON; the first names the format, its
version and the boot. A line is synced before the knob is written, so a torn
last line speaks of a write that never happened and is left out. The file is
gone when nothing is held.

The guardian imports this module: it stays small.
"""

from __future__ import annotations

import json
import os
import stat
import time
from binascii import crc32
from collections.abc import Iterable
from typing import Any, NamedTuple

from agenttop.policies.knobs import KNOBS, Change

VERSION = 1
NAME = "journal"
#: A journal beyond this is not ours (it is rewritten long before).
MAX_BYTES = 16 << 20
#: It is rewritten with what is still held beyond this, and twice the size that it had then.
COMPACT_BYTES = 256 << 10

Key = tuple[str, str]


class JournalError(Exception):
    """The journal cannot be used; one line for the user that names the file."""


class Hold:
    """A knob that is not as it was found."""

    __slots__ = ("at", "kind", "original", "ours", "policy", "target")

    def __init__(
        self, policy: str, kind: str, target: str, original: str, ours: list[str], at: int
    ) -> None:
        self.policy = policy
        self.kind = kind
        self.target = target
        #: The value that it is given back.
        self.original = original
        #: What agenttop may have written, oldest first.
        self.ours = ours
        #: First change, clock ticks since boot (the clock of threads' start times).
        self.at = at

    @property
    def key(self) -> Key:
        return (self.kind, self.target)


class Loaded(NamedTuple):
    """A journal as it was found."""

    #: In the order of the first change.
    holds: list[Hold]
    #: False: written before the last boot, which has undone everything by itself.
    this_boot: bool
    #: Lines that could not be read; a torn last line is not among them.
    damaged: int
    #: Left applied on purpose: only ``agenttop restore`` undoes it.
    kept: bool = False


def boot_id() -> str:
    """/proc/sys/kernel/random/boot_id, or "" where there is none."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read(64).strip()
    except OSError:
        return ""


def open_state_dir(path: str, create: bool = True) -> int | None:
    """A descriptor of the state directory; None if it is missing and not to be made.

    Raises JournalError when it is not a directory of ours that only we may write.
    """
    try:
        if create:
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if create:
            raise JournalError(f"{path}: its parent directory is missing") from None
        return None
    except PermissionError:
        raise JournalError(f"{path}: needs root") from None
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    info = os.fstat(fd)
    if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.close(fd)
        raise JournalError(
            f"{path}: must belong to uid {os.geteuid()} and be writable by nobody else"
        )
    return fd


def open_own(dir_fd: int, name: str, flags: int) -> int:
    """Open a file of ours in the state directory. Raises JournalError, FileNotFoundError."""
    try:
        fd = os.open(
            name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=dir_fd
        )
    except FileNotFoundError:
        raise
    except OSError as error:
        raise JournalError(f"{name} in the state directory: {error.strerror}") from None
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_nlink != 1:
        os.close(fd)
        raise JournalError(f"{name} in the state directory: not a plain file of ours")
    return fd


def _line(record: dict[str, Any]) -> bytes:
    body = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32(body), body)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        if line[8:9] != b" " or int(line[:8], 16) != crc32(line[9:]):
            return None
        record = json.loads(line[9:])
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _header() -> dict[str, Any]:
    return {"agenttop": "journal", "version": VERSION, "boot": boot_id()}


def _set(policy: str, kind: str, target: str, before: str, after: str, at: int) -> dict[str, Any]:
    return {
        "op": "set",
        "policy": policy,
        "kind": kind,
        "target": target,
        "before": before,
        "after": after,
        "at": at,
    }


def _valid_set(record: dict[str, Any]) -> bool:
    names = ("policy", "kind", "target", "before", "after")
    if not all(isinstance(record.get(name), str) for name in names):
        return False
    knob = KNOBS.get(record["kind"])
    return (
        knob is not None
        and record["policy"].isidentifier()
        and len(record["policy"]) < 64
        and type(record.get("at")) is int
        and knob.valid(record["target"], record["before"])
        and knob.valid(record["target"], record["after"])
    )


def valid(change: Change) -> bool:
    """Whether the reader of a journal would believe this change."""
    return _valid_set(_set(*change, 0))


def fold(data: bytes) -> Loaded:
    """What the bytes of a journal say is held. Never raises on content, whatever it is.

    Raises JournalError for a journal of another version, which must not be guessed at.
    """
    holds: dict[Key, Hold] = {}
    this_boot = True
    damaged = 0
    kept = False
    *lines, _torn = data.split(b"\n")
    for number, line in enumerate(lines):
        record = _parse(line)
        if record is not None and number == 0 and record.get("agenttop") == "journal":
            if record.get("version") != VERSION:
                raise JournalError(
                    f"{NAME} in the state directory: written by another version of agenttop;"
                    " restore with that one"
                )
            this_boot = record.get("boot") == boot_id()
        elif record is not None and record.get("op") == "set" and _valid_set(record):
            key = (record["kind"], record["target"])
            hold = holds.get(key)
            if hold is None:
                holds[key] = Hold(
                    record["policy"], *key, record["before"], [record["after"]], record["at"]
                )
            elif record["after"] not in hold.ours:
                hold.ours.append(record["after"])
        elif (
            record is not None
            and record.get("op") == "undone"
            and isinstance(record.get("kind"), str)
            and isinstance(record.get("target"), str)
        ):
            holds.pop((record["kind"], record["target"]), None)
        elif record is not None and record.get("op") == "kept":
            kept = True
        else:
            damaged += 1
    return Loaded(list(holds.values()), this_boot, damaged, kept and this_boot and bool(holds))


def load(dir_fd: int) -> Loaded | None:
    """The journal in a state directory; None without one. Raises JournalError."""
    try:
        fd = open_own(dir_fd, NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise JournalError(f"{NAME} in the state directory: too large to be agenttop's")
    return fold(data)


class Journal:
    """The writer. Only the holder of the lock may have one."""

    def __init__(self, dir_fd: int, holds: Iterable[Hold] = ()) -> None:
        self._dir_fd = dir_fd
        self._fd: int | None = None
        self._size = 0
        self._limit = COMPACT_BYTES
        self.holds: dict[Key, Hold] = {hold.key: hold for hold in holds}

    def record(self, changes: Iterable[Change]) -> None:
        """Note changes that are about to be made; returns when the disk has them.

        Raises OSError and JournalError; then none of them is noted.
        """
        lines = []
        noted = []
        at = ticks()
        for change in changes:
            hold = self.holds.setdefault(change.key, Hold(*change[:4], [], at))
            if change.after not in hold.ours:
                hold.ours.append(change.after)
                noted.append(hold)
            lines.append(_line(_set(*change, at)))
        try:
            if lines:
                self._append(b"".join(lines))
        except (OSError, JournalError):
            for hold in noted:
                hold.ours.pop()
                if not hold.ours:
                    del self.holds[hold.key]
            raise

    def undone(self, keys: Iterable[Key]) -> None:
        """Note knobs that are no longer held; removes the journal with the last of them.

        Not synced: it is in the file whoever is killed, and a machine that loses it starts
        anew. A disk that is full is no error: the file tells of knobs that are as they were
        found.
        """
        lines = []
        for key in keys:
            if self.holds.pop(key, None) is not None:
                lines.append(_line({"op": "undone", "kind": key[0], "target": key[1]}))
        if not self.holds:
            self._remove()
        elif lines:
            try:
                self._append(b"".join(lines), sync=False)
            except (OSError, JournalError):
                pass  # The next line that finds room writes the whole file anew.

    def keep(self) -> None:
        """Note that what is held is to stay; the writer's last line."""
        self._rewrite(_line({"op": "kept"}))

    def close(self) -> None:
        """Close the file; what is held stays in it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, data: bytes, sync: bool = True) -> None:
        if self._fd is None or self._size + len(data) > self._limit:
            # A new file has all holds, so the lines to append are in it already.
            self._rewrite()
            return
        try:
            _write_all(self._fd, data)
            if sync:
                os.fdatasync(self._fd)
        except OSError:
            # The last line may be torn, and the next would be glued to it: a new file then.
            self.close()
            raise
        self._size += len(data)

    def _rewrite(self, last: bytes = b"") -> None:
        """A new file with all holds, and a last line."""
        lines = [_line(_header())]
        for hold in self.holds.values():
            for after in hold.ours:
                lines.append(
                    _line(_set(hold.policy, hold.kind, hold.target, hold.original, after, hold.at))
                )
        data = b"".join(lines) + last
        temporary = NAME + ".new"
        try:
            os.unlink(temporary, dir_fd=self._dir_fd)
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        fd = open_own(self._dir_fd, temporary, flags)
        try:
            _write_all(fd, data)
            os.fsync(fd)
            os.rename(temporary, NAME, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
            os.fsync(self._dir_fd)
        except BaseException:
            os.close(fd)
            # The file that was written so far may have been replaced already.
            self.close()
            raise
        self.close()
        self._fd = fd
        self._size = len(data)
        self._limit = max(COMPACT_BYTES, 2 * self._size)

    def discard(self) -> None:
        """Remove the file whatever it holds."""
        self.holds.clear()
        self._remove()

    def _remove(self) -> None:
        self.close()
        try:
            os.unlink(NAME, dir_fd=self._dir_fd)
        except FileNotFoundError:
            pass


def ticks() -> int:
    """Clock ticks since boot, the clock of field 22 of /proc/PID/stat."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

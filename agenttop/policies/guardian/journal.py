"""The journal: what was changed, on disk before it is changed, so that anybody can undo it.

One file, ``journal`` in the state directory, append-only. Each line is the
CRC of its JSON, a blank, and the JSON; the first names the format, its
version and the boot. A line is synced before the knob is written, so a torn
last line speaks of a write that never happened and is left out. The file is
gone when nothing is held. One whose first line is damaged may be of any boot:
it is put aside as ``journal.damaged``.

The guardian imports this module: it stays small.
"""

from __future__ import annotations

import json
import os
import stat
import time
from binascii import crc32
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from agenttop.policies.guardian import namespaces
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import Change

VERSION = 1
NAME = "journal"
DAMAGED = "journal.damaged"
#: A journal beyond this is not ours.
MAX_BYTES = 16 << 20
#: What is held takes at most so much: a change beyond is refused.
MOST_HELD_BYTES = MAX_BYTES // 2
#: Of our values of one setting so many are kept, the newest.
MOST_OURS = 64
#: It is rewritten with what is still held beyond this, and twice the size that it had then.
COMPACT_BYTES = 256 << 10

Key = tuple[str, str]


class JournalError(Exception):
    """The journal cannot be used; one line for the user that names the file."""


class Hold:
    """A knob that is not as it was found."""

    __slots__ = ("at", "kind", "original", "ours", "place", "policy", "target")

    def __init__(
        self,
        policy: str,
        kind: str,
        target: str,
        original: str,
        ours: list[str],
        at: int,
        place: str = "",
    ) -> None:
        self.policy = policy
        self.kind = kind
        self.target = target
        #: The value that it is given back.
        self.original = original
        #: What agenttop may have written, the latest last.
        self.ours = ours
        #: First change, clock ticks since boot (the clock of threads' start times).
        self.at = at
        #: Where ``target`` names it (places.view); "" if that is the same everywhere.
        self.place = place

    @property
    def key(self) -> Key:
        return (self.kind, self.target)


class Loaded(NamedTuple):
    """A journal as it was found."""

    #: In the order of the first change.
    holds: list[Hold]
    #: False: written before the last boot, which has undone everything by itself; or ``undated``.
    this_boot: bool
    #: Lines that could not be read; a torn last line is not among them.
    damaged: int
    #: Left applied on purpose: only ``agenttop restore`` undoes it.
    kept: bool = False
    #: Of which boot it is cannot be told: what it holds is not to be restored, nor dropped.
    undated: bool = False


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
    # As it is: two lone surrogates that were escaped would come back as one character.
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    body = text.encode(errors="surrogatepass")
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
    if not (boot := boot_id()):
        raise JournalError("the boot cannot be told (/proc/sys/kernel/random/boot_id)")
    return {"agenttop": "journal", "version": VERSION, "boot": boot}


def _set(hold: Hold, after: str) -> dict[str, Any]:
    record = {
        "op": "set",
        "policy": hold.policy,
        "kind": hold.kind,
        "target": hold.target,
        "before": hold.original,
        "after": after,
        "at": hold.at,
    }
    return {**record, "place": hold.place} if hold.place else record


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
        and isinstance(record.get("place", ""), str)
        and knob.valid(record["target"], record["before"])
        and knob.valid(record["target"], record["after"])
    )


def valid(change: Change) -> bool:
    """Whether the reader of a journal would believe this change."""
    return _valid_set(_set(Hold(*change[:4], [], 0), change.after))


def fold(data: bytes) -> Loaded:
    """What the bytes of a journal say is held. Never raises on content, whatever it is.

    Raises JournalError for a journal of another version, which must not be guessed at, and
    where this boot cannot be told.
    """
    holds: dict[Key, Hold] = {}
    #: An ordered set for each: there may be many.
    ours: dict[Key, dict[str, None]] = {}
    now = _header()["boot"]
    boot = ""
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
            boot = record["boot"] if isinstance(record.get("boot"), str) else ""
        elif record is not None and record.get("op") == "set" and _valid_set(record):
            key = (record["kind"], record["target"])
            if key not in holds:
                first = (record["policy"], *key, record["before"])
                holds[key] = Hold(*first, [], record["at"], record.get("place", ""))
                ours[key] = {}
            ours[key].pop(record["after"], None)
            ours[key][record["after"]] = None
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
    for key, hold in holds.items():
        hold.ours = list(ours[key])
    this_boot = boot == now
    kept = kept and this_boot and bool(holds)
    return Loaded(list(holds.values()), this_boot, damaged, kept, not boot)


def load(dir_fd: int) -> Loaded | None:
    """The journal in a state directory; None without one. Raises JournalError."""
    try:
        fd = open_own(dir_fd, NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        with open(fd, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise JournalError(f"{NAME} in the state directory: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise JournalError(f"{NAME} in the state directory: too large to be agenttop's")
    return fold(data)


def put_aside(dir_fd: int) -> str:
    """Rename the journal, over none that was put aside before; its new name. Raises OSError."""
    there = aside(dir_fd)
    name, number = DAMAGED, 1
    while name in there:
        number += 1
        name = f"{DAMAGED}.{number}"
    os.rename(NAME, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    return name


def aside(dir_fd: int) -> list[str]:
    """The names of journals that were put aside."""
    return sorted(name for name in os.listdir(dir_fd) if name.startswith(DAMAGED))


class Journal:
    """The writer. Only the holder of the lock may have one."""

    def __init__(self, dir_fd: int, holds: Iterable[Hold] = ()) -> None:
        self._dir_fd = dir_fd
        self._fd: int | None = None
        self._size = 0
        self._limit = COMPACT_BYTES
        self.holds: dict[Key, Hold] = {hold.key: hold for hold in holds}
        #: Why the file is still there although nothing is held; "" if it is not.
        self.stale = ""

    def record(self, changes: Iterable[Change]) -> None:
        """Note changes that are about to be made; returns when the disk has them.

        Raises OSError and JournalError; then none of them is noted.
        """
        lines = []
        before: dict[Key, list[str]] = {}
        at = ticks()
        try:
            for change in changes:
                hold = self.holds.get(change.key)
                if hold is None:
                    hold = Hold(*change[:4], [], at, namespaces.view(change.kind))
                    self.holds[change.key] = hold
                before.setdefault(change.key, list(hold.ours))
                hold.ours = [*(one for one in hold.ours if one != change.after), change.after]
                record = _set(hold, change.after)
                line = _line(record)
                if _parse(line[:-1]) != record or not _valid_set(record):
                    raise JournalError(f"{NAME}: it would not be read back")
                lines.append(line)
            if lines:
                self._append(b"".join(lines), MOST_HELD_BYTES)
        except BaseException:
            for key, values in before.items():
                self.holds[key].ours = values
                if not values:
                    del self.holds[key]
            raise

    def confirm(self, key: Key) -> None:
        """The setting has the value that was noted last: of the older ones few are kept.

        They count for what was inherited while the setting had them.
        """
        if (hold := self.holds.get(key)) is not None:
            del hold.ours[:-MOST_OURS]

    def undone(self, keys: Iterable[Key]) -> None:
        """Note knobs that are no longer held; removes the journal with the last of them.

        Not synced: it is in the file whoever is killed, and a machine that loses it starts
        anew. A disk that is full is no error: the file tells of knobs that are as they were
        found. Nor is one that cannot be removed: it is ``stale``.
        """
        lines = []
        for key in keys:
            if self.holds.pop(key, None) is not None:
                lines.append(_line({"op": "undone", "kind": key[0], "target": key[1]}))
        self.stale = ""
        if not self.holds:
            try:
                self._remove()
                return
            except OSError as error:
                self.stale = error.strerror or str(error)
        if lines:
            try:
                self._append(b"".join(lines), MAX_BYTES, sync=False)
            except (OSError, JournalError):
                pass  # The next line that finds room writes the whole file anew.

    def keep(self) -> None:
        """Note that what is held is to stay; the writer's last line."""
        self._rewrite(MAX_BYTES, _line({"op": "kept"}))

    def close(self) -> None:
        """Close the file; what is held stays in it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):  # The kernel has closed it all the same.
                os.close(fd)

    def _append(self, data: bytes, most: int, sync: bool = True) -> None:
        """Write lines; ``most``: the file's size in bytes, JournalError if it cannot be kept."""
        if self._fd is None or self._size + len(data) > min(self._limit, most):
            # A new file has all holds, so the lines to append are in it already.
            self._rewrite(most)
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

    def _rewrite(self, most: int, last: bytes = b"") -> None:
        """A new file with all holds, and a last line."""
        lines = [_line(_header())]
        for hold in self.holds.values():
            lines += [_line(_set(hold, after)) for after in hold.ours]
        data = b"".join(lines) + last
        if len(data) > most:
            raise JournalError(f"{NAME}: full, more settings are held than it may hold")
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
        """Remove the file whatever it holds. Raises OSError."""
        self.holds.clear()
        self._remove()

    def _remove(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(NAME, dir_fd=self._dir_fd)
        self.close()


def ticks() -> int:
    """Clock ticks since boot, the clock of field 22 of /proc/PID/stat."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

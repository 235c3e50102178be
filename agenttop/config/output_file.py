"""Files that agenttop writes for people, maybe as root and in a directory of another user.

Whoever owns the directory may lay links, pipes and files of the same name
there, and swap them at any time. So every name is resolved here, one open
directory after the other: a link on the way is followed only if it is root's
or our own and lies where nobody else may write; the last part never is. What
is new is made new (O_EXCL); what is replaced is a plain file of the user's
own. What root writes in a user's directory belongs to that user.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from agenttop.errors import UserError
from agenttop.text.figures import clean

#: As many as the kernel follows (MAXSYMLINKS in include/linux/namei.h).
_LINKS: Final = 40
#: Names tried beside those that are taken.
_MOST_NAMES: Final = 1000
#: What stands for an open descriptor of ours, however it is reached.
_DESCRIPTOR: Final = re.compile(r"/dev/(stdout|stderr|fd/(\d{1,9}))|/proc/self/fd/(\d{1,9})", re.A)
#: O_PATH: a directory that may be entered need not be readable.
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _others_write(about: os.stat_result) -> bool:
    """May another than root and ourselves change what lies in this directory?"""
    return about.st_uid not in (0, os.geteuid()) or bool(
        about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


@contextlib.contextmanager
def folder(path: Path, make: bool = False) -> Iterator[int]:
    """An open directory; ``make``: with what is missing of it, 0700. Raises OSError, UserError."""
    fd = os.open("/" if path.is_absolute() else ".", _FOLDER)
    parts = deque(part for part in path.parts if part != "/")
    links = 0
    try:
        while parts:
            part = parts.popleft()
            try:
                below = os.open(part, _FOLDER, dir_fd=fd)
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=fd)
                    made = os.open(part, os.O_RDONLY | _FOLDER & ~os.O_PATH, dir_fd=fd)
                    try:
                        _give(made, fd)
                    finally:
                        os.close(made)
                below = os.open(part, _FOLDER, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                about = os.stat(part, dir_fd=fd, follow_symlinks=False)
                if not stat.S_ISLNK(about.st_mode):
                    raise
                if about.st_uid not in (0, os.geteuid()) or _others_write(os.fstat(fd)):
                    raise UserError(
                        f"{clean(str(path))}: '{clean(part)}' is a link that another user may have"
                        " put there: name the directory it leads to"
                    ) from None
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                target = Path(os.readlink(part, dir_fd=fd))
                parts.extendleft(reversed([part for part in target.parts if part != "/"]))
                below = os.open("/", _FOLDER) if target.is_absolute() else os.dup(fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _give(fd: int, parent: int) -> None:
    """What root makes in a user's directory becomes that user's; in /tmp and its like it stays."""
    about = os.fstat(parent)
    if os.geteuid() == 0 and about.st_uid and not about.st_mode & stat.S_IWOTH:
        os.fchown(fd, about.st_uid, about.st_gid)


def _create(name: str, parent: int, mode: int) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, mode, dir_fd=parent)
    try:
        _give(fd, parent)
    except BaseException:
        os.close(fd)
        os.unlink(name, dir_fd=parent)
        raise
    return open(fd, "wb", buffering=0)


def new(path: Path, mode: int = 0o644) -> BinaryIO:
    """A new file, unbuffered. Raises FileExistsError for whatever is there, OSError, UserError."""
    with folder(path.parent) as parent:
        return _create(path.name, parent, mode)


def names(stem: str) -> Iterator[str]:
    """``stem``, then ``stem-2`` and on, to try until none of the names is taken."""
    yield stem
    for number in range(2, _MOST_NAMES):
        yield f"{stem}-{number}"


def new_named(where: Path, stem: str, suffix: str) -> tuple[BinaryIO, str]:
    """A new file ``STEM + suffix``, or the next name that is free. Raises OSError, UserError."""
    with folder(where) as parent:
        for free in names(stem):
            with contextlib.suppress(FileExistsError):
                return _create(free + suffix, parent, 0o644), free + suffix
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def new_group(where: Path, stem: str, contents: dict[str, bytes], mode: int = 0o644) -> str:
    """New files ``STEM + suffix`` with these contents, all or none; the stem that was free.

    Raises OSError, UserError.
    """
    with folder(where) as parent:
        for free in names(stem):
            made: list[str] = []
            try:
                for suffix, content in contents.items():
                    with _create(free + suffix, parent, mode) as file:
                        made.append(free + suffix)
                        _put(file, content)
                return free
            except BaseException as error:
                for name in made:
                    os.unlink(name, dir_fd=parent)
                if not isinstance(error, FileExistsError):
                    raise
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _put(file: BinaryIO, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


# --------------------------------------------------------------------------- -o FILE


def stream(path: Path) -> BinaryIO | None:
    """A device, pipe or descriptor of ours, opened to be written to as it is; None: a plain file.

    A pipe must have its reader. Raises UserError, OSError.
    """
    name = clean(str(path))
    if given := _DESCRIPTOR.fullmatch(str(path)):
        number = given[2] or given[3] or {"stdout": "1", "stderr": "2"}[given[1]]
        return open(os.dup(int(number)), "wb", buffering=0)
    with folder(path.parent) as parent:
        about = _about(path, parent)
        if about is None or stat.S_ISREG(about.st_mode):
            return None
        if stat.S_ISBLK(about.st_mode) or about.st_uid not in (0, os.geteuid()):
            raise UserError(f"-o {name}: neither a plain file nor a device or pipe of yours")
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
        try:
            fd = os.open(path.name, flags, dir_fd=parent)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise UserError(f"-o {name}: nobody reads this pipe") from None
            raise
        os.set_blocking(fd, True)
        return open(fd, "wb", buffering=0)


def _about(path: Path, parent: int) -> os.stat_result | None:
    """What lies there; None: nothing. Raises UserError for what is never written to."""
    name = clean(str(path))
    try:
        about = os.stat(path.name or ".", dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(about.st_mode):
        raise UserError(f"-o {name}: is a link: name the file it leads to")
    if stat.S_ISDIR(about.st_mode):
        raise UserError(f"-o {name}: is a directory")
    return about


def _replaceable(path: Path, parent: int) -> os.stat_result | None:
    """The plain file that would be replaced; None: nothing is there. Raises UserError."""
    about = _about(path, parent)
    if about is None:
        return None
    name = clean(str(path))
    owners = {os.geteuid()}
    if os.geteuid() == 0 and (caller := os.environ.get("SUDO_UID", "")).isdecimal():
        owners.add(int(caller))
    if not stat.S_ISREG(about.st_mode) or about.st_uid not in owners:
        raise UserError(f"-o {name}: exists and is another user's: give another name")
    if about.st_nlink > 1:
        raise UserError(f"-o {name}: exists under {about.st_nlink} names: give another one")
    return about


def check(path: Path) -> None:
    """Can a result be written there? Raises UserError, before anything is measured."""
    try:
        if _DESCRIPTOR.fullmatch(str(path)):
            return
        with folder(path.parent) as parent:
            about = _about(path, parent)
            if about is not None and not stat.S_ISREG(about.st_mode):
                # A pipe's reader would take a first open and close for the whole.
                if not os.access(path.name, os.W_OK, dir_fd=parent):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                return
            _replaceable(path, parent)
            name = _spare(path)
            _create(name, parent, 0o600).close()
            os.unlink(name, dir_fd=parent)
    except OSError as error:
        raise UserError(f"-o {clean(str(path))}: {error.strerror}") from None


def write(path: Path, body: bytes) -> None:
    """Write all of it or leave what was there. Raises UserError."""
    try:
        if (special := stream(path)) is not None:
            with special:
                _put(special, body)
            return
        with folder(path.parent) as parent:
            before = _replaceable(path, parent)
            name = _spare(path)
            with _create(name, parent, 0o600) as file:
                try:
                    _put(file, body)
                    os.fsync(file.fileno())
                    os.fchmod(file.fileno(), _mode(before))
                    os.rename(name, path.name, src_dir_fd=parent, dst_dir_fd=parent)
                except BaseException:
                    os.unlink(name, dir_fd=parent)
                    raise
    except OSError as error:
        raise UserError(f"-o {clean(str(path))}: {error.strerror}") from None


def _spare(path: Path) -> str:
    """The name of what is not whole yet."""
    return f".{os.fsdecode(os.fsencode(path.name)[:64])}.{os.urandom(8).hex()}"


def _mode(before: os.stat_result | None) -> int:
    """A file that was private stays so; nothing else is taken over."""
    if before is not None:
        return before.st_mode & 0o644
    mask = os.umask(0)
    os.umask(mask)
    return 0o644 & ~mask

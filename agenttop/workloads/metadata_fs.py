"""A small file system of our own, read-only, whose metadata can be forgotten."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from agenttop.errors import UserError
from agenttop.workloads.blockfile import candidates, in_memory
from agenttop.workloads.syscalls import libc

#: include/uapi/linux/sched.h, include/uapi/linux/mount.h
_CLONE_NEWNS: Final = 0x0002_0000
_MS_PRIVATE, _MS_REC, _MNT_DETACH = 1 << 18, 1 << 14, 2
#: include/uapi/linux/fs.h
_BLKFLSBUF: Final = 0x1261
_SIZE: Final = 8 << 20
_FOLDER: Final = "many"


class OwnFileSystem:
    """ext4 in a file on a disk, with a folder of empty files, mounted for this process alone.

    The file, the place where it is mounted and the mount have no names any more: whatever happens
    to the process, they go with its descriptors, and the loop device with them.
    """

    def __init__(self, files: int) -> None:
        """Raises UserError."""
        for tool in ("mke2fs", "mount"):
            if shutil.which(tool) is None:
                raise UserError(f"{tool} is missing: please install e2fsprogs and mount")
        self._root = self._device = -1
        try:
            with tempfile.TemporaryDirectory(prefix="agenttop-", dir=_on_disk()) as made:
                self._root = _mounted(Path(made, "image"), Path(made, "content"), files)
            #: Of the folder with the files.
            self.folder = f"/proc/self/fd/{self._root}/{_FOLDER}"
            number = os.fstat(self._root).st_dev
            name = os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
            self._device = os.open(f"/dev/{os.path.basename(name)}", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise UserError(f"no file system of our own: {error.strerror}") from None
            raise

    def forget(self) -> None:
        """Drop all that is known of its blocks: the next look waits for the disk."""
        fcntl.ioctl(self._device, _BLKFLSBUF)

    def close(self) -> None:
        """Leave nothing behind."""
        for fd in (self._device, self._root):
            if fd >= 0:
                os.close(fd)


def _mounted(image: Path, content: Path, files: int) -> int:
    """A descriptor of its root, which is all that holds it. Raises UserError, OSError."""
    (content / _FOLDER).mkdir(parents=True)
    for number in range(files):
        (content / _FOLDER / f"{number:08}").touch()
    with image.open("wb") as file:
        file.truncate(_SIZE)
    # No journal, which would hold on to blocks.
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", content, image)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(
        b"none", b"/", None, ctypes.c_ulong(_MS_PRIVATE | _MS_REC), None
    ):
        raise _refused("a mount namespace")
    _run("mount", "-o", "loop,ro,noatime", image, content)
    try:
        return os.open(content, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        libc.umount2(os.fsencode(content), _MNT_DETACH)


def _on_disk() -> str:
    """Where temporary files lie on a disk. Raises UserError."""
    for place in candidates():
        if in_memory(place) is None and os.access(place, os.W_OK):
            return place
    raise UserError("no directory on a disk for a file system of our own: set TMPDIR to one")


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]
        raise UserError(f"{command[0]}: {why}")


def _refused(what: str) -> UserError:
    code = ctypes.get_errno()
    why = "it takes root" if code == errno.EPERM else os.strerror(code)
    return UserError(f"{what} cannot be had: {why}")

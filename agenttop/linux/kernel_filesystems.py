"""tracefs and debugfs, wherever they are mounted, or nowhere.

Both have one superblock for the machine (get_tree_single in fs/super.c):
whatever a container's mounts are, everybody gets to the same inodes.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

#: statfs(2)'s type, include/uapi/linux/magic.h, and where it is mounted if all is as usual.
_USUAL: Final = {
    "tracefs": (0x74726163, ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")),
    "debugfs": (0x64626720, ("/sys/kernel/debug",)),
}
#: simple_fill_super in fs/libfs.c.
_ROOT_INODE: Final = 1
#: The same on all architectures, Linux 5.2.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
#: include/uapi/linux/mount.h: FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_CLOEXEC: Final = 1
_FSCONFIG_CREATE: Final = 6

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def root(filesystem: str) -> int:
    """A descriptor of its root directory, from a mount that nobody else sees if need be.

    Raises OSError, EPERM for that mount without CAP_SYS_ADMIN.
    """
    kind, places = _USUAL[filesystem]
    for place in places:
        try:
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        if _type(fd) == kind and os.fstat(fd).st_ino == _ROOT_INODE:
            return fd
        os.close(fd)
    return _mount(filesystem)


def _type(fd: int) -> int:
    """statfs(2)'s f_type; 0 if it cannot be told."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer):
        return 0
    return ctypes.c_long.from_buffer(buffer).value


def _mount(filesystem: str) -> int:
    context = syscall(_FSOPEN, filesystem.encode(), _CLOEXEC)
    try:
        syscall(_FSCONFIG, context, _FSCONFIG_CREATE, None, None, 0)
        mount = syscall(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        # What fsmount(2) gives can be looked into only (O_PATH).
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """A system call that the standard library lacks. Raises OSError."""
    words = [
        ctypes.c_long(word) if isinstance(word, int) else ctypes.c_char_p(word)
        for word in arguments
    ]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result

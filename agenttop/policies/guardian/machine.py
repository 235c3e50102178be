"""The machine that settings belong to: whether they may be written from here, and for how long.

Settings are the machine's, whatever namespaces a container has of its own.
A policy names threads by the numbers of this process's PID namespace, so it
is only had in the machine's own. What lock.py locks there is the same for
everybody, wherever their /run is, and out of reach for all but root: the root
directory of tracefs, or of debugfs where the kernel has none. Both have one
superblock for the machine, and mode 0700 unless root has opened them.

A fixture tree in the place of both /proc and /sys is a machine of its own.
"""

from __future__ import annotations

import os
from typing import Final

from agenttop.linux import kernel_filesystems

#: include/linux/proc_ns.h, PROC_PID_INIT_INO: the inode of the first PID namespace.
INITIAL_PID_NS = 0xEFFFFFFC
PID_NS = "/proc/self/ns/pid"
#: That of the processes that this one starts: the guardian's (unshare(2), setns(2)).
CHILDREN_NS = "/proc/self/ns/pid_for_children"


#: Which file systems a kernel has is the same in every container, other than what is mounted.
FILESYSTEMS: Final = "/proc/filesystems"
_ANCHORS: Final = ("tracefs", "debugfs")


class AnchorError(Exception):
    """The lock cannot be opened; the text says why, and what to do."""


def open_anchor() -> int:
    """A descriptor of what every writer of the same settings locks. Raises AnchorError."""
    if tree := _fixture():
        return os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(FILESYSTEMS) as file:
            known = {line.split()[-1] for line in file if line.strip()}
    except OSError:
        raise AnchorError(f"{FILESYSTEMS} cannot be read: mount /proc") from None
    name = next((name for name in _ANCHORS if name in known), None)
    if name is None:
        raise AnchorError(
            "this kernel has neither tracefs nor debugfs, by which writers see each other:"
            " take one with CONFIG_FTRACE or CONFIG_DEBUG_FS"
        )
    try:
        return kernel_filesystems.root(name)
    except OSError as error:
        raise AnchorError(
            f"{name}, by which writers see each other, is not to be had ({error.strerror}):"
            " mount it, or run agenttop with CAP_SYS_ADMIN (a container with --cap-add SYS_ADMIN)"
        ) from None


def refusal() -> str | None:
    """Why no setting may be written from here, and what to do; None if it may."""
    if _fixture():
        return None
    try:
        namespaces = {os.stat(path).st_ino for path in (PID_NS, CHILDREN_NS)}
    except OSError:
        return "the PID namespace cannot be told: mount /proc"
    if namespaces != {INITIAL_PID_NS}:
        return (
            "not from a PID namespace of its own, in which threads have other numbers:"
            " run agenttop on the host, or its container with --pid=host"
        )
    if os.geteuid() != 0:
        return None  # It needs root before anything else.
    try:
        os.close(open_anchor())
    except AnchorError as error:
        return str(error)
    return None


def passing(folder: str) -> str | None:
    """What would be lost when ``folder``, the state directory, goes with a container.

    None where the machine's first process has its file system as well, and it is no overlay
    (whose upper directory goes with the container).
    """
    if _fixture():
        return None
    while not os.path.isdir(folder):
        folder = os.path.dirname(os.path.abspath(folder))
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        if os.path.samefile("/proc/self/ns/mnt", "/proc/1/ns/mnt"):
            return None
    except OSError:
        pass  # Without CAP_SYS_PTRACE: the table of mounts tells enough.
    try:
        with open("/proc/1/mountinfo", "rb") as file:
            mounts = [line.split(b" ") for line in file]
    except OSError:
        return None
    kinds = {m[m.index(b"-") + 1] for m in mounts if m[2].decode() == wanted}
    if kinds and b"overlay" not in kinds:
        return None
    return (
        f"{folder} goes with this container: were it killed with all its processes, nothing could"
        " restore the settings (share the host's: docker run -v /run/agenttop:/run/agenttop)"
    )


def _fixture() -> str | None:
    """The fixture tree in the place of /proc, if there is one for /sys as well."""
    proc, sys = os.environ.get("AGENTTOP_PROC"), os.environ.get("AGENTTOP_SYS")
    if not proc or not sys:
        return None
    try:
        real = os.path.samefile(proc, "/proc") or os.path.samefile(sys, "/sys")
    except OSError:
        return None
    return None if real else proc

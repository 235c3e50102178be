"""The bpf() system call by hand: what BCC's Python side does not offer.

Sizes and commands are from include/uapi/linux/bpf.h. Only x86_64's number is
known here; programs.plan refuses other machines before.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Mapping
from typing import Final

_SYS_BPF: Final = 321
_SYS_PERF_EVENT_OPEN: Final = 298
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT = 0, 1, 2, 3, 4
_BTF_LOAD, _BTF_BY_ID = 18, 19
_PROG_LOAD, _OBJ_INFO, _RAW_TP_OPEN = 5, 15, 17
_LINK_CREATE, _ENABLE_STATS, _ITER_CREATE = 28, 32, 33
_MAP_LOOKUP_BATCH: Final = 24

MAP_TASK_STORAGE: Final = 29
PROG_PERF_EVENT: Final = 7
PROG_RAW_TRACEPOINT: Final = 17
PROG_TRACING: Final = 26
ATTACH_TRACE_RAW_TP: Final = 23
ATTACH_TRACE_ITER: Final = 28

#: include/uapi/linux/perf_event.h: PERF_TYPE_SOFTWARE, PERF_FLAG_FD_CLOEXEC, and two ioctls.
_PERF_TYPE_SOFTWARE: Final = 1
_PERF_CLOEXEC: Final = 8
_PERF_SET_BPF: Final = 0x40042408
_PERF_ENABLE: Final = 0x2400

#: BPF_JMP | BPF_CALL, and the source register of a call of a kernel function.
_CALL: Final = 0x85
_PSEUDO_KFUNC_CALL: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _bpf(command: int, attr: bytes) -> int:
    buffer = ctypes.create_string_buffer(attr, max(len(attr), 152))
    result = int(_libc.syscall(_SYS_BPF, command, buffer, len(buffer)))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def load_program(
    instructions: bytes, name: str, kind: int, attach_type: int = 0, btf_id: int = 0
) -> int:
    """A program fd. Raises OSError whose text ends with the verifier's last words."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"Dual MIT/GPL")

    def attempt(log: ctypes.Array[ctypes.c_char] | None) -> int:
        attr = struct.pack(
            "<IIQQIIQII16sIIIIQIIQII",
            kind,
            len(instructions) // 8,
            ctypes.addressof(code),
            ctypes.addressof(licence),
            1 if log else 0,
            len(log) if log else 0,
            ctypes.addressof(log) if log else 0,
            0,
            0,
            name.encode()[:15],
            0,
            attach_type,
            *(0,) * 7,
            btf_id,
        )
        return _bpf(_PROG_LOAD, attr)

    try:
        return attempt(None)
    except OSError:
        # Once more with the verifier's log, which is slow and so not the first try.
        log = ctypes.create_string_buffer(1 << 20)
        try:
            return attempt(log)
        except OSError as error:
            words = log.value.decode(errors="replace").strip().splitlines()
            said = "; ".join(words[-3:])
            raise OSError(error.errno, f"{name}: {error.strerror}: {said}") from None


def link_calls(instructions: bytes, functions: Mapping[int, int]) -> bytes:
    """Turn calls of the helper numbers in ``functions`` into calls of kernel functions.

    The values are BTF ids. Such a call is marked by the source register
    (BPF_PSEUDO_KFUNC_CALL), which no C source can say without libbpf.
    """
    code = bytearray(instructions)
    for at in range(0, len(code), 8):
        number = int.from_bytes(code[at + 4 : at + 8], "little", signed=True)
        if code[at] == _CALL and not code[at + 1] >> 4 and number in functions:
            code[at + 1] = code[at + 1] & 0x0F | _PSEUDO_KFUNC_CALL << 4
            code[at + 4 : at + 8] = functions[number].to_bytes(4, "little")
    return bytes(code)


def attach_raw_tracepoint(program: int, name: str | None = None) -> int:
    """A link fd; ``name`` for raw tracepoints, none for tp_btf (it is in the program)."""
    text = ctypes.create_string_buffer(name.encode()) if name else None
    return _bpf(_RAW_TP_OPEN, struct.pack("<QI", ctypes.addressof(text) if text else 0, program))


def attach_software_event(program: int, event: int, cpu: int) -> int:
    """An fd that keeps a program attached to a PERF_COUNT_SW_* event of one CPU. Raises OSError."""
    # struct perf_event_attr, version 0: size, event, a sample of each, created disabled.
    attr = struct.pack("<IIQQQQQIIQ", _PERF_TYPE_SOFTWARE, 64, event, 1, 0, 0, 1, 0, 0, 0)
    buffer = ctypes.create_string_buffer(attr, len(attr))
    fd = int(_libc.syscall(_SYS_PERF_EVENT_OPEN, buffer, -1, cpu, -1, _PERF_CLOEXEC))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    try:
        fcntl.ioctl(fd, _PERF_SET_BPF, program)
        fcntl.ioctl(fd, _PERF_ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def link_iterator(program: int) -> int:
    """A link fd of an iterator program."""
    return _bpf(_LINK_CREATE, struct.pack("<IIII", program, 0, ATTACH_TRACE_ITER, 0))


def open_iterator(link: int) -> int:
    """A readable fd; one pass over all tasks per fd."""
    return _bpf(_ITER_CREATE, struct.pack("<II", link, 0))


def enable_stats() -> int:
    """While this fd is open, the kernel measures the run time of all BPF programs."""
    return _bpf(_ENABLE_STATS, struct.pack("<I", 0))


def program_info(program: int) -> tuple[int, int, int]:
    """(run_time_ns, run_cnt, recursion_misses) of struct bpf_prog_info."""
    info = ctypes.create_string_buffer(256)
    _bpf(_OBJ_INFO, struct.pack("<IIQ", program, len(info), ctypes.addressof(info)))
    run_ns, runs, misses = struct.unpack_from("<QQQ", info, 192)
    return run_ns, runs, misses


def create_map(
    name: str, shape: tuple[int, int, int, int, int], btf: tuple[int, int, int] | None
) -> int:
    """A map fd; ``shape``: type, key size, value size, entries, flags; ``btf``: fd, key, value."""
    attr = struct.pack("<IIIIIII16sIIII", *shape, 0, 0, name.encode()[:15], 0, *(btf or (0, 0, 0)))
    return _bpf(_MAP_CREATE, attr)


def map_info(fd: int) -> tuple[tuple[int, int, int, int, int, int, int], int]:
    """(type, key size, value size, entries, flags, BTF ids of key and value), BTF object's id."""
    info = ctypes.create_string_buffer(256)
    _bpf(_OBJ_INFO, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
    kind, _, key, value, entries, flags = struct.unpack_from("<IIIIII", info)
    btf, btf_key, btf_value = struct.unpack_from("<III", info, 64)
    return (kind, key, value, entries, flags, btf_key, btf_value), btf


def load_btf(blob: bytes) -> int:
    """A BTF fd, which a map of task-local storage is made with."""
    data = ctypes.create_string_buffer(blob, len(blob))
    return _bpf(_BTF_LOAD, struct.pack("<QQIII", ctypes.addressof(data), 0, len(blob), 0, 0))


def btf_of(btf_id: int) -> bytes:
    """The blob of a BTF object in the kernel."""
    fd = _bpf(_BTF_BY_ID, struct.pack("<I", btf_id))
    try:
        data = ctypes.create_string_buffer(1 << 20)
        about = struct.pack("<QIIQII", ctypes.addressof(data), len(data), 0, 0, 0, 0)
        info = ctypes.create_string_buffer(about, len(about))
        _bpf(_OBJ_INFO, struct.pack("<IIQ", fd, len(about), ctypes.addressof(info)))
        (size,) = struct.unpack_from("<I", info, 8)
        return data.raw[:size]
    finally:
        os.close(fd)


def map_update(fd: int, key: bytes, value: bytes) -> None:
    k, v = (
        ctypes.create_string_buffer(key, len(key)),
        ctypes.create_string_buffer(value, len(value)),
    )
    _bpf(_MAP_UPDATE, struct.pack("<IIQQQ", fd, 0, ctypes.addressof(k), ctypes.addressof(v), 0))


def queue_push(fd: int, value: bytes) -> None:
    """Put a value into a queue, which has no keys. Raises OSError when it is full."""
    v = ctypes.create_string_buffer(value, len(value))
    _bpf(_MAP_UPDATE, struct.pack("<IIQQQ", fd, 0, 0, ctypes.addressof(v), 0))


def map_delete(fd: int, key: bytes) -> None:
    """Missing keys are fine."""
    k = ctypes.create_string_buffer(key, len(key))
    try:
        _bpf(_MAP_DELETE, struct.pack("<IIQQQ", fd, 0, ctypes.addressof(k), 0, 0))
    except FileNotFoundError:
        pass


def map_lookup_into(fd: int, key: bytes, value: ctypes.Array[ctypes.c_char]) -> bool:
    """Fill ``value`` (for per-CPU maps: value size times possible CPUs)."""
    k = ctypes.create_string_buffer(key, len(key))
    attr = struct.pack("<IIQQQ", fd, 0, ctypes.addressof(k), ctypes.addressof(value), 0)
    try:
        _bpf(_MAP_LOOKUP, attr)
    except FileNotFoundError:
        return False
    return True


def map_items(
    fd: int, keys: ctypes.Array[ctypes.c_char], values: ctypes.Array[ctypes.c_char], most: int
) -> int:
    """Fill the buffers with all of a hash, up to ``most``, in one call; how many there were.

    What comes or goes meanwhile may be in it or not.
    """
    token = ctypes.create_string_buffer(8)
    attr = ctypes.create_string_buffer(
        struct.pack(
            "<QQQQIIQQ",
            0,
            ctypes.addressof(token),
            ctypes.addressof(keys),
            ctypes.addressof(values),
            most,
            fd,
            0,
            0,
        ),
        152,
    )
    if _libc.syscall(_SYS_BPF, _MAP_LOOKUP_BATCH, attr, len(attr)) < 0:
        error = ctypes.get_errno()
        if error != errno.ENOENT:  # which says that it was the last batch
            raise OSError(error, os.strerror(error))
    (count,) = struct.unpack_from("<I", attr.raw, 32)
    return int(count)


def map_keys(fd: int, size: int) -> list[bytes]:
    """All keys of a hash at about this moment."""
    keys: list[bytes] = []
    key, following = None, ctypes.create_string_buffer(size)
    while len(keys) < 1 << 20:
        attr = struct.pack(
            "<IIQQQ",
            fd,
            0,
            ctypes.addressof(key) if key else 0,
            ctypes.addressof(following),
            0,
        )
        try:
            _bpf(_MAP_NEXT, attr)
        except FileNotFoundError:
            return keys
        keys.append(following.raw)
        key = ctypes.create_string_buffer(following.raw, size)
    return keys

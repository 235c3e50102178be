"""What the loader reads from the kernel's types, and how it links kernel functions."""

from __future__ import annotations

import struct

import pytest

from agenttop.collectors.bpf import syscall
from agenttop.collectors.bpf.load.btf import Btf, BtfError

_INT, _PTR, _FUNC, _TYPEDEF, _CONST, _PROTO, _VAR = 1, 2, 12, 8, 10, 13, 14


class Blob:
    """A BTF blob under construction; ids start at 1 (0 is void)."""

    def __init__(self) -> None:
        self._strings = bytearray(b"\0")
        self._types = bytearray()
        self._count = 0

    def add(self, kind: int, name: str, target: int, tail: bytes = b"", vlen: int = 0) -> int:
        at = 0
        if name:
            at = len(self._strings)
            self._strings += name.encode() + b"\0"
        self._types += struct.pack("<III", at, kind << 24 | vlen, target) + tail
        self._count += 1
        return self._count

    def tracepoint(self, name: str, *arguments: int) -> None:
        """As the kernel has them: a typedef of a pointer to a function of (void *, ...)."""
        data = self.add(_PTR, "", 0)
        tail = b"".join(struct.pack("<II", 0, type_id) for type_id in (data, *arguments))
        proto = self.add(_PROTO, "", 0, tail, vlen=1 + len(arguments))
        self.add(_TYPEDEF, f"btf_trace_{name}", self.add(_PTR, "", proto))

    def btf(self) -> Btf:
        types, strings = bytes(self._types), bytes(self._strings)
        sizes = (0, len(types), len(types), len(strings))
        return Btf(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, *sizes) + types + strings)


def test_arguments_by_value_and_by_pointer_differ() -> None:
    blob = Blob()
    s64 = blob.add(_INT, "long long", 8, struct.pack("<I", 1 << 24 | 64))
    time = blob.add(_TYPEDEF, "ktime_t", blob.add(_TYPEDEF, "s64", s64))
    pointer = blob.add(_CONST, "", blob.add(_PTR, "", time))
    blob.tracepoint("old", pointer, pointer)
    blob.tracepoint("new", pointer, time)
    btf = blob.btf()
    assert [btf.tracepoint_passes_pointer("old", arg) for arg in (0, 1, 2)] == [True, True, False]
    assert [btf.tracepoint_passes_pointer("new", arg) for arg in (0, 1, 2)] == [True, False, False]
    assert (btf.tracepoint_args("old"), btf.tracepoint_args("none")) == (2, None)
    assert not btf.tracepoint_passes_pointer("none", 0)


def test_variables_are_not_functions() -> None:
    blob = Blob()
    number = blob.add(_INT, "int", 4, struct.pack("<I", 32))
    blob.add(_VAR, "counter", number, struct.pack("<I", 1))
    blob.add(_FUNC, "work", blob.add(_PROTO, "", 0))
    btf = blob.btf()
    assert btf.has_variable("counter")
    assert not btf.has_variable("work")
    assert btf.function("work") == 4
    assert btf.function("counter") is None


def test_this_kernels_timers_are_known() -> None:
    try:
        btf = Btf.load()
    except BtfError as error:
        pytest.skip(str(error))
    assert btf.tracepoint_passes_pointer("hrtimer_expire_entry", 0)
    assert btf.tracepoint_args("hrtimer_expire_entry") == 2


def instruction(code: int, registers: int, number: int) -> bytes:
    return struct.pack("<BBhi", code, registers, 0, number)


def test_only_calls_of_given_numbers_are_linked() -> None:
    call, move = 0x85, 0xB7
    program = [
        instruction(call, 0, 14),  # a helper
        instruction(call, 0, 1001),
        instruction(move, 1, 1001),  # the same number, not a call
        instruction(call, 0x10, 1001),  # a call within the program
    ]
    linked = syscall.link_calls(b"".join(program), {1001: 70_000})
    assert linked == b"".join([program[0], instruction(call, 0x20, 70_000), *program[2:]])
    assert syscall.link_calls(b"".join(program), {}) == b"".join(program)

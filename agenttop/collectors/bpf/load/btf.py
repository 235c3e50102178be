"""A reader of BTF, the kernel's own description of its types (Documentation/bpf/btf.rst).

Field offsets must come from the running kernel: headers of another kernel
compile and then read wrong fields silently. One pass over all types takes
some 50 ms and notes only where each stands; names are looked up afterwards.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAGIC: Final = 0xEB9F

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = range(1, 9)
_VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT = range(9, 17)
_DECL_TAG, _TYPE_TAG, _ENUM64 = range(17, 20)

#: Bytes behind the 12-byte header: (fixed, per element of vlen).
_TAIL: Final = {
    _INT: (4, 0),
    _ARRAY: (12, 0),
    _STRUCT: (0, 12),
    _UNION: (0, 12),
    _ENUM: (0, 8),
    _FUNC_PROTO: (0, 8),
    _VAR: (4, 0),
    _DATASEC: (0, 12),
    _DECL_TAG: (4, 0),
    _ENUM64: (0, 12),
}
#: Kinds that are looked up by name.
_NAMED: Final = (_STRUCT, _TYPEDEF, _FUNC, _VAR)
_MODIFIERS: Final = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)


class BtfError(Exception):
    """The kernel has no BTF, or it is not one that this reader knows."""


@dataclass(frozen=True)
class Field:
    """A member of a struct, unions and anonymous structs flattened."""

    bit: int
    type_id: int


class Btf:
    """Types of one BTF blob. Ids start at 1, as the kernel counts them."""

    def __init__(self, data: bytes) -> None:
        """Raises BtfError when the blob is not BTF of this machine's byte order."""
        try:
            magic, _, _, header, type_off, type_len, str_off, str_len = struct.unpack_from(
                "<HBBIIIII", data
            )
        except struct.error:
            raise BtfError("too short to be BTF") from None
        if magic != _MAGIC:
            raise BtfError("not BTF of this byte order")
        self._strings = data[header + str_off : header + str_off + str_len]
        self._types = data[header + type_off : header + type_off + type_len]
        #: Type id -> its place in the types; kind -> id of the first type with the name there.
        self._where: list[int] = [0]
        self._named: dict[int, dict[int, int]] = {kind: {} for kind in _NAMED}
        self._index()
        #: What was looked up.
        self._known: dict[tuple[int, str], int | None] = {}

    @classmethod
    def load(cls, path: Path = Path("/sys/kernel/btf/vmlinux")) -> Btf:
        """The running kernel's. Raises BtfError when it has none (CONFIG_DEBUG_INFO_BTF)."""
        try:
            return cls(path.read_bytes())
        except OSError as error:
            raise BtfError(f"{path}: {error.strerror}") from None

    def typedef(self, name: str) -> int | None:
        """Id of a typedef; ``btf_trace_NAME`` exists for each tracepoint NAME."""
        return self._lookup(_TYPEDEF, name)

    def function(self, name: str) -> int | None:
        """Id of a kernel function (as attach target)."""
        return self._lookup(_FUNC, name)

    def has_variable(self, name: str) -> bool:
        """Whether the kernel has a per-CPU variable of this name."""
        return self._lookup(_VAR, name) is not None

    def has_tracepoint(self, name: str) -> bool:
        return self.typedef(f"btf_trace_{name}") is not None

    def tracepoint_args(self, name: str) -> int | None:
        """Number of arguments of a tracepoint, None if it does not exist."""
        proto = self._prototype(name)
        return None if proto is None else len(proto)

    def tracepoint_passes_pointer(self, name: str, arg: int) -> bool:
        """Whether an argument (the first is 0) is a pointer; False if there is none."""
        proto = self._prototype(name) or ()
        return arg < len(proto) and self._head(self._strip(proto[arg]))[1] == _PTR

    def field_offset(self, struct_name: str, *path: str) -> int | None:
        """Byte offset of a (nested) field, e.g. ``("hrtimer", "node", "expires")``."""
        bit = self.field_bit(struct_name, *path)
        return None if bit is None else bit // 8

    def field_bit(self, struct_name: str, *path: str) -> int | None:
        """The same in bits: where a bit field begins."""
        type_id = self._lookup(_STRUCT, struct_name)
        bit = 0
        for name in path:
            field = self._field(type_id, name) if type_id is not None else None
            if field is None:
                return None
            bit += field.bit
            type_id = self._strip(field.type_id)
        return bit

    # ------------------------------------------------------------------ internals

    def _index(self) -> None:
        """The one pass: in words of 32 bits, as every type's size is a number of them."""
        words = memoryview(self._types[: len(self._types) & ~3]).cast("I")
        tails = [_TAIL.get(kind, (0, 0)) for kind in range(32)]
        fixed, each = [3 + tail[0] // 4 for tail in tails], [tail[1] // 4 for tail in tails]
        named = [self._named.get(kind) for kind in range(32)]
        note, at, end, number = self._where.append, 0, len(words) - 2, 0
        while at < end:
            info = words[at + 1]
            kind = info >> 24 & 0x1F
            number += 1
            names = named[kind]
            if names is not None:
                names.setdefault(words[at], number)
            note(4 * at)
            at += fixed[kind] + each[kind] * (info & 0xFFFF)

    def _lookup(self, kind: int, name: str) -> int | None:
        """Id of the first type of a kind with a name: wherever the strings have it."""
        asked = (kind, name)
        if asked not in self._known:
            names, wanted = self._named[kind], name.encode() + b"\0"
            at = self._strings.find(wanted)
            while at >= 0 and at not in names:
                at = self._strings.find(wanted, at + 1)
            self._known[asked] = names.get(at)
        return self._known[asked]

    def _head(self, type_id: int) -> tuple[int, int, int, int]:
        name, info, target = struct.unpack_from("<III", self._types, self._where[type_id])
        return name, info >> 24 & 0x1F, info & 0xFFFF, target

    def _prototype(self, tracepoint: str) -> list[int] | None:
        """Type ids of a tracepoint's arguments; None if it does not exist."""
        type_id = self.typedef(f"btf_trace_{tracepoint}")
        while type_id is not None:
            _, kind, vlen, target = self._head(type_id)
            if kind == _FUNC_PROTO:
                where = self._where[type_id] + 12
                pairs = struct.unpack_from(f"<{2 * vlen}I", self._types, where)
                return list(pairs[3::2])  # the first is the registration's own void *
            type_id = target if kind in (*_MODIFIERS, _PTR) else None
        return None

    def _strip(self, type_id: int) -> int:
        while self._head(type_id)[1] in _MODIFIERS:
            type_id = self._head(type_id)[3]
        return type_id

    def _field(self, type_id: int, wanted: str) -> Field | None:
        _, kind, vlen, _ = self._head(type_id)
        if kind not in (_STRUCT, _UNION):
            return None
        bitfields = struct.unpack_from("<I", self._types, self._where[type_id] + 4)[0] >> 31
        for i in range(vlen):
            name, member, offset = struct.unpack_from(
                "<III", self._types, self._where[type_id] + 12 + 12 * i
            )
            bits = offset & 0xFFFFFF if bitfields else offset
            if name and self._name(name) == wanted:
                return Field(bits, member)
            if not name:
                inner = self._field(self._strip(member), wanted)
                if inner is not None:
                    return Field(bits + inner.bit, inner.type_id)
        return None

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(0, offset)].decode(errors="replace")

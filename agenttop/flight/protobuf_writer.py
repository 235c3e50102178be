"""Writes protocol buffers: the wire format alone, https://protobuf.dev/programming-guides/encoding.

A message is the bytes of its fields, one after the other. What a field's number
and type are stands in the schema of who reads it.
"""

from __future__ import annotations

import struct
from typing import Final

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_MASK: Final = (1 << 64) - 1


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; negative ones as 64-bit two's complement."""
    value &= _MASK
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """int32, int64, uint32, uint64, bool or enum."""
    return varint(field << 3 | _VARINT) + varint(value)


def fixed64(field: int, value: int) -> bytes:
    """fixed64."""
    return varint(field << 3 | _FIXED64) + struct.pack("<Q", value & _MASK)


def double(field: int, value: float) -> bytes:
    """double."""
    return varint(field << 3 | _FIXED64) + struct.pack("<d", value)


def blob(field: int, value: bytes) -> bytes:
    """bytes, or a message within a message."""
    return varint(field << 3 | _BYTES) + varint(len(value)) + value


def string(field: int, value: str) -> bytes:
    """string: surrogates, which UTF-8 cannot have, become question marks."""
    return blob(field, value.encode("utf-8", "replace"))

"""About what a message will take in memory, told from its bytes before anything is decoded.

One byte of MessagePack can become hundreds in memory (an empty map where a struct is
due), and a list's length is believed before its items are there. The bytes are walked
along the types that they will be decoded to, and the sizes of what would be made are
summed until they exceed what is allowed. Nothing is made meanwhile. The sum is an estimate:
of small values it leaves out what CPython's allocator adds (up to an eighth); what is then made
of the message is bounded by memory_limit.py.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import inspect

#: Of values that no field asks for, how deep they may be nested: they are skipped by recursion.
DEEPEST: Final = 32

# Sizes in CPython, bytes; an estimate, rather too large than too small.
_GC: Final = 16
_INT: Final = 32
_FLOAT: Final = 24
_STR: Final = 57
_BYTES: Final = 33
_LIST: Final = 56 + _GC
_ITEM: Final = 9
_DICT: Final = 64 + _GC
_ENTRY: Final = 100
#: An entry of a map whose name and value have one byte each, by byte.
_A_BYTE: Final = (_ENTRY + _STR + 4) // 2
#: A text with any character beyond ASCII takes up to four bytes for each.
_WIDE: Final = 4


class TooHeavyError(Exception):
    """One line: it would take more memory than allowed."""


class MalformedError(Exception):
    """One line: it cannot be decoded."""


#: What a value should be: the fields of a struct (by their encoded names) with its size when
#: all of them have their defaults; a list's or a map's items; or None: a number, a text, bytes.
_Shape = Any


class _Fields:
    __slots__ = ("fields", "size")

    def __init__(self) -> None:
        self.fields: dict[bytes, _Shape] = {}
        self.size = 0


class _Items:
    __slots__ = ("item",)

    def __init__(self, item: _Shape) -> None:
        self.item = item


class _Values:
    __slots__ = ("value",)

    def __init__(self, value: _Shape) -> None:
        self.value = value


def _shape(kind: inspect.Type, known: dict[type, _Fields]) -> _Shape:
    if isinstance(kind, inspect.UnionType):
        shapes = [shape for each in kind.types if (shape := _shape(each, known)) is not None]
        if len(shapes) > 1:
            raise TypeError(f"{kind}: of several containers none is told by its bytes")
        return shapes[0] if shapes else None
    if isinstance(kind, inspect.ListType):
        return _Items(_shape(kind.item_type, known))
    if isinstance(kind, inspect.DictType):
        return _Values(_shape(kind.value_type, known))
    if isinstance(kind, inspect.StructType):
        if kind.cls in known:
            return known[kind.cls]
        out = known[kind.cls] = _Fields()
        out.size = _GC + 16 + 8 * len(kind.fields)
        for field in kind.fields:
            out.fields[field.encode_name.encode()] = _shape(field.type, known)
            if field.default_factory is not msgspec.NODEFAULT:
                made = field.default_factory()
                out.size += sys.getsizeof(made) + _GC
                if isinstance(made, msgspec.Struct):
                    # Defaults of a default: small, and there are few.
                    out.size += 16 * _LIST
        return out
    return None


_U16: Final = struct.Struct(">H").unpack_from
_U32: Final = struct.Struct(">I").unpack_from


class Scale:
    """Weighs messages that will be decoded to one type."""

    def __init__(self, kind: type[msgspec.Struct]) -> None:
        structs: dict[type, _Fields] = {}
        self._shape = _shape(inspect.type_info(kind), structs)
        self._heaviest = max(fields.size for fields in structs.values())

    def at_most(self, data: bytes | bytearray) -> int:
        """What ``weigh`` gives at most, at a glance.

        As if every byte that could begin a list or a map began the heaviest struct, and all
        others were the entries of a map.
        """
        containers = len(data.translate(None, _OTHERS))
        return containers * self._heaviest + len(data) * _A_BYTE

    def weigh(self, data: bytes | bytearray | memoryview, most: int) -> int:
        """About the bytes that the decoded value will take.

        Raises TooHeavyError above ``most``, MalformedError for what is no such value.
        """
        walk = _Walk(data, most)
        try:
            end = walk.value(0, self._shape)
        except (IndexError, struct.error):
            raise MalformedError("it ends too early") from None
        walk.add(0)  # small ones are summed without a look at the limit
        if end != len(data):
            raise MalformedError("something follows its end" if end < len(data) else "cut")
        return walk.size


class _Walk:
    __slots__ = ("data", "most", "size")

    def __init__(self, data: bytes | bytearray | memoryview, most: int) -> None:
        self.data = data
        self.most = most
        self.size = 0

    def add(self, size: int) -> None:
        self.size += size
        if self.size > self.most:
            raise TooHeavyError(f"it would take more than {self.most >> 20} MB of memory")

    def value(self, at: int, shape: _Shape) -> int:
        """Take in the value at ``at``; gives where the next one begins."""
        data = self.data
        first = data[at]
        if first < 0x80 or first >= 0xE0:
            return at + 1
        container = _CONTAINERS[first]
        if not container:
            size, end = _SCALARS[first](data, at)
            self.size += size
            if size > _INT:
                if end - at > 64 and _is_text(first) and not _ascii(data, at, end):
                    size *= _WIDE
                self.add(size)
            return end
        count, at = _count(data, at, first)
        if shape is None:
            raise MalformedError("a list or a map in the place of a number or a text")
        # Each takes a byte at least: a length that cannot be is found before it is believed.
        if count > len(data) - at:
            raise MalformedError("it ends too early")
        kind = type(shape)
        if container == _ARRAY:
            if kind is not _Items:
                raise MalformedError("a list in the place of a map")
            self.add(_LIST + _ITEM * count)
            item = shape.item
            for _ in range(count):
                at = self.value(at, item)
            return at
        if kind is _Fields:
            self.add(shape.size)
            fields = shape.fields
            for _ in range(count):
                start, at = _text(data, at)
                name = bytes(data[start:at]) if at - start < 64 else b""
                at = self.value(at, fields[name]) if name in fields else self.skip(at)
            return at
        if kind is not _Values:
            raise MalformedError("a map in the place of a list")
        self.add(_DICT + _ENTRY * count)
        item = shape.value
        for _ in range(count):
            start, at = _text(data, at)
            self.size += _STR + _WIDE * (at - start)
            at = self.value(at, item)
        return at

    def skip(self, at: int) -> int:
        """Past a value that no field asks for."""
        data = self.data
        left = [1]
        while left:
            if not left[-1]:
                left.pop()
                continue
            left[-1] -= 1
            first = data[at]
            if first < 0x80 or first >= 0xE0:
                at += 1
            elif container := _CONTAINERS[first]:
                count, at = _count(data, at, first)
                if count > len(data) - at:
                    raise MalformedError("it ends too early")
                left.append(count if container == _ARRAY else 2 * count)
                if len(left) > DEEPEST:
                    raise MalformedError("it is nested too deeply")
            else:
                _, at = _SCALARS[first](data, at)
        return at


# --------------------------------------------------------------------------- MessagePack

_ARRAY: Final = 1
_MAP: Final = 2
_CONTAINERS: Final = [0] * 256
_CONTAINERS[0x80:0x90] = [_MAP] * 16
_CONTAINERS[0x90:0xA0] = [_ARRAY] * 16
_CONTAINERS[0xDC:0xE0] = [_ARRAY, _ARRAY, _MAP, _MAP]
_OTHERS: Final = bytes(code for code in range(256) if not _CONTAINERS[code])


def _count(data: Any, at: int, first: int) -> tuple[int, int]:
    """Items of a list, or pairs of a map, and where they begin."""
    if first < 0xA0:
        return first & 0x0F, at + 1
    if first in (0xDC, 0xDE):
        return _U16(data, at + 1)[0], at + 3
    return _U32(data, at + 1)[0], at + 5


def _text(data: Any, at: int) -> tuple[int, int]:
    """Start and end of a text."""
    first = data[at]
    if 0xA0 <= first < 0xC0:
        start = at + 1
        end = start + (first & 0x1F)
    elif first == 0xD9:
        start = at + 2
        end = start + data[at + 1]
    elif first == 0xDA:
        start = at + 3
        end = start + _U16(data, at + 1)[0]
    elif first == 0xDB:
        start = at + 5
        end = start + _U32(data, at + 1)[0]
    else:
        raise MalformedError("a name that is no text")
    if end > len(data):
        raise MalformedError("it ends too early")
    return start, end


def _is_text(first: int) -> bool:
    return 0xD9 <= first <= 0xDB


def _ascii(data: Any, at: int, end: int) -> bool:
    return bytes(data[at + 5 : end]).isascii()


_Scalar = Callable[[Any, int], tuple[int, int]]


def _fixed(size: int, length: int) -> _Scalar:
    def scalar(data: Any, at: int) -> tuple[int, int]:
        return size, at + length

    return scalar


def _string(data: Any, at: int) -> tuple[int, int]:
    start, end = _text(data, at)
    short = end - start <= 64
    return _STR + (end - start) * (_WIDE if short else 1), end


def _bin(width: int) -> _Scalar:
    def scalar(data: Any, at: int) -> tuple[int, int]:
        length = int.from_bytes(data[at + 1 : at + 1 + width])
        end = at + 1 + width + length
        if end > len(data):
            raise MalformedError("it ends too early")
        return _BYTES + length, end

    return scalar


def _no(data: Any, at: int) -> tuple[int, int]:
    raise MalformedError("a kind of value that is never sent")


_SCALARS: Final[list[_Scalar]] = [_no] * 256
_SCALARS[0xA0:0xC0] = [_string] * 32
for _code in (0xC0, 0xC2, 0xC3):  # nil, false, true
    _SCALARS[_code] = _fixed(0, 1)
_SCALARS[0xC4:0xC7] = [_bin(1), _bin(2), _bin(4)]
_SCALARS[0xCA:0xCC] = [_fixed(_FLOAT, 5), _fixed(_FLOAT, 9)]
_SCALARS[0xCC:0xD0] = [_fixed(0, 2), _fixed(_INT, 3), _fixed(_INT, 5), _fixed(_INT, 9)]
_SCALARS[0xD0:0xD4] = [_fixed(_INT, 2), _fixed(_INT, 3), _fixed(_INT, 5), _fixed(_INT, 9)]
_SCALARS[0xD9:0xDC] = [_string] * 3

"""What the engine and the guardian say to each other: one message a packet, typed at both ends.

A packet is a JSON list: the message's name and its fields. ``decode`` takes
nothing on trust: whatever is no message is a WireError, never another error.
Packets have a bound in bytes (MAX_BYTES): ``split`` makes parts that fit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from agenttop.policies.knobs.base import Change

#: Largest packet. AF_UNIX takes no larger one than the sender's buffer (SO_SNDBUF).
MAX_BYTES = 1 << 17
#: Of which so much is for what stands beside the rows.
_ENVELOPE = 4096
#: More in a row than the kernel has paths and values for: cut by ``split``.
_MAX_TEXT = 1 << 13

Key = tuple[str, str]
#: Of an answer: [status, text] of a change, or the fields of an undo.Outcome.
Row = list[Any]


class WireError(Exception):
    """A packet is no message, or a message fits into no packet."""


class Beat(NamedTuple):
    """The engine renews the lease."""


class Apply(NamedTuple):
    """Write knobs."""

    id: int
    changes: list[Change]


class Follow(NamedTuple):
    """Write knobs each time that the kernel says that a window holds their cells."""

    id: int
    changes: list[Change]
    cells: list[list[int]]


class Undo(NamedTuple):
    """Restore knobs."""

    id: int
    keys: list[Key]


class Heirs(NamedTuple):
    """Restore what threads of these processes (of an agent each) inherited."""

    id: int
    groups: list[list[int]]


class Watched(NamedTuple):
    """Watch the kernel's windows: two map descriptors come with it (window_watch.py)."""

    pages: int
    size: int


class Record(NamedTuple):
    """Use the record whose descriptors come with it (inheritance_programs.py).

    Without any: let go of it.

    The answer: one row, whether that was done. Nobody lets go while a thread is held.
    """

    id: int


class Close(NamedTuple):
    """Restore everything and end."""

    id: int


class Keep(NamedTuple):
    """End, and leave applied what can be."""

    id: int


class Ready(NamedTuple):
    """The guardian has started."""


class Alive(NamedTuple):
    """The answer to a Beat, with the figures of the windows if there are any."""

    figures: dict[str, Any]


class Busy(NamedTuple):
    """A request takes long: the guardian has dealt with some more of it."""


class Done(NamedTuple):
    """The answer to a request: a row for each change, key or heir."""

    id: int
    rows: list[Row]


class Refused(NamedTuple):
    """The answer to a request that could not be read (its id is 0 then) or met."""

    id: int
    why: str


class Reverted(NamedTuple):
    """What the guardian undid unasked."""

    why: str
    policy: str
    rows: list[Row]


class Lost(NamedTuple):
    """The same, and its last word."""

    why: str
    rows: list[Row]


class More(NamedTuple):
    """The first of the rows that the next message brings."""

    rows: list[Row]


Message = (
    Beat | Apply | Follow | Undo | Heirs | Watched | Record | Close | Keep
    | Ready | Alive | Busy | Done | Refused | Reverted | Lost | More
)  # fmt: skip


def _int(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise WireError("no number")
    return value


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise WireError("no text")
    return value


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WireError("no object")
    return value


def _list(value: Any, item: Callable[[Any], Any]) -> list[Any]:
    if not isinstance(value, list):
        raise WireError("no list")
    return [item(one) for one in value]


def _texts(value: Any, count: int) -> list[str]:
    texts = _list(value, _str)
    if len(texts) != count:
        raise WireError(f"not {count} texts")
    return texts


def _cell(value: Any) -> str | bool:
    if not isinstance(value, str | bool):
        raise WireError("no text or truth")
    return value


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "id": _int,
    "pages": _int,
    "size": _int,
    "why": _str,
    "policy": _str,
    "figures": _dict,
    "changes": lambda value: _list(value, lambda one: Change(*_texts(one, 5))),
    "keys": lambda value: _list(value, lambda one: tuple(_texts(one, 2))),
    "cells": lambda value: _list(value, lambda one: _list(one, _int)),
    "groups": lambda value: _list(value, lambda one: _list(one, _int)),
    "rows": lambda value: _list(value, lambda one: _list(one, _cell)),
}
_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Beat, Apply, Follow, Undo, Heirs, Watched, Record, Close, Keep,
        Ready, Alive, Busy, Done, Refused, Reverted, Lost, More,
    )
}  # fmt: skip


def encode(message: Message) -> bytes:
    """A packet. Raises WireError for one that would be too large."""
    data = _json([type(message).__name__, *message])
    if len(data) > MAX_BYTES:
        raise WireError(f"a message of {len(data)} bytes, more than {MAX_BYTES}")
    return data


def decode(data: bytes) -> Message:
    """The message in a packet. Raises WireError."""
    try:
        packet = json.loads(data)
    except (ValueError, RecursionError):
        raise WireError("no JSON") from None
    if not isinstance(packet, list) or not packet or not isinstance(packet[0], str):
        raise WireError("no message")
    kind = _KINDS.get(packet[0])
    if kind is None or len(packet) != len(kind._fields) + 1:
        raise WireError("no message that is known")
    fields = (_FIELDS[name](value) for name, value in zip(kind._fields, packet[1:], strict=True))
    message: Message = kind(*fields)
    if isinstance(message, Follow) and len(message.cells) != len(message.changes):
        raise WireError("not as many cells as changes")
    return message


def size(part: Any) -> int:
    """Bytes that a part of a message takes."""
    return len(_json(part)) + 1


def fits(part: Any) -> bool:
    """Whether a packet has room for this part."""
    return has_room(size(part))


def has_room(taken: int) -> bool:
    """Whether a packet has room for so many bytes of rows."""
    return taken <= MAX_BYTES - _ENVELOPE


def split(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in lists that each fit into a packet, at least one list; endless texts are cut."""
    part: list[Row] = []
    room = MAX_BYTES - _ENVELOPE
    for row in rows:
        if not fits(row):
            row = [one[:_MAX_TEXT] if isinstance(one, str) else one for one in row]
            if not fits(row):
                row = [one[:1000] if isinstance(one, str) else one for one in row]
        if part and size(row) > room:
            yield part
            part, room = [], MAX_BYTES - _ENVELOPE
        part.append(row)
        room -= size(row)
    yield part


def _json(value: Any) -> bytes:
    # As it is: two lone surrogates that were escaped would come back as one character.
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="surrogatepass")

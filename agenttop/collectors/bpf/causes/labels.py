"""The labels of causes, read from user space: which line, device or function it was.

The kernel side has numbers for a label (words of 64 bits); here they become
the fields that words.DETAILS names.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agenttop.collectors.bpf import layout, syscall
from agenttop.collectors.bpf.causes.cpu_power import Power
from agenttop.collectors.bpf.causes.uring_opcodes import OPERATIONS, UNKNOWN
from agenttop.collectors.bpf.read.kernel_symbols import Symbols
from agenttop.collectors.bpf.read.mmap_array import mapped
from agenttop.linux.process import printable
from agenttop.model.sample import DetailCounters
from agenttop.model.vocabulary import CAUSE_NAMES, DETAILS, SOFTIRQS, VECTORS

_KEY: Final = layout.dtype(layout.DETAIL_KEY_FIELDS)
_VALUE: Final = layout.dtype(layout.DETAIL_FIELDS)
_LABELS: Final = layout.dtype(layout.LABEL_FIELDS)

_FAMILIES: Final = {int(socket.AF_INET): "inet", int(socket.AF_INET6): "inet6"}
#: include/uapi/linux/in.h
_PROTOCOLS: Final = {
    getattr(socket, f"IPPROTO_{name.upper()}"): name for name in ("tcp", "udp", "icmp", "sctp")
}
#: Operations of requests to disks, enum req_op of include/linux/blk_types.h.
BLOCK_OPERATIONS: Final = {
    0: "read",
    1: "write",
    2: "flush",
    3: "discard",
    5: "secure_erase",
    7: "zone_append",
    9: "write_zeroes",
}
#: In the word of a label that has the operation (block.bpf.c).
BACKGROUND: Final = 1 << 8

Words = tuple[int, ...]
Label = dict[str, str | int | None]


class Details:
    """Not more than one for the loaded programs; slots are the registry's."""

    def __init__(
        self,
        maps: Mapping[str, int],
        power: Power,
        unmeasured: Callable[[], Mapping[str, Sequence[str]]] = dict,
    ) -> None:
        """``unmeasured``: cause -> its sums that are not known here."""
        self._power = power
        self._unmeasured = unmeasured
        self._fd = maps["cause_details"]
        self._counts: NDArray[np.uint64] = mapped(maps["cause_labels"], _LABELS, layout.SLOTS)[
            "labels"
        ]
        self._names: dict[str, str] = {}
        self._symbols = Symbols()
        #: Made when there is the first label.
        self._buffers: tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]] | None = None
        #: Raw key -> what it is, and its steps and events when it was told last.
        self._known: dict[bytes, tuple[str, list[int], Label]] = {}
        self._told: dict[bytes, int] = {}

    def name_lines(self, names: Mapping[str, str]) -> None:
        """Interrupt line (as text) -> its name."""
        if names != self._names:
            self._names = dict(names)
            self._known.clear()

    def read(self, full: bool) -> dict[int, dict[str, list[DetailCounters]]]:
        """Slot -> cause -> labels: those with events since the last call, or all."""
        out: dict[int, dict[str, list[DetailCounters]]] = {}
        keys, values = self._items()
        told: dict[bytes, int] = {}
        unmeasured = self._unmeasured()
        for place, key in enumerate(keys):
            raw = key.tobytes()
            value = values[place]
            steps, events = int(value["steps"]), int(value["events"])
            told[raw] = steps + events
            if not full and self._told.get(raw) == steps + events:
                continue
            known = self._known.get(raw)
            if known is None:
                known = self._known[raw] = self._explain(key)
            cause, words, label = known
            named = zip(DETAILS[cause].sums, value["extra"].tolist(), strict=False)
            unknown = unmeasured.get(cause, ())
            causes = out.setdefault(int(key["owner"]) & 0xFFFFFFFF, {})
            causes.setdefault(cause, []).append(
                DetailCounters(
                    words,
                    label,
                    steps,
                    events,
                    int(value["ns"]),
                    int(value["max_ns"]),
                    {name: total for name, total in named if name not in unknown},
                )
            )
        if len(told) < len(self._told):
            self._known = {raw: known for raw, known in self._known.items() if raw in told}
        self._told = told
        return out

    def clear(self, slot: int) -> None:
        """Forget the labels of a slot that nobody uses."""
        if not self._counts[slot].any():
            return
        keys, _ = self._items()
        for key in keys[keys["owner"] & np.uint64(0xFFFFFFFF) == slot]:
            syscall.map_delete(self._fd, key.tobytes())
        self._counts[slot] = 0

    def _items(self) -> tuple[Any, Any]:
        """Keys and values, structured arrays."""
        count = 0
        if self._counts.any():
            if self._buffers is None:
                self._buffers = (
                    ctypes.create_string_buffer(_KEY.itemsize * layout.LABELS),
                    ctypes.create_string_buffer(_VALUE.itemsize * layout.LABELS),
                )
            count = syscall.map_items(self._fd, *self._buffers, layout.LABELS)
        if self._buffers is None or not count:
            return np.zeros(0, _KEY), np.zeros(0, _VALUE)
        keys, values = self._buffers
        return (
            np.frombuffer(memoryview(keys), _KEY, count),
            np.frombuffer(memoryview(values), _VALUE, count),
        )

    def _explain(self, key: Any) -> tuple[str, list[int], Label]:
        cause = CAUSE_NAMES[int(key["owner"]) >> 32]
        words: list[int] = key["label"].tolist()
        label = {} if tuple(words) == layout.OTHER_LABELS else _READERS[cause](self, words)
        return cause, words, label

    # ------------------------------------------------------------------ what the words mean

    def _interrupt(self, words: list[int]) -> Label:
        """words: kind and number, CPU."""
        kind, number = words[0] >> 32, words[0] & 0xFFFFFFFF
        line = layout.WAKERS[kind] == "line"
        vector = VECTORS[number] if not line and number < len(VECTORS) else None
        return {
            "line": number if line else None,
            "vector": vector,
            "name": self._names.get(str(number)) if line else None,
            "cpu": words[1],
        }

    def _softirq(self, words: list[int]) -> Label:
        """words: vector, CPU."""
        vector = SOFTIRQS[words[0]] if words[0] < len(SOFTIRQS) else str(words[0])
        return {"vector": vector, "cpu": words[1]}

    def _timer(self, words: list[int]) -> Label:
        """words: address of its function, whether it is one of the timer wheel."""
        return {"function": self._symbol(words[0]), "kind": "wheel" if words[1] else "hrtimer"}

    def _network(self, words: list[int]) -> Label:
        """words: name (two), NAPI id, loopback and queue + 1."""
        queue, loopback, napi = words[2] & 0xFFFF, words[2] >> 16 & 1, words[2] >> 32
        return {
            "device": _text(words[:2]),
            "kind": "loopback" if loopback else "device",
            "queue": queue - 1 if queue else None,
            "napi": napi or None,
        }

    def _socket(self, words: list[int]) -> Label:
        """words: peer's address (two), local one (two), family, protocol and the two ports."""
        family, protocol = words[4] >> 48, words[4] >> 32 & 0xFFFF
        local, peer = words[4] >> 16 & 0xFFFF, words[4] & 0xFFFF
        return {
            "family": _FAMILIES.get(family),
            "protocol": _PROTOCOLS.get(protocol, str(protocol)),
            "local_address": _address(family, words[2:4]),
            "local_port": local or None,
            "peer_address": _address(family, words[:2]),
            "peer_port": peer or None,
        }

    def _workqueue(self, words: list[int]) -> Label:
        """words: function of the work, name of the thread (two) where it is no worker."""
        return {
            "function": self._symbol(words[0]),
            "thread": _text(words[1:3]) or None,
        }

    def _symbol(self, address: int) -> str | None:
        """Name of a kernel function; None where the kernel does not tell."""
        return self._symbols.name(address)

    def _idle(self, words: list[int]) -> Label:
        """words: number of the state, and which set of states the CPU has."""
        state = self._power.state(words[1], words[0])
        return {
            "state": words[0],
            "name": state.name if state else None,
            "promised_ns": state.latency_us * 1000 if state else None,
        }

    def _placement(self, words: list[int]) -> Label:
        return {"from_cpu": words[0], "to_cpu": words[1]}

    @staticmethod
    def ran_meanwhile(words: list[int]) -> Label:
        """words: 16 bytes of a name that anybody may have chosen, and what it is of."""
        name = struct.pack("<QQ", words[0], words[1]).partition(b"\0")[0]
        kind = layout.RAN[words[2]] if words[2] < len(layout.RAN) else layout.RAN[0]
        comm = None if kind == "interrupts" else printable(name.decode("utf-8", "replace"))
        return {"comm": comm, "kind": kind}

    def _avoidable_wait(self, words: list[int]) -> Label:
        return {"cpu": words[0], "idle_cpu": words[1]}

    def _frequency(self, words: list[int]) -> Label:
        return {"from_khz": words[0], "to_khz": words[1] or None}

    def _block(self, words: list[int]) -> Label:
        """words: device, operation and whether it was background."""
        return {
            "device": _device(words[0]),
            "operation": BLOCK_OPERATIONS.get(words[1] & 0xFF, "other"),
            "role": _role(words[1]),
        }

    def _block_in_compute(self, words: list[int]) -> Label:
        """words: device, operation."""
        label = self._block(words)
        del label["role"]
        return label

    def _io_uring(self, words: list[int]) -> Label:
        """words: operation and whether it was background."""
        code = words[0] & 0xFF
        name = OPERATIONS[code] if code < len(OPERATIONS) else None
        return {
            "operation": name or ("unknown" if code == UNKNOWN else f"operation {code}"),
            "role": _role(words[0]),
        }


def _role(word: int) -> str:
    return "background" if word & BACKGROUND else "gate"


def _device(number: int) -> str | None:
    """A disk's name by its numbers, which stand in two halves; None where it has gone."""
    if not number:
        return None
    place = f"{number >> 32}:{number & 0xFFFFFFFF}"
    try:
        return os.path.basename(os.readlink(f"/sys/dev/block/{place}"))
    except OSError:
        return place


def _text(words: list[int]) -> str:
    """A C string; anybody may have named the thing."""
    raw = b"".join(word.to_bytes(8, "little") for word in words)
    return printable(raw.partition(b"\0")[0].decode(errors="replace"))


def _address(family: int, words: list[int]) -> str | None:
    """None: it has none, as an unconnected socket has no peer."""
    raw = b"".join(word.to_bytes(8, "little") for word in words)
    if not any(raw):
        return None
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(raw[:4]))
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)


#: Cause -> how its label is read.
_READERS: Final[dict[str, Callable[[Details, list[int]], Label]]] = {
    "interrupt": Details._interrupt,
    "softirq": Details._softirq,
    "timer": Details._timer,
    "network": Details._network,
    "socket": Details._socket,
    "workqueue": Details._workqueue,
    "idle": Details._idle,
    "placement": Details._placement,
    "ran_meanwhile": lambda _, words: Details.ran_meanwhile(words),
    "avoidable_wait": Details._avoidable_wait,
    "frequency": Details._frequency,
    "block": Details._block,
    "block_in_compute": Details._block_in_compute,
    "io_uring": Details._io_uring,
}

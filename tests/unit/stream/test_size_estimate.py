"""What a message takes in memory is known before it is decoded, and too much is refused."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.errors import UserError
from agenttop.model.sample import Sample
from agenttop.stream.recording import MAGIC, MAX_DECODED, MAX_SAMPLE, Header, Recording
from agenttop.stream.size_estimate import MalformedError, Scale, TooHeavyError
from tests.support.synth import Synth

SCALE = Scale(Sample)
pack = msgspec.msgpack.encode


def items(count: int) -> bytes:
    return b"\xdd" + struct.pack(">I", count)


def pairs(count: int) -> bytes:
    return b"\xdf" + struct.pack(">I", count)


def message(**more: bytes) -> bytes:
    """A Sample with these fields, packed already."""
    fields = {"type": pack("sample"), "t_ns": pack(1), "wall_s": pack(1.0), "seq": pack(1)}
    fields |= {"full": pack(True), **more}
    body = b"".join(pack(name) + value for name, value in fields.items())
    return bytes([0x80 | len(fields)]) + body


def cpu(**more: bytes) -> bytes:
    fields = {"cpu": pack(0), **more}
    return bytes([0x80 | len(fields)]) + b"".join(pack(k) + v for k, v in fields.items())


AGENT = pack({"id": 1, "name": "", "rule": "", "pid": 1})


def _causes(count: int) -> bytes:
    named = b"".join(pack(f"{n:x}") + b"\x80" for n in range(count))
    return pairs(count) + named


def _agent(field: str, value: bytes) -> bytes:
    return message(agents=items(1) + b"\x85" + AGENT[1:] + pack(field) + value)


#: Made where they are used: some take a tenth of a second.
BOMBS: dict[str, Callable[[], bytes]] = {
    "idle states": lambda: message(
        cpus=items(1) + cpu(idle=items(3_000_000) + b"\x80" * 3_000_000)
    ),
    "CPUs": lambda: message(cpus=items(500_000) + pack({"cpu": 0}) * 500_000),
    "agents": lambda: message(agents=items(300_000) + AGENT * 300_000),
    "causes": lambda: _agent("causes", _causes(200_000)),
    "labels": lambda: _agent(
        "causes",
        b"\x81" + pack("lock") + b"\x81" + pack("details") + items(400_000)
        + pack({"words": []}) * 400_000,
    ),
    "events": lambda: message(
        events=items(400_000) + pack({"t_ns": 1, "kind": "info", "text": ""}) * 400_000
    ),
    "numbers": lambda: _agent(
        "sources", items(2_000_000) + pack(1 << 40) * 1_000_000 + pack(0) * 1_000_000
    ),
    "names": lambda: message(
        irq_names=pairs(400_000) + b"".join(pack(str(n)) * 2 for n in range(400_000))
    ),
    "wide text": lambda: message(events=items(1) + pack(
        {"t_ns": 1, "kind": "info", "text": "\N{PILE OF POO}" + "a" * 10_000_000})),
}  # fmt: skip


def recorded(path: Path, *bodies: bytes) -> Path:
    header = pack(Header())
    frames = b"".join(struct.pack("<I", len(body)) + body for body in bodies)
    data = zlib.compress(frames, 9)
    path.write_bytes(MAGIC + struct.pack("<I", len(header)) + header + data)
    return path


def told(path: Path) -> tuple[str, int]:
    """What a reader of the file is told, and the memory that it took at most, bytes."""
    tracemalloc.start()
    try:
        with Recording(path) as opened:
            for _ in opened:
                pass
        words = ""
    except UserError as error:
        words = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return words, peak


#: Those that take longest to weigh, beside others of their kind.
SLOW = ("events", "numbers", "labels", "names")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.long] if kind in SLOW else []) for kind in BOMBS],
)
def test_a_small_file_takes_no_memory(tmp_path: Path, kind: str) -> None:
    body = BOMBS[kind]()
    assert len(body) < MAX_SAMPLE
    words, peak = told(recorded(tmp_path / "a.rec", body))
    assert "more than 32 MB of memory" in words
    assert peak < 64 << 20


@pytest.mark.parametrize(
    "body",
    [
        message(more=b"\x91" * 100_000),
        message(host=b"\x81" + pack("more") + b"\x81\xa0" * 100_000),
        message(cpus=items(1 << 31)),
        message(cpus=b"\x81\xa0" * 1000),
        b"\x91" * 1000,
        b"",
    ],
    ids=["deep", "deep in a struct", "a list that is not there", "a map for a list", "lists", "no"],
)
def test_what_cannot_be_decoded_is_one_line(tmp_path: Path, body: bytes) -> None:
    words, peak = told(recorded(tmp_path / "a.rec", body))
    assert "damaged" in words
    assert "\n" not in words
    assert peak < 64 << 20
    with pytest.raises(MalformedError):
        SCALE.weigh(body, MAX_DECODED)


def test_a_header_that_is_nested_deeply_is_one_line(tmp_path: Path) -> None:
    header = b"\x81" + pack("more") + b"\x91" * 60_000
    path = tmp_path / "a.rec"
    path.write_bytes(MAGIC + struct.pack("<I", len(header)) + header)
    with pytest.raises(UserError, match="its header cannot be read"):
        Recording(path)


@pytest.mark.parametrize("agents", [1, 20, 200])
def test_it_is_more_than_what_decoding_takes_but_not_much(agents: int) -> None:
    for sample in Synth(agents=agents).samples(3):
        body = pack(sample)
        tracemalloc.start()
        decoded = msgspec.msgpack.decode(body, type=Sample)
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert decoded == sample
        weight = SCALE.weigh(body, MAX_DECODED)
        assert taken <= weight <= 4 * taken
        assert weight <= SCALE.at_most(bytearray(body))


def test_the_limit_is_kept_to_the_byte() -> None:
    body = pack(Synth().sample())
    weight = SCALE.weigh(body, MAX_DECODED)
    assert SCALE.weigh(body, weight) == weight
    with pytest.raises(TooHeavyError):
        SCALE.weigh(body, weight // 2)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_weighed(body: bytes) -> None:
    try:
        SCALE.weigh(body, MAX_DECODED)
    except (MalformedError, TooHeavyError):
        return

"""Recordings with damage of all kinds through every reader: tracebacks, memory, time.

Each input is a recording whose Samples were changed in some places (values, types, lengths,
names, whole parts twice, bytes of the frame), read by one of the readers in turn. The same
seed makes the same inputs.
"""

from __future__ import annotations

import os
import random
import resource
import struct
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec

from agenttop import perfetto
from agenttop.commands.report import _render
from agenttop.commands.trace import gather
from agenttop.errors import UserError
from agenttop.recording import MAGIC, Header, Recording
from agenttop.replaying import measured, still
from agenttop.report.blocks import Blocks
from agenttop.store import Store
from agenttop.text import Layout
from agenttop.text import report as as_text
from bench.report import Report

#: How many inputs, and from which number on: 10^6 in a bench, fewer to try (AGENTTOP_FUZZ=N).
COUNT: Final = int(os.environ.get("AGENTTOP_FUZZ", "1000000"))
SEED: Final = 1
#: Inputs of one piece of work.
_BATCH: Final = 500
#: Resident memory that an input may add, MB.
MOST_MB: Final = 64.0

Tree = Any
_EXTREMES: Final = (
    0, 1, -1, 255, 1 << 31, (1 << 32) - 1, 1 << 53, (1 << 62) - 1, 1 << 62, 1 << 63, (1 << 64) - 1,
    -(1 << 63), 0.0, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), None, True, "", "0",
    "-1", "9" * 12, "9" * 5000, "\x00", "\x1b[2J", "\u202e", "\ud7ff" * 99, b"", b"\xff" * 16,
    b"\x00\x00", b"\xff" * 4096, [], {}, [[]], {"": {}}, [0] * 99,
)  # fmt: skip


def _snapshots(recording: Recording) -> None:
    store = Store(clock=still)
    for _ in measured(recording, store):
        pass
    shot = store.snapshot(hdr=True)
    assert shot is not None
    msgspec.json.encode(shot)
    as_text(shot, Layout())
    as_text(store.snapshot(since_ns=0) or shot, Layout())


def _report(form: str) -> Callable[[Recording], None]:
    def read(recording: Recording) -> None:
        blocks = Blocks(still)
        samples = measured(recording, blocks)
        next(samples)
        blocks.begin()
        for _ in samples:
            pass
        _render(blocks, "fuzz", form)

    return read


def _trace(recording: Recording) -> None:
    store = Store(clock=still)
    perfetto.trace(gather(measured(recording, store), store, None))


#: Reports draw thousands of samples for their intervals: they get a part of the inputs.
READERS: Final[dict[str, tuple[int, Callable[[Recording], None]]]] = {
    "snapshot": (70, _snapshots),
    "trace": (24, _trace),
    "report text": (2, _report("text")),
    "report json": (1, _report("json")),
    "report md": (1, _report("md")),
    "report html": (2, _report("html")),
}


@dataclass
class Found:
    """What a number of inputs came to."""

    inputs: int = 0
    refused: int = 0
    #: Last line of a traceback -> the first input that had it, and the whole of it.
    tracebacks: dict[str, tuple[int, str]] = field(default_factory=dict)
    slowest_s: float = 0.0
    slowest: int = -1
    peak_mb: float = 0.0

    def add(self, other: Found) -> None:
        """Take in what other inputs came to."""
        self.inputs += other.inputs
        self.refused += other.refused
        for line, first in other.tracebacks.items():
            self.tracebacks.setdefault(line, first)
        if other.slowest_s > self.slowest_s:
            self.slowest_s, self.slowest = other.slowest_s, other.slowest
        self.peak_mb = max(self.peak_mb, other.peak_mb)


def corpus() -> list[list[Tree]]:
    """Recordings of engines that were made up, as trees of values."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from synth import Synth

    made = [Synth(agents=agents).samples(4) for agents in (1, 2)]
    return [[msgspec.to_builtins(each, builtin_types=(bytes,)) for each in one] for one in made]


def recording(number: int, trees: list[list[Tree]]) -> bytes:
    """The input of this number."""
    rng = random.Random(SEED << 32 | number)
    frames = [msgspec.msgpack.encode(tree) for tree in rng.choice(trees)]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(frames))
        if rng.random() < 0.85:
            try:
                tree = msgspec.msgpack.decode(frames[at])
                _change(tree, rng)
                frames[at] = msgspec.msgpack.encode(tree)
            except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError, OverflowError):
                continue
        else:
            frames[at] = _damage(frames[at], rng)
    if rng.random() < 0.1:
        frames.insert(rng.randrange(len(frames)), rng.choice(frames))
    header = msgspec.msgpack.encode(Header())
    if rng.random() < 0.02:
        header = _damage(header, rng)
    squeeze = zlib.compressobj(1)
    body = b"".join(
        squeeze.compress(struct.pack("<I", len(frame)) + frame) for frame in frames
    ) + squeeze.flush(zlib.Z_SYNC_FLUSH if rng.random() < 0.1 else zlib.Z_FINISH)
    data = MAGIC + struct.pack("<I", len(header)) + header + body
    return _damage(data, rng) if rng.random() < 0.05 else data


def _change(tree: Tree, rng: random.Random) -> None:
    """Something in it becomes something else."""
    at = tree
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = rng.choice(keys)
        below = at[key]
        if isinstance(below, (dict, list)) and below and rng.random() < 0.9:
            at = below
            continue
        break
    kind = rng.random()
    if kind < 0.55:
        at[key] = rng.choice(_EXTREMES)
    elif kind < 0.7 and isinstance(below, int):
        at[key] = below + rng.choice((-1, 1)) * (1 << rng.randrange(64))
    elif kind < 0.8 and isinstance(below, bytes):
        at[key] = _damage(below, rng)
    elif kind < 0.88:
        del at[key]
    elif isinstance(at, list):
        at[:] = at + [below] * rng.choice((1, 2, 600))
    else:
        at[str(rng.choice(_EXTREMES))[:40]] = below


def _damage(data: bytes, rng: random.Random) -> bytes:
    """Bits, cuts, and parts of it elsewhere."""
    out = bytearray(data)
    kind, at = rng.random(), rng.randrange(len(out) + 1)
    if kind < 0.4 and at < len(out):
        out[at] ^= 1 << rng.randrange(8)
    elif kind < 0.6:
        out[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
    elif kind < 0.8:
        del out[at:]
    else:
        start = rng.randrange(len(out) + 1)
        out[at:at] = out[start : start + rng.randrange(64)]
    return bytes(out)


def numbers(numbers_: range) -> Found:
    """Read these inputs, each with one reader."""
    trees = corpus()
    names = [name for name, (share, _) in READERS.items() for _ in range(share)]
    found = Found()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.rec"
        base = _peak_mb()
        for number in numbers_:
            path.write_bytes(recording(number, trees))
            _, read = READERS[names[number * 37 % len(names)]]
            begun = time.perf_counter()
            try:
                with Recording(path) as opened:
                    read(opened)
            except UserError:
                found.refused += 1
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                line = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
                found.tracebacks.setdefault(line, (number, traceback.format_exc()))
            took = time.perf_counter() - begun
            found.inputs += 1
            if took > found.slowest_s:
                found.slowest_s, found.slowest = took, number
        found.peak_mb = _peak_mb() - base
    return found


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _pieces(count: int) -> Iterator[range]:
    for start in range(0, count, _BATCH):
        yield range(start, min(start + _BATCH, count))


def run(report: Report, rounds: int) -> None:
    """On all CPUs; ``rounds`` has no meaning here."""
    found, begun = Found(), time.monotonic()
    with ProcessPoolExecutor(max_tasks_per_child=40) as pool:
        for done in pool.map(numbers, _pieces(COUNT)):
            found.add(done)
            if found.inputs % 20_000 < _BATCH:
                print(f"  {found.inputs} inputs, {len(found.tracebacks)} tracebacks", flush=True)
    took = time.monotonic() - begun
    for line, (number, text) in found.tracebacks.items():
        print(f"  {line}: input {number}\n{text}", flush=True)
    report.add("inputs", "", [found.inputs])
    report.add("of them refused with a line", "", [found.refused])
    report.add("different tracebacks", "", [len(found.tracebacks)], 0.0)
    report.add("memory that they added at most", "MB", [found.peak_mb], MOST_MB)
    report.add("slowest input", "s", [found.slowest_s], 10.0, note=f"input {found.slowest}")
    report.add("inputs a second", "1/s", [found.inputs / took])

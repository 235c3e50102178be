"""What others can send, with damage of all kinds, through whatever reads it.

An input is a Sample with changes (most of them such that it can be decoded), fed to one of the
readers of recordings among others of its kind, or a file, a stream, a pattern, a name or a
number. The same seed makes the same inputs. What ends in a traceback is kept as a file.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from agenttop.errors import UserError
from agenttop.stream.admission import ImplausibleError
from agenttop.stream.framing import StreamError
from agenttop.stream.recording import MAGIC, Header
from bench import fuzz_frames
from bench.fuzz_readers import READERS, Door
from bench.fuzz_texts import SOURCES
from bench.processes import peak_mb, rss_mb
from bench.report import Report

#: How many inputs: 10^6 in a bench, fewer to try (AGENTTOP_FUZZ=N).
COUNT: Final = int(os.environ.get("AGENTTOP_FUZZ", "1000000"))
SEED: Final = int(os.environ.get("AGENTTOP_FUZZ_SEED", "1"))
#: Inputs of one lot: Samples of one stream, or so many of the others.
LOT: Final = 250
#: Who gets each of 20 lots, so that of 10^6 inputs everyone has 50,000 at least.
TURNS: Final = (
    *READERS, *SOURCES, "text", "json", "trace", "stream", "yaml", "yaml", "pattern", "names",
    "numbers",
)  # fmt: skip
#: Resident memory that a lot may add, MB; nothing takes longer than so many seconds.
MOST_MB: Final = 64.0
MOST_S: Final = 60
_REFUSED: Final = (UserError, StreamError, ImplausibleError)


@dataclass
class Found:
    """What a number of inputs came to."""

    inputs: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    #: Last line of a traceback -> the first lot that had it, and the whole of it.
    tracebacks: dict[str, tuple[int, str]] = field(default_factory=dict)
    slowest_s: float = 0.0
    slowest: str = ""
    peak_mb: float = 0.0

    def add(self, other: Found) -> None:
        """Take in what other inputs came to."""
        self.inputs.update(other.inputs)
        self.refused.update(other.refused)
        for line, first in other.tracebacks.items():
            self.tracebacks.setdefault(line, first)
        if other.slowest_s > self.slowest_s:
            self.slowest_s, self.slowest = other.slowest_s, other.slowest
        self.peak_mb = max(self.peak_mb, other.peak_mb)


class _SlowError(Exception):
    """It took too long: where it was then is told as a traceback."""


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise _SlowError(f"more than {MOST_S} s")


class Lots:
    """Runs lots in this process."""

    def __init__(self, keep: Path) -> None:
        """``keep``: where inputs that end in a traceback are left."""
        self.found = Found()
        self._keep = keep
        self._bases = fuzz_frames.bases()

    def run(self, numbers: Iterable[int], count: int = LOT) -> Found:
        """These lots, each of so many inputs."""
        before = signal.signal(signal.SIGALRM, _too_slow)
        try:
            with tempfile.TemporaryDirectory() as folder:
                for number in numbers:
                    self._lot(number, count, Path(folder))
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        return self.found

    def _lot(self, number: int, count: int, folder: Path) -> None:
        rng = random.Random(SEED << 32 | number)
        kind = TURNS[number % len(TURNS)]
        if kind in READERS:
            self._samples(kind, number, fuzz_frames.stream(rng, self._bases, count))
            return
        for _ in range(count):
            data, read = SOURCES[kind](rng, folder)
            self.found.inputs[kind] += 1
            self._try(kind, number, [data], read)

    def _samples(self, kind: str, number: int, frames: list[bytes]) -> None:
        door, reader = Door(), READERS[kind]()
        for at, frame in enumerate(frames):
            self.found.inputs[kind] += at > 0  # the first one is as it should be

            def take(frame: bytes = frame) -> None:
                reader.take(door.sample(frame))

            if not self._try(kind, number, frames[: at + 1], take):
                return
        self._try(kind, number, frames, reader.end)

    def _try(self, kind: str, number: int, data: list[bytes], work: object) -> bool:
        """Do it; False where it ended in a traceback."""
        assert callable(work)
        begun = time.perf_counter()
        signal.alarm(MOST_S)
        try:
            work()
        except _REFUSED:
            self.found.refused[kind] += 1
        except Exception as error:
            self._broken(kind, number, data, error)
            return False
        took = time.perf_counter() - begun
        if took > self.found.slowest_s:
            self.found.slowest_s, self.found.slowest = took, f"{kind}, lot {number}"
        return True

    def _broken(self, kind: str, number: int, data: list[bytes], error: Exception) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        line = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
        if line in self.found.tracebacks:
            return
        path = self._keep / f"agenttop-fuzz-{kind.replace(' ', '-')}-{number}"
        path.write_bytes(recorded(data) if kind in READERS else data[0])
        text = f"{path}\n" + "".join(traceback.format_exception(error))
        self.found.tracebacks[line] = number, text


def recorded(frames: list[bytes]) -> bytes:
    """A recording of these frames."""
    header = msgspec.msgpack.encode(Header())
    body = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
    return MAGIC + struct.pack("<I", len(header)) + header + zlib.compress(body)


_lots: list[Lots] = []


def _work(numbers: range) -> Found:
    """In a worker: the first time every reader runs once, so that all is loaded that is needed."""
    if not _lots:
        _lots.append(Lots(Path(tempfile.gettempdir())))
        _lots[0].run(range(len(TURNS)), 8)
    _lots[0].found = Found()
    # "5" makes VmHWM what is resident now (proc_pid_clear_refs(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before = rss_mb(os.getpid())
    found = _lots[0].run(numbers)
    found.peak_mb = peak_mb(os.getpid()) - before
    return found


def run(report: Report, rounds: int) -> None:
    """On all CPUs; ``rounds`` has no meaning here."""
    lots, begun = -(-COUNT // LOT), time.monotonic()
    found, told = Found(), 0
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done in pool.map(_work, (range(at, at + 1) for at in range(lots))):
            found.add(done)
            if found.inputs.total() >= told + 50_000:
                told = found.inputs.total()
                print(f"  {told} inputs, {len(found.tracebacks)} tracebacks", flush=True)
    took = time.monotonic() - begun
    for line, (number, text) in found.tracebacks.items():
        print(f"  {line}: lot {number}, kept as {text}", flush=True)
    report.add("inputs", "", [found.inputs.total()])
    for kind, count in found.inputs.items():
        refused = found.refused[kind] / count
        report.add(f"of them: {kind}", "", [count], note=f"{refused:.0%} refused with a line")
    report.add("different tracebacks", "", [len(found.tracebacks)], 0.0)
    report.add("memory that a lot added at most", "MB", [found.peak_mb], MOST_MB)
    report.add("slowest input", "s", [found.slowest_s], 10.0, note=found.slowest)
    report.add("inputs a second", "1/s", [found.inputs.total() / took])

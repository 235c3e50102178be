"""Recordings: the engine's Samples in a file, written as they come and read back as they were.

    16 bytes     MAGIC
    u32 + body   a Header as MessagePack (little-endian length first)
    the rest     one zlib stream of framing.py's frames, flushed after each Sample

A recording whose writer was killed lacks its end: all whole Samples are there.
Files are hostile input: everything read is bounded (frames, what they take in
memory before they are decoded, the number and the values of counters, Samples
per second) before a Store sees it.
"""

from __future__ import annotations

import functools
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

import msgspec

from agenttop import __version__
from agenttop.config import output_file
from agenttop.errors import UserError
from agenttop.model.sample import STREAM_VERSION, Sample
from agenttop.stream.admission import Checker, ImplausibleError
from agenttop.stream.framing import Decoder, StreamError, encode
from agenttop.stream.size_estimate import MalformedError, Scale, TooHeavyError
from agenttop.text.figures import clean

#: As PNG's: what treats the file as text, or takes off the eighth bit, breaks it visibly.
MAGIC: Final = b"\x93agenttop rec\r\n\n"
SCHEMA_NAME: Final = "agenttop.recording"
SCHEMA_VERSION: Final = 1
#: A header is smaller than this.
MAX_HEADER: Final = 1 << 16
#: A Sample in a file is smaller than this (256 agents with every bucket in use: 8 MB).
MAX_SAMPLE: Final = 12 << 20
#: And decoded it takes less than this, as size_estimate.py reckons: twice what it is (the largest
#: of an engine, 256 agents with causes on 512 CPUs: 12 MB).
MAX_DECODED: Final = 32 << 20
#: Read, and inflated, at a time.
_PIECE: Final = 1 << 16
_INFLATED: Final = 1 << 18
_LENGTH: Final = struct.Struct("<I")


@functools.cache
def _scale() -> Scale:
    return Scale(Sample)


class Header(msgspec.Struct, omit_defaults=False):
    """What a recording says of itself."""

    schema: str = SCHEMA_NAME
    version: int = SCHEMA_VERSION
    stream_version: int = STREAM_VERSION
    #: The agenttop that wrote it.
    program: str = __version__
    #: Seconds since the epoch when it was begun.
    wall_s: float = 0.0
    #: Seconds between Samples, as asked for.
    delay_s: float = 1.0


class Writer:
    """Writes a recording; every Sample is in the file (as far as the kernel goes) when it returns.

    Close it to give the recording its end; without one it is read as cut. Where a Sample was
    not written wholly (a full disk, a signal), what would follow is damage: then there is none.
    """

    def __init__(self, file: BinaryIO, delay_s: float = 1.0) -> None:
        """``file`` is unbuffered and stays the caller's to close. Raises OSError."""
        self._file = file
        self._squeeze = zlib.compressobj(6)
        self._within = False
        self.samples = 0
        self.written = 0
        header = msgspec.msgpack.encode(Header(wall_s=time.time(), delay_s=delay_s))
        self._put(MAGIC + _LENGTH.pack(len(header)) + header)

    def add(self, sample: Sample) -> None:
        """The next Sample. Raises OSError."""
        self._within = True
        data = self._squeeze.compress(encode(sample))
        self._put(data + self._squeeze.flush(zlib.Z_SYNC_FLUSH))
        self._within = False
        self.samples += 1

    def close(self) -> None:
        """The end. Raises OSError."""
        if not self._within:
            self._put(self._squeeze.flush(zlib.Z_FINISH))

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self.written += len(data)


def create(path: Path | None) -> tuple[BinaryIO, str]:
    """A new file for a Writer, and its name; what is there is never overwritten.

    None: ``agenttop-20260102-030405.rec`` in the current directory. Raises UserError.
    """
    stem = time.strftime("agenttop-%Y%m%d-%H%M%S", time.localtime())
    name = clean(str(path or f"{stem}.rec"))
    try:
        if path is None:
            file, made = output_file.new_named(Path(), stem, ".rec")
            return file, made
        return output_file.stream(path) or output_file.new(path), name
    except FileExistsError:
        raise UserError(f"-o {name}: exists already; give another name, or remove it") from None
    except OSError as error:
        raise UserError(f"-o {name}: {error.strerror}") from None


class Recording:
    """An open recording: use it as a context and iterate over its Samples once."""

    def __init__(self, path: Path | str) -> None:
        """Raises UserError for what is no recording, or one of another version."""
        self.path = Path(path)
        #: How messages call it.
        self.name = clean(str(path), 200)
        #: After the last Sample: the recording has no end, its writer was killed.
        self.cut = False
        #: Samples given so far, and what the last one takes in memory at most, bytes.
        self.samples = 0
        self.weight = 0
        self._scale = _scale()
        try:
            self._file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise UserError(f"{self.name}: {error.strerror}") from None
        except ValueError:  # a NUL in it
            raise UserError(f"{self.name}: no such name can be") from None
        try:
            self.header = self._header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Sample]:
        """The Samples in order. Raises UserError where the file is damaged."""
        inflate = zlib.decompressobj()
        decoder = Decoder(MAX_SAMPLE, self._weigh)
        check = Checker()
        try:
            for piece in self._inflated(inflate):
                for message in decoder.feed(piece):
                    if not isinstance(message, Sample):
                        raise ImplausibleError("a message that is no sample")
                    check.sample(message)
                    self.samples += 1
                    yield message
        except (zlib.error, StreamError, ImplausibleError) as error:
            raise UserError(f"{self.name}: damaged after {self.samples} samples: {error}") from None
        except OSError as error:
            raise UserError(f"{self.name}: {error.strerror}") from None
        self.cut = not inflate.eof
        if not self.cut and decoder.pending:
            raise UserError(f"{self.name}: damaged: its end lies within a sample")
        if not self.samples:
            raise UserError(f"{self.name}: an empty recording: no sample in it")

    def _weigh(self, frame: bytes) -> None:
        """Refuse what would fill the memory before it does. Raises StreamError."""
        self.weight = self._scale.at_most(frame)
        if self.weight <= MAX_DECODED:
            return
        try:
            self.weight = self._scale.weigh(frame, MAX_DECODED)
        except (MalformedError, TooHeavyError) as error:
            raise StreamError(f"not a sample: {error}") from None

    def _inflated(self, inflate: zlib._Decompress) -> Iterator[bytes]:
        """Pieces of bounded size, whatever the file claims."""
        while not inflate.eof:
            data = inflate.unconsumed_tail or self._file.read(_PIECE)
            if not data:
                return
            yield inflate.decompress(data, _INFLATED)
        if inflate.unused_data or self._file.read(1):
            raise ImplausibleError("something follows its end")

    def _header(self) -> Header:
        try:
            start = self._exactly(len(MAGIC) + _LENGTH.size)
            if start[: len(MAGIC)] != MAGIC[: len(start)] or not start:
                raise UserError(f"{self.name}: not a recording of agenttop")
            if len(start) < len(MAGIC) + _LENGTH.size:
                raise UserError(f"{self.name}: a recording cut within its header")
            (length,) = _LENGTH.unpack_from(start, len(MAGIC))
            if length > MAX_HEADER:
                raise UserError(f"{self.name}: damaged: a header of {length} bytes")
            body = self._exactly(length)
        except OSError as error:
            raise UserError(f"{self.name}: {error.strerror}") from None
        if len(body) < length:
            raise UserError(f"{self.name}: a recording cut within its header")
        try:
            header = msgspec.msgpack.decode(body, type=Header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UserError(f"{self.name}: damaged: its header cannot be read") from None
        if header.schema != SCHEMA_NAME:
            raise UserError(f"{self.name}: not a recording of agenttop")
        for what, found, known in (
            ("version", header.version, SCHEMA_VERSION),
            ("stream version", header.stream_version, STREAM_VERSION),
        ):
            if found != known:
                raise UserError(
                    f"{self.name}: recorded with {what} {found}"
                    f" (agenttop {clean(header.program, 20)}), this one reads {what} {known}"
                )
        return header

    def _exactly(self, length: int) -> bytes:
        """So many bytes, or fewer at the file's end."""
        data = b""
        while len(data) < length:
            piece = self._file.read(length - len(data))
            if not piece:
                break
            data += piece
        return data

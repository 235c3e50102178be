"""Recordings: what goes in comes out, and nothing that is in a file can do harm."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenttop import cli
from agenttop.collectors.bpf import layout
from agenttop.errors import UserError
from agenttop.model.row_layout import CAUSE_ANNEXES as ANNEXES
from agenttop.model.sample import (
    Activity,
    AgentCounters,
    CauseCounters,
    Command,
    CpuCounters,
    DetailCounters,
    Histogram,
    NamedCounters,
    PolicyStatus,
    Sample,
)
from agenttop.render.snapshot_text import Layout, report
from agenttop.store.replayed import measured, still
from agenttop.store.store import Store
from agenttop.stream import admission, recording
from agenttop.stream.admission import (
    IN_ADVANCE,
    MOST_AGENTS,
    MOST_CPUS,
    MOST_IN_ALL,
    MOST_SLOTS,
    Checker,
    ImplausibleError,
)
from agenttop.stream.framing import encode
from agenttop.stream.recording import MAGIC, Header, Recording, Writer
from tests.support.synth import Synth


def written(samples: list[Sample], *, end: bool = True) -> bytes:
    file = io.BytesIO()
    writer = Writer(file)
    for sample in samples:
        writer.add(sample)
    if end:
        writer.close()
    return file.getvalue()


def framed(header: bytes, body: bytes) -> bytes:
    return MAGIC + struct.pack("<I", len(header)) + header + zlib.compress(body)


HEADER = msgspec.msgpack.encode(Header())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.rec"


def read(path: Path, data: bytes) -> list[Sample]:
    path.write_bytes(data)
    with Recording(path) as opened:
        return list(opened)


def test_what_goes_in_comes_out(path: Path) -> None:
    samples = Synth().samples(5)
    path.write_bytes(written(samples))
    with Recording(path) as opened:
        assert list(opened) == samples
        assert (opened.cut, opened.samples) == (False, 5)
        assert opened.header.schema == "agenttop.recording"


def test_it_is_compact(path: Path) -> None:
    samples = Synth(agents=20).samples(20)
    assert len(written(samples)) < 0.4 * sum(len(encode(sample)) for sample in samples)


def test_every_cut_gives_the_whole_samples_before_it(path: Path) -> None:
    samples = Synth(agents=2).samples(4)
    whole = written(samples)
    ends = [len(written(samples[:n], end=False)) for n in range(5)]
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        expected = sum(length >= end for end in ends[1:])
        found: list[Sample] = []
        try:
            with Recording(path) as opened:
                found += opened
        except UserError:
            assert expected == 0
            assert not found
        else:
            # zlib gives the last bytes before the flush's marker behind them has come.
            assert opened.cut
            assert len(found) in (expected, expected + 1)
            assert found == samples[: len(found)]


class Breaking(io.BytesIO):
    """Takes half of what the write of this number is to write, then fails."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def write(self, data: Any) -> int:
        self.left -= 1
        if self.left == 0:
            super().write(data[: len(data) // 2])
            raise KeyboardInterrupt
        return super().write(data)


def test_a_sample_that_was_broken_off_leaves_those_before_it(path: Path) -> None:
    samples = Synth().samples(6)
    file = Breaking(1 + 4)  # the header, and the fourth Sample
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(Writer(file)) as writer:
        for each in samples:
            writer.add(each)
    path.write_bytes(file.getvalue())
    with Recording(path) as opened:
        assert list(opened) == samples[:3]
        assert opened.cut


def sample(**changes: Any) -> Sample:
    """The first Sample of a made-up engine, changed."""
    return msgspec.structs.replace(Synth(agents=1).sample(), **changes)


def with_cpu(cpu: CpuCounters) -> Sample:
    return sample(cpus=[cpu])


def with_agent(**changes: Any) -> Sample:
    return sample(agents=[AgentCounters(id=1, name="a", rule="r", pid=1, **changes)])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a recording"),
        (b"#!/bin/sh\n", "not a recording"),
        (MAGIC[:7], "cut within its header"),
        (MAGIC, "cut within its header"),
        (MAGIC + b"\xff\xff\xff\xff", "a header of 4294967295 bytes"),
        (MAGIC + struct.pack("<I", 5) + b"\xc1abcd", "header cannot be read"),
        (framed(msgspec.msgpack.encode({"schema": "other"}), b""), "not a recording"),
        (framed(msgspec.msgpack.encode(Header(version=2, program="9.9\x1b[31m")), b""),
         "version 2 (agenttop 9.9"),
        (framed(msgspec.msgpack.encode(Header(stream_version=7)), b""), "stream version 7"),
        (framed(HEADER, b""), "no sample in it"),
        (framed(HEADER, b"\x00\x00\x00\x00"), "damaged after 0 samples"),
        (framed(HEADER, b"\xff\xff\xff\x7f"), "not an agenttop stream"),
        (framed(HEADER, struct.pack("<I", 1 << 25)), "not an agenttop stream"),
        (framed(HEADER, bytes(1 << 24)), "damaged after 0 samples"),
        (framed(HEADER, encode(Command("stop"))), "a message that is no sample"),
        (framed(HEADER, encode(sample())[:-1]), "its end lies within a sample"),
        (framed(HEADER, encode(sample())) + b"more", "something follows its end"),
        (framed(HEADER, encode(sample()))[:-4] + b"abcd", "incorrect data check"),
        (framed(HEADER, encode(sample(host=None))), "does not tell of the host"),
        (framed(HEADER, encode(sample(wall_s=float("nan")))), "a number that cannot be"),
        (framed(HEADER, encode(sample(wall_s=-1.0))), "a time that cannot be"),
        (framed(HEADER, encode(sample(t_ns=1 << 63))), "more than 62 bits"),
        (framed(HEADER, encode(with_agent(steps=-1))), "steps: a number below 0"),
        (framed(HEADER, encode(with_agent(named=[NamedCounters(0, "a", step_sum_ns=1 << 63)]))),
         "step_sum_ns: a number of more than 62 bits"),
        (framed(HEADER, encode(with_cpu(CpuCounters(cpu=1 << 40)))), "a CPU with the number"),
        (framed(HEADER, encode(with_cpu(CpuCounters(cpu=-1)))), "cpu: a number below 0"),
        (framed(HEADER, encode(sample(idle_exit={"9" * 5000: {}}))), "more than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)  # fmt: skip
def test_what_is_no_recording_is_one_line(
    path: Path, capfd: pytest.CaptureFixture[str], data: bytes, words: str
) -> None:
    path.write_bytes(data)
    assert cli.main(["snapshot", "--from", str(path)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"agenttop: {path}: ")
    assert captured.err.count("\n") == 1
    assert captured.err[:-1].isprintable()
    assert words in captured.err


def test_more_than_a_machine_has_is_refused() -> None:
    agents = [AgentCounters(id=i, name="a", rule="r", pid=i) for i in range(MOST_AGENTS + 1)]
    cpus = [CpuCounters(cpu=i) for i in range(MOST_CPUS)]
    Checker().sample(sample(agents=agents[1:], cpus=cpus))
    for changed in (
        sample(agents=agents),
        sample(agents=[agents[0], agents[0]]),
        sample(cpus=[cpus[0], cpus[0]]),
        sample(policies=[PolicyStatus(f"p{i}", "p", "", "off") for i in range(65)]),
        sample(irq_names={f"a{i}": "" for i in range(1 << 17)}),
        with_cpu(CpuCounters(cpu=0, irqs={"1" * 13: Activity()})),
    ):
        with pytest.raises(ImplausibleError):
            Checker().sample(changed)


def crowd(first: int, names: int = 0, causes: bool = False, lane: int = 0) -> list[AgentCounters]:
    """As many agents as one Sample may have."""
    return [
        AgentCounters(
            id=first + place,
            name="a",
            rule="r",
            pid=1,
            named=[NamedCounters(lane + number, "n") for number in range(names)],
            causes={"lock": CauseCounters(steps=1)} if causes else {},
        )
        for place in range(MOST_AGENTS)
    ]


def following(agents: Iterable[list[AgentCounters]]) -> Iterator[Sample]:
    first = sample()
    for second, each in enumerate(agents):
        yield msgspec.structs.replace(
            first,
            t_ns=first.t_ns + second * 10**9,
            seq=second,
            host=None if second else first.host,
            agents=each,
        )


def checked(samples: Iterable[Sample]) -> None:
    check = Checker()
    for each in samples:
        check.sample(each)


def test_names_and_causes_are_bounded_by_the_memory_that_they_take() -> None:
    checked(following([crowd(1, causes=True)] * 3))
    # What the engine has at most: agents with causes, and all names, as wide apart as they can be.
    seats, names = layout.SLOTS - 1, layout.LANES - 1
    assert names // seats == 2
    checked(following([crowd(1, 2, causes=True)[:seats]] * 3))
    alone = crowd(1, 1, causes=True)[:seats]
    more = (names - seats) // (layout.NAMES_EACH - 1)
    alone[:more] = crowd(1, layout.NAMES_EACH, causes=True)[:more]
    checked(following([alone] * 3))
    assert seats * (1 + ANNEXES) + names <= MOST_SLOTS
    for agents in (
        [crowd(1, 32, causes=True)],
        [crowd(1, 1, causes=True)],
        # A few of each at a time.
        [crowd(1, 5, lane=5 * second) for second in range(5)],
        [crowd(1, 10), crowd(1, causes=True)],
    ):
        with pytest.raises(ImplausibleError, match="histograms"):
            checked(following(agents))


def test_agents_one_after_the_other_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_IN_ALL == 100_000
    most = 10 * MOST_AGENTS
    monkeypatch.setattr(admission, "MOST_IN_ALL", most)
    checked(following([crowd(1)] * 15))
    checked(following(crowd(1 + second * MOST_AGENTS) for second in range(10)))
    with pytest.raises(ImplausibleError, match=f"more than {most} agents"):
        checked(following(crowd(1 + second * MOST_AGENTS) for second in range(11)))


def test_labels_hold_any_word() -> None:
    detail = DetailCounters(words=[(1 << 64) - 1], label={"queue": -1})
    Checker().sample(with_agent(causes={"network": CauseCounters(details=[detail])}))


def test_counters_that_go_from_end_to_end_are_told_or_harmless(path: Path) -> None:
    """What is largest, and smallest, in turn: differences that 64 bits would not hold."""
    for small, large in ((-(1 << 63), (1 << 63) - 1), (0, 1 << 62)):
        path.write_bytes(written([
            with_agent(
                steps=number,
                step_sum_ns=number,
                named=[NamedCounters(0, "a", number, number, number)],
                causes={"lock": CauseCounters(steps=number, sum_ns=number)},
            )
            for number in (small, large, large)
        ]))  # fmt: skip
        told = shown(path)
        assert (told is None) == (small == 0)


def test_packed_counts_are_numbers_too() -> None:
    for counts, good in (([1 << 42, 5], True), ([1 << 62, 1 << 62], False), ([1 << 63], False)):
        packed = Histogram(
            np.arange(len(counts), dtype="<u2").tobytes(), np.array(counts, dtype="<u8").tobytes()
        )
        changed = with_agent(histograms={"slowpath": packed})
        if good:
            Checker().sample(changed)
            continue
        with pytest.raises(ImplausibleError, match="counted"):
            Checker().sample(changed)


def test_samples_come_no_faster_than_an_engine_makes_them() -> None:
    check, first = Checker(), sample()

    def at(n: int, step_ns: int) -> Sample:
        return msgspec.structs.replace(first, t_ns=first.t_ns + n * step_ns, seq=n)

    for n in range(IN_ADVANCE + 1):
        check.sample(at(n, 1))
    with pytest.raises(ImplausibleError, match="more samples a second"):
        check.sample(at(IN_ADVANCE + 1, 1))
    check = Checker()
    for n in range(2 * IN_ADVANCE):
        check.sample(at(n, 10**8))


def test_a_bomb_takes_no_memory(path: Path) -> None:
    """A gigabyte of zeros behind a frame's length is refused when the frame is, not kept."""
    squeeze = zlib.compressobj()
    body = squeeze.compress(struct.pack("<I", recording.MAX_SAMPLE))
    for _ in range(64):
        body += squeeze.compress(bytes(1 << 20))
    body += squeeze.flush()
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(UserError, match="damaged"):
        read(path, MAGIC + struct.pack("<I", len(HEADER)) + HEADER + body)
    assert tracemalloc.get_traced_memory()[1] < 4 * recording.MAX_SAMPLE
    tracemalloc.stop()


def shown(path: Path) -> str | None:
    """Read it and show every Snapshot; what the user is told if that cannot be."""
    store = Store(clock=still)
    try:
        with Recording(path) as opened:
            for _ in measured(opened, store):
                shot = store.snapshot()
                assert shot is not None
                msgspec.json.encode(shot)
                report(shot, Layout())
    except UserError as error:
        return str(error)
    return None


GOOD = written(Synth(agents=2).samples(3))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8))
def test_damage_anywhere_is_told_or_harmless(tmp_path_factory: Any, at: int, more: bytes) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.rec"
    path.write_bytes(GOOD[:at] + more + GOOD[at + len(more) :])
    told = shown(path)
    assert told is None or (told.startswith(str(path)) and len(told) < 500)


def _numbers() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.floats(),
        st.text(max_size=8),
        st.none(),
        st.lists(st.integers(-5, 1 << 40), max_size=9),
        st.dictionaries(st.text(max_size=3), st.integers(-5, 5), max_size=3),
    )


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    out = [path] if path else []
    for key, item in items:
        out += _places(item, (*path, key))
    return out


TREES = [msgspec.to_builtins(each, builtin_types=(bytes,)) for each in Synth().samples(3)]
PLACES = _places(TREES[1])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), _numbers()), min_size=1, max_size=6))
def test_values_that_cannot_be_are_told_or_harmless(
    tmp_path_factory: Any, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    """Anything anywhere in a Sample: a line, or a Snapshot that can be shown."""
    trees = msgspec.json.decode(msgspec.json.encode(TREES))
    trees = [msgspec.convert(tree, Sample) for tree in trees]
    middle = msgspec.to_builtins(trees[1], builtin_types=(bytes,))
    for place, value in changes:
        at = middle
        try:
            for key in place[:-1]:
                at = at[key]
            at[place[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue
    squeezed = [encode(trees[0]), _frame(middle), encode(trees[2])]
    path = tmp_path_factory.mktemp("odd") / "a.rec"
    path.write_bytes(framed(HEADER, b"".join(squeezed)))
    told = shown(path)
    assert told is None or told.startswith(str(path))


def _frame(tree: Any) -> bytes:
    body = msgspec.msgpack.encode(tree)
    return struct.pack("<I", len(body)) + body

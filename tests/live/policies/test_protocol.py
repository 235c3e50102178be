"""What engine and guardian say to each other: bounded, typed, and no packet ends either of them."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.linux.readiness import readable
from agenttop.policies.guardian import protocol
from agenttop.policies.guardian.journal import load
from agenttop.policies.guardian.lease import Lease, LeaseLostError
from agenttop.policies.guardian.outcome import Outcome
from agenttop.policies.knobs.base import Change, format_cpus
from tests.support.knob_files import Trees, use
from tests.support.policy_rig import needs_root

BUDGET = "net.core.netdev_budget"
USECS = "net.core.netdev_budget_usecs"

number = st.integers(0, (1 << 63) - 1)
#: Any text, also undecodable bytes of a path (surrogates).
text = st.text(st.characters(exclude_categories=()), max_size=40)
changes = st.lists(st.builds(Change, text, text, text, text, text), max_size=4)
row = st.lists(st.one_of(text, st.booleans()), max_size=6)
rows = st.lists(row, max_size=4)
follow = changes.flatmap(
    lambda some: st.builds(
        protocol.Follow,
        number,
        st.just(some),
        st.lists(st.lists(number, max_size=3), min_size=len(some), max_size=len(some)),
    )
)
messages = st.one_of(
    st.builds(protocol.Beat),
    st.builds(protocol.Apply, number, changes),
    follow,
    st.builds(protocol.Undo, number, st.lists(st.tuples(text, text), max_size=4)),
    st.builds(protocol.Heirs, number, st.lists(st.lists(number, max_size=4), max_size=4)),
    st.builds(protocol.Watched, number, number),
    st.builds(protocol.Record, number),
    st.builds(protocol.Close, number),
    st.builds(protocol.Keep, number),
    st.builds(protocol.Ready),
    st.builds(protocol.Alive, st.dictionaries(st.text(max_size=5), number, max_size=3)),
    st.builds(protocol.Busy),
    st.builds(protocol.Done, number, rows),
    st.builds(protocol.Refused, number, text),
    st.builds(protocol.Reverted, text, text, rows),
    st.builds(protocol.Lost, text, rows),
    st.builds(protocol.More, rows),
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.sampled_from([kind.__name__ for kind in protocol._KINDS.values()])


@given(messages)
def test_what_is_encoded_is_decoded(message: protocol.Message) -> None:
    assert protocol.decode(protocol.encode(message)) == message


@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(lambda name, rest: json.dumps([name, *rest]).encode(), names, st.lists(anything)),
        st.builds(lambda m, n: protocol.encode(m)[:n], messages, st.integers(0, 200)),
        st.just(b"[" * 100_000),
        st.just(b'["Close",' + b"9" * 5000 + b"]"),
    )
)
def test_whatever_comes_is_a_message_or_an_error(data: bytes) -> None:
    try:
        message = protocol.decode(data)
    except protocol.WireError:
        return
    assert protocol.decode(protocol.encode(message)) == message


@given(st.lists(st.lists(st.text(max_size=40_000), max_size=6), max_size=12))
def test_parts_fit_and_nothing_is_lost(rows: list[list[str]]) -> None:
    parts = list(protocol.split(rows))
    assert all(
        len(protocol.encode(protocol.Done(1 << 62, part))) <= protocol.MAX_BYTES for part in parts
    )
    together = [row for part in parts for row in part]
    assert len(together) == len(rows)
    for sent, meant in zip(together, rows, strict=True):
        assert len(sent) == len(meant)
        assert sent == meant or not protocol.fits(meant)


# --------------------------------------------------------------------------- a real guardian


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    trees = use(tmp_path, monkeypatch)
    trees.sysctl(BUDGET, "300")
    trees.sysctl(USECS, "8000")
    return trees


def budget(after: str, name: str = BUDGET, before: str = "300") -> Change:
    return Change("softirq", "sysctl", name, before, after)


def value(trees: Trees, name: str = BUDGET) -> str:
    return Path(trees.proc, "sys", *name.split(".")).read_text().strip()


@needs_root
def test_a_knob_named_twice_is_written_once_and_restored(trees: Trees, tmp_path: Path) -> None:
    lease = Lease(str(tmp_path / "state"))
    results = lease.apply([budget("128"), budget("64"), budget("4000", USECS, "8000")])
    assert [(r.status, r.text) for r in results] == [
        ("ok", ""), ("refused", "named twice in one request"), ("ok", ""),
    ]  # fmt: skip
    assert (value(trees), value(trees, USECS)) == ("128", "4000")
    assert len(lease.undo([("sysctl", BUDGET)] * 3)) == 1
    lease.close()
    assert (value(trees), value(trees, USECS)) == ("300", "8000")


@needs_root
@pytest.mark.parametrize(
    "change",
    [
        budget("-5"),
        budget("many"),
        budget("9" * 5000),
        budget("5", "kernel.core_pattern"),
        budget("5")._replace(kind="none"),
        budget("5")._replace(policy="no name"),
        budget("5")._replace(target="\udc80\n\0"),
        budget("5")._replace(before="x" * 100_000),
        Change("home", "affinity", "1/2", "0", "0"),
        Change("home", "affinity", f"{9**30}/1/1", "0", "0"),
        Change("guard", "pm_qos", "cpu0/../..", "0", "5"),
        budget("x" * (1 << 18)),
    ],
)
def test_what_is_no_setting_is_refused_beside_one_that_is(
    trees: Trees, tmp_path: Path, change: Change
) -> None:
    lease = Lease(str(tmp_path / "state"))
    results = lease.apply([change, budget("4000", USECS, "8000")])
    assert [result.status for result in results] == ["refused", "ok"]
    dir_fd = os.open(tmp_path / "state", os.O_RDONLY)
    found = load(dir_fd)
    os.close(dir_fd)
    assert found is not None
    assert ([hold.target for hold in found.holds], found.damaged) == ([USECS], 0)
    lease.close()
    assert (value(trees), value(trees, USECS)) == ("300", "8000")


@needs_root
def test_no_packet_ends_the_guardian_or_loses_a_hold(trees: Trees, tmp_path: Path) -> None:
    lease = Lease(str(tmp_path / "state"))
    assert [result.status for result in lease.apply([budget("128")])] == ["ok"]
    packets = [
        b"", b"\0", b"{}", b"null", b"[]",
        b"x" * protocol.MAX_BYTES, b"x" * (protocol.MAX_BYTES + 9),
        b"[" * 60_000, b'["Nothing"]', b'["Apply"]', b'["Apply", 1, [["a"]]]', b'["Ready"]',
        b'["Apply", true, []]', b'["Undo", 1, [["none", "x"]]]', b'["Undo", 1, [["sysctl", "x"]]]',
        b'["Heirs", 1, [[99999999999999999]]]', b'["Watched", 1, 1]', b'["Follow", 1, [], [[1]]]',
        b'["Lost", "x", []]', b'["Done", 1, []]', b"\xff\xfe",
    ]  # fmt: skip
    before = len(os.listdir(f"/proc/{lease.guardian}/fd"))
    null = os.open(os.devnull, os.O_RDONLY)
    for packet in packets:
        lease._channel.send(packet)
        fds = struct.pack("3i", null, null, null)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        lease._channel.sendmsg([packet or b'["Watched", 1, 1]'], rights)
        while readable(lease._channel.fileno(), 0.02):
            protocol.decode(lease._channel.recv(1 << 18))
    os.close(null)
    assert len(os.listdir(f"/proc/{lease.guardian}/fd")) <= before
    assert value(trees) == "128"
    assert [result.status for result in lease.apply([budget("64", before="128")])] == ["ok"]
    lease.close()
    assert value(trees) == "300"


@needs_root
def test_a_refusal_names_the_request(trees: Trees, tmp_path: Path) -> None:
    lease = Lease(str(tmp_path / "state"))
    for packet, number in ((b"\0", 0), (b'["Done", 9, []]', 9), (b'["Watched", 1, 1]', 0)):
        lease._channel.send(packet)
        assert readable(lease._channel.fileno(), 2)
        answer = protocol.decode(lease._channel.recv(1 << 18))
        assert isinstance(answer, protocol.Refused)
        assert answer.id == number
    lease.close()


@needs_root
@pytest.mark.parametrize("mine", [True, False])
def test_a_refusal_answers_its_own_request_only(
    heard: tuple[Lease, socket.socket, socket.socket], mine: bool
) -> None:
    lease, theirs, guardian = heard
    number = lease._id + 1
    theirs.send(protocol.encode(protocol.Refused(number if mine else number - 1, "no room")))
    theirs.send(protocol.encode(protocol.Done(number, [["ok", ""]])))
    (result,) = lease.apply([budget("64", before="128")])
    assert (result.status, result.text) == (("refused", "no room") if mine else ("ok", ""))
    lease._channel = guardian
    lease.close()


@needs_root
def test_a_refused_undo_is_told_of(heard: tuple[Lease, socket.socket, socket.socket]) -> None:
    lease, theirs, guardian = heard
    theirs.send(protocol.encode(protocol.More([list(Outcome("softirq", "sysctl", USECS, "text"))])))
    theirs.send(protocol.encode(protocol.Refused(lease._id + 1, "no room")))
    (outcome,) = lease.undo([("sysctl", BUDGET)])
    assert (outcome.text, outcome.settled) == ("the guardian: no room", False)
    assert lease._rows == []
    lease._channel = guardian
    lease.close()


@needs_root
@pytest.mark.parametrize(
    "packet", [b"\0", b"[]", b'["Done", 1, 5]', b'["More", [[null]]]', b'["Done", 99999, []]']
)
def test_no_answer_ends_the_engine(trees: Trees, tmp_path: Path, packet: bytes) -> None:
    lease = Lease(str(tmp_path / "state"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    real, lease._channel = lease._channel, ours
    theirs.send(packet)
    assert lease.poll() == []
    lease._channel = real
    ours.close()
    theirs.close()
    assert [result.status for result in lease.apply([budget("128")])] == ["ok"]
    lease.close()
    assert value(trees) == "300"


@pytest.fixture
def heard(trees: Trees, tmp_path: Path) -> Iterator[tuple[Lease, socket.socket, socket.socket]]:
    """A lease that the test answers (2nd); its guardian (3rd) holds a knob meanwhile."""
    lease = Lease(str(tmp_path / "state"))
    assert [result.status for result in lease.apply([budget("128")])] == ["ok"]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    real, lease._channel = lease._channel, ours
    with real, ours, theirs:
        yield lease, theirs, real
    assert value(trees) == "300"


@needs_root
def test_the_last_word_is_read_though_a_beat_was_not(
    heard: tuple[Lease, socket.socket, socket.socket],
) -> None:
    lease, theirs, _ = heard
    lease.beat()
    outcome = Outcome("softirq", "sysctl", USECS, "text")
    theirs.send(protocol.encode(protocol.More([list(outcome)])))
    theirs.send(protocol.encode(protocol.Lost("told to end", [list(outcome)])))
    theirs.close()
    (notice,) = lease.poll()
    assert (notice.why, notice.lost) == ("told to end", True)
    assert notice.outcomes[:2] == [outcome, outcome]


@needs_root
def test_a_guardian_that_says_it_is_busy_is_waited_for(
    heard: tuple[Lease, socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenttop.policies.guardian.lease.ANSWER_S", 1.0)
    lease, theirs, guardian = heard

    def answer() -> None:
        while not isinstance(message := protocol.decode(theirs.recv(1 << 18)), protocol.Undo):
            pass
        for _ in range(15):
            time.sleep(0.1)
            guardian.send(protocol.encode(protocol.Beat()))
            theirs.send(protocol.encode(protocol.Busy()))
        theirs.send(protocol.encode(protocol.Done(message.id, [list(outcome)])))

    outcome = Outcome("softirq", "sysctl", USECS, "text")
    thread = threading.Thread(target=answer)
    thread.start()
    assert lease.undo([("sysctl", USECS)]) == [outcome]
    thread.join()
    # One that says nothing is ended, and its holds are restored in its place.
    with pytest.raises(LeaseLostError) as lost:
        lease.undo([("sysctl", BUDGET)])
    assert [o.target for o in lost.value.notice.outcomes] == [BUDGET]


# --------------------------------------------------------------------------- large machines


@needs_root
def test_512_cpus_with_fragmented_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = use(tmp_path, monkeypatch, cpus=512)
    every = "0-511"
    odd = format_cpus(set(range(1, 512, 2)))
    even = format_cpus(set(range(0, 512, 2)))
    files = [trees.irq(irq, "nvme", even) for irq in range(600)]
    trees.put("sys/devices/system/cpu/present", f"{every}\n")
    lease = Lease(str(tmp_path / "state"))
    wanted = [Change("steer", "irq_affinity", str(irq), even, odd) for irq in range(600)]
    results = lease.apply(wanted)
    assert [result.change for result in results] == wanted
    assert {result.status for result in results} == {"ok"}
    assert {file.read_text() for file in files} == {odd}
    outcomes = lease.close()
    assert {file.read_text().strip() for file in files} == {even}
    assert len(outcomes) == 600


@needs_root
def test_the_longest_paths_of_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = use(tmp_path, monkeypatch)
    trees.cgroup2("memory")
    room = 4000 - len(str(trees.cgroup))
    names = [f"{n:03}" + "\u2028\n\x01"[n % 3] * 60 for n in range(120)]
    paths = []
    for name in names:
        path = name
        while len(os.fsencode(f"{path}/{name}")) < room:
            path += f"/{name}"
        paths.append(path)
    files = []
    for path in paths:
        trees.group(path, memory_low="0")
        files.append(trees.cgroup / path / "memory.low")
    lease = Lease(str(tmp_path / "state"))
    wanted = [Change("memory", "cgroup", f"memory.low/{path}", "0", "4096") for path in paths]
    assert {result.status for result in lease.apply(wanted)} == {"ok"}
    assert {file.read_text() for file in files} == {"4096"}
    outcomes: list[Any] = lease.close()
    assert {file.read_text() for file in files} == {"0"}
    assert sorted(outcome.target for outcome in outcomes) == sorted(c.target for c in wanted)

"""The journal: what it holds after any accident, and whom it trusts."""

from __future__ import annotations

import errno
import os
from binascii import crc32
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agenttop.policies.guardian import journal
from agenttop.policies.guardian.journal import (
    Hold,
    Journal,
    JournalError,
    aside,
    fold,
    load,
    open_state_dir,
)
from agenttop.policies.guardian.undo import forget, recover, undo_all
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import Change
from tests.support.knob_files import use

BUDGET = "net.core.netdev_budget"


def qos(cpu: int, before: str = "0", after: str = "n/a", policy: str = "guard") -> Change:
    return Change(policy, "pm_qos", f"cpu{cpu}", before, after)


def path(state: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{state}")) / journal.NAME


def held(state: int) -> dict[str, tuple[str, list[str]]]:
    found = load(state)
    assert found is not None
    assert found.damaged == 0
    return {hold.target: (hold.original, hold.ours) for hold in found.holds}


def test_a_knob_written_twice_goes_back_to_its_first_value(state: int) -> None:
    writer = Journal(state)
    writer.record([qos(0, "0", "5"), qos(1)])
    writer.record([qos(0, "5", "n/a")])
    assert held(state) == {"cpu0": ("0", ["5", "n/a"]), "cpu1": ("0", ["n/a"])}


def test_it_is_gone_when_nothing_is_held(state: int) -> None:
    writer = Journal(state)
    writer.record([qos(0), qos(1)])
    writer.undone([("pm_qos", "cpu0")])
    assert held(state) == {"cpu1": ("0", ["n/a"])}
    writer.undone([("pm_qos", "cpu1")])
    assert load(state) is None
    writer.record([qos(3)])
    assert held(state) == {"cpu3": ("0", ["n/a"])}


def test_it_stays_small_however_often_knobs_change(state: int) -> None:
    writer = Journal(state)
    for turn in range(6000):
        writer.record([qos(0, "0", str(1 + turn % 3)), qos(1)])
    assert path(state).stat().st_size <= journal.COMPACT_BYTES
    assert held(state) == {"cpu0": ("0", ["1", "2", "3"]), "cpu1": ("0", ["n/a"])}


@pytest.mark.parametrize("threads", [1, 2000])
def test_what_is_kept_is_marked_so_however_much_it_is(state: int, threads: int) -> None:
    writer = Journal(state)
    names = [f"{10_000 + n}/{10_000 + n}/7654321" for n in range(threads)]
    writer.record(Change("demote", "sched_policy", name, "OTHER:0", "IDLE:0") for name in names)
    writer.keep()
    writer.close()
    assert (path(state).stat().st_size > journal.COMPACT_BYTES) == (threads > 1)
    found = load(state)
    assert found is not None
    assert found.kept
    assert [hold.target for hold in found.holds] == names


def test_a_journal_of_an_earlier_boot_is_known_as_such(
    state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Journal(state).record([qos(0)])
    found = load(state)
    assert found is not None
    assert found.this_boot
    monkeypatch.setattr(journal, "boot_id", lambda: "another")
    found = load(state)
    assert found is not None
    assert not found.this_boot


def test_another_version_is_not_guessed_at(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "VERSION", journal.VERSION + 1)
    Journal(state).record([qos(0)])
    monkeypatch.undo()
    with pytest.raises(JournalError, match="another version"):
        load(state)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"garbage",
        journal._line({"agenttop": "journal", "version": journal.VERSION})[:-1],
        journal._line({"agenttop": "journal", "version": journal.VERSION, "boot": ""})[:-1],
        journal._line({"agenttop": "journal", "version": journal.VERSION, "boot": 5})[:-1],
    ],
)
def test_a_journal_of_an_unknown_boot_is_put_aside(state: int, header: bytes) -> None:
    # A setting that has the value that the journal says agenttop wrote: it must not be restored.
    pressure = Path("/proc/sys/vm/vfs_cache_pressure").read_text().strip()
    hold = Hold("vfs", "sysctl", "vm.vfs_cache_pressure", "1", [], 7)
    for number in ("", ".2"):
        path(state).write_bytes(header + b"\n" + journal._line(journal._set(hold, pressure)))
        path(state).chmod(0o600)
        found = load(state)
        assert found is not None
        assert (found.this_boot, found.undated, found.kept) == (False, True, False)
        outcomes = recover(state)
        assert outcomes is not None
        assert [outcome.settled for outcome in outcomes] == [False, False]
        assert outcomes[0].text.endswith(f"kept as journal.damaged{number}")
        assert "vm.vfs_cache_pressure: not restored, it was 1" in outcomes[1].text
        assert load(state) is None
        assert Path("/proc/sys/vm/vfs_cache_pressure").read_text().strip() == pressure
    assert aside(state) == ["journal.damaged", "journal.damaged.2"]
    assert forget(state) == ["journal.damaged: removed", "journal.damaged.2: removed"]
    assert aside(state) == []


def test_without_a_boot_id_nothing_is_written_or_believed(
    state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Journal(state)
    writer.record([qos(0)])
    monkeypatch.setattr(journal, "boot_id", lambda: "")
    with pytest.raises(JournalError, match="boot_id"):
        load(state)
    with pytest.raises(JournalError, match="boot_id"):
        Journal(state).record([qos(1)])
    monkeypatch.undo()
    assert held(state) == {"cpu0": ("0", ["n/a"])}


def test_a_journal_of_earlier_releases_is_read(state: int) -> None:
    boot = journal.boot_id()
    body = (
        '{"op":"set","policy":"memory","kind":"cgroup","target":"memory.low/\\u2028\\udc80",'
        '"before":"0","after":"4096","at":7}'
    )
    header = f'{{"agenttop":"journal","version":1,"boot":"{boot}"}}'
    for line in (header, body):
        with path(state).open("a") as file:
            file.write(f"{crc32(line.encode()):08x} {line}\n")
    path(state).chmod(0o600)
    found = load(state)
    assert found is not None
    assert (found.this_boot, found.damaged) == (True, 0)
    assert [(hold.target, hold.place) for hold in found.holds] == [("memory.low/\u2028\udc80", "")]


# --------------------------------------------------------------------------- bounds


def test_of_our_values_the_newest_are_kept(state: int) -> None:
    writer = Journal(state)
    for value in range(1000):
        writer.record([qos(0, "0", str(value))])
        writer.confirm(("pm_qos", "cpu0"))
    writer.close()
    writer.record([qos(1)])  # A new file.
    last = [str(value) for value in range(1000 - journal.MOST_OURS, 1000)]
    assert held(state)["cpu0"] == ("0", last)


def test_the_value_written_again_is_the_latest(state: int) -> None:
    writer = Journal(state)
    for value in ("1", "2", "3", "1"):
        writer.record([qos(0, "0", value)])
    assert held(state)["cpu0"] == ("0", ["2", "3", "1"])
    assert writer.holds["pm_qos", "cpu0"].ours == ["2", "3", "1"]


def test_what_was_not_confirmed_is_kept(state: int) -> None:
    writer = Journal(state)
    for value in range(200):
        writer.record([qos(0, "0", str(value))])
    assert len(held(state)["cpu0"][1]) == 200


def test_more_than_its_reader_takes_is_not_written(
    state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 20_000)
    monkeypatch.setattr(journal, "MOST_HELD_BYTES", 10_000)
    monkeypatch.setattr(journal, "COMPACT_BYTES", 1_000)
    writer = Journal(state)
    written: list[str] = []

    def fill() -> None:
        while True:
            writer.record([qos(len(written))])
            written.append(f"cpu{len(written)}")

    with pytest.raises(JournalError, match="full"):
        fill()
    assert 50 < len(written) < 200
    assert list(held(state)) == written
    writer.keep()
    found = load(state)
    assert found is not None
    assert found.kept
    for name in written[:-1]:
        writer.undone([("pm_qos", name)])
        assert path(state).stat().st_size <= journal.MAX_BYTES
    assert list(held(state)) == written[-1:]


any_text = st.text(st.characters(exclude_categories=()), max_size=60)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.builds(Change, any_text, st.just("cgroup"), any_text, any_text, any_text),
            st.builds(
                lambda name, value: Change("memory", "cgroup", f"memory.low/{name}", "0", value),
                st.one_of(any_text, st.binary(max_size=60).map(os.fsdecode)),
                st.sampled_from(["max", "4096"]),
            ),
        ),
        max_size=5,
    )
)
def test_what_the_writer_has_written_is_read(state: int, items: list[Change]) -> None:
    writer = Journal(state)
    expected: dict[str, list[str]] = {}
    for change in items:
        assert journal.valid(change) == believed(change)
        try:
            writer.record([change])
        except JournalError:
            assert not journal.valid(change)
            continue
        assert journal.valid(change)
        values = expected.setdefault(change.target, [])
        expected[change.target] = [*(v for v in values if v != change.after), change.after]
    assert {hold.target: hold.ours for hold in writer.holds.values()} == expected
    if expected:
        assert {target: ours for target, (_, ours) in held(state).items()} == expected
    writer.discard()


def believed(change: Change) -> bool:
    knob = KNOBS[change.kind]
    return (
        change.policy.isidentifier()
        and knob.valid(change.target, change.before)
        and knob.valid(change.target, change.after)
    )


# --------------------------------------------------------------------------- accidents

changes = st.lists(
    st.builds(
        qos,
        st.integers(0, 5),
        st.sampled_from(["0", "100"]),
        st.sampled_from(["n/a", "5", "20"]),
        st.sampled_from(["guard", "other"]),
    ),
    max_size=12,
)


def written(items: list[Change]) -> bytes:
    lines = [journal._line(journal._header())]
    lines += [
        journal._line(journal._set(Hold(*change[:4], [], 7), change.after)) for change in items
    ]
    return b"".join(lines)


@given(changes, st.data())
def test_a_torn_journal_holds_what_was_whole(items: list[Change], data: st.DataObject) -> None:
    whole = written(items)
    cut = data.draw(st.integers(0, len(whole)))
    torn = whole[:cut]
    complete = max(0, torn.count(b"\n") - 1)
    expected = fold(written(items[:complete]))
    found = fold(torn)
    assert found.damaged == 0
    assert [(h.key, h.original, h.ours) for h in found.holds] == [
        (h.key, h.original, h.ours) for h in expected.holds
    ]


@given(changes, st.data())
def test_a_flipped_bit_costs_two_lines_at_most(items: list[Change], data: st.DataObject) -> None:
    whole = bytearray(written(items))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    found = fold(bytes(whole))
    keys = {change.key for change in items}
    assert {hold.key for hold in found.holds} <= keys
    assert found.damaged <= 2
    # Two, where it was the end of a line.
    assert len(keys) - len(found.holds) <= 2


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_garbage_holds_nothing(data: bytes) -> None:
    assert fold(data).holds == []


@given(
    st.fixed_dictionaries(
        {
            "op": st.just("set"),
            "policy": st.one_of(st.text(), st.integers()),
            "kind": st.sampled_from(["pm_qos", "affinity", "cpu_latency", "other"]),
            "target": st.one_of(
                st.text(), st.sampled_from(["cpu0/../../x", "all", "1/2/3", "cpu1"])
            ),
            "before": st.one_of(st.text(), st.none()),
            "after": st.text(),
            "at": st.one_of(st.integers(), st.text(), st.booleans()),
        }
    )
)
def test_only_values_that_a_knob_can_have_are_believed(record: dict[str, object]) -> None:
    found = fold(journal._line(journal._header()) + journal._line(record))
    for hold in found.holds:
        assert "/.." not in hold.target
        assert hold.policy.isidentifier()


class Full:
    """A disk that takes ``room`` bytes more, as /run may do; in place of os.write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: int | None = None
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        if self.room is not None:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[: self.room]
            self.room -= len(data)
        return self._write(fd, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Full:
    return Full(monkeypatch)


@pytest.mark.parametrize("room", [0, 1, 40])
def test_what_was_refused_is_not_held_and_damages_nothing(
    state: int, disk: Full, room: int
) -> None:
    writer = Journal(state)
    writer.record([qos(0)])
    disk.room = room
    with pytest.raises(OSError, match="No space left"):
        writer.record([qos(0, "n/a", "5"), qos(1), qos(1, "n/a", "7"), qos(0, "5", "9")])
    assert held(state) == {"cpu0": ("0", ["n/a"])}
    assert {key: hold.ours for key, hold in writer.holds.items()} == {("pm_qos", "cpu0"): ["n/a"]}
    disk.room = None
    writer.record([qos(2)])
    assert held(state) == {"cpu0": ("0", ["n/a"]), "cpu2": ("0", ["n/a"])}


def test_a_first_line_that_was_refused_leaves_no_hold(state: int, disk: Full) -> None:
    disk.room = 10
    writer = Journal(state)
    with pytest.raises(OSError, match="No space left"):
        writer.record([qos(0)])
    assert writer.holds == {}
    assert load(state) is None


def test_giving_back_needs_no_room(state: int, disk: Full) -> None:
    writer = Journal(state)
    writer.record([qos(0), qos(1), qos(2)])
    disk.room = 30
    writer.undone([("pm_qos", "cpu0")])
    # It still tells of that one, which does no harm; nothing else is lost.
    assert held(state).keys() == {"cpu0", "cpu1", "cpu2"}
    disk.room = None
    writer.undone([("pm_qos", "cpu1")])
    assert held(state) == {"cpu2": ("0", ["n/a"])}
    disk.room = 0
    writer.undone([("pm_qos", "cpu2")])
    assert load(state) is None


def test_a_new_file_that_could_not_be_synced_is_written_once_more(
    state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Journal(state)
    writer.record([qos(0)])
    sync = os.fsync

    def refuse(fd: int) -> None:
        if fd == state:  # The file has its name by then.
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(fd)

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refuse)
        writer.close()  # So that the next record makes a new file.
        with pytest.raises(OSError, match="Input/output error"):
            writer.record([qos(1)])
    writer.record([qos(2)])
    assert held(state).keys() == {"cpu0", "cpu2"}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.EPERM])
def test_one_that_cannot_be_removed_keeps_nothing_from_being_restored(
    state: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    trees = use(tmp_path, monkeypatch)
    trees.sysctl(BUDGET, "300")
    writer = Journal(state)
    writer.record([Change("softirq", "sysctl", BUDGET, "300", "150")])
    trees.sysctl(BUDGET, "150")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(os, "unlink", refuse)
        broken.setattr(journal, "_write_all", refuse)
        first, second = undo_all(writer)
        assert (first.text, first.settled) == (f"{BUDGET}: 150 -> 300", True)
        assert not second.settled
        assert second.text.endswith(f"but it cannot be removed: {os.strerror(number)}")
    assert KNOBS["sysctl"].read(BUDGET) == "300"
    assert undo_all(writer) == []
    assert load(state) is None


def test_one_that_cannot_be_put_aside_is_told_of(
    state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path(state).write_bytes(b"damaged\n" + written([qos(0)]).split(b"\n", 1)[1])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "rename", refuse)
    first, second = recover(state) or []
    assert first.text.endswith("cannot be renamed: Read-only file system")
    assert not first.settled
    assert not second.settled
    assert load(state) is not None


# --------------------------------------------------------------------------- strangers


def test_a_link_in_its_place_is_refused(state: int, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    path(state).symlink_to(secret)
    with pytest.raises(JournalError):
        load(state)
    path(state).unlink()
    os.link(secret, path(state))
    with pytest.raises(JournalError, match="plain file"):
        load(state)


def test_a_fifo_in_its_place_is_refused_and_does_not_block(state: int) -> None:
    os.mkfifo(path(state))
    with pytest.raises(JournalError, match="plain file"):
        load(state)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_somebody_elses_journal_is_refused(state: int) -> None:
    Journal(state).record([qos(0)])
    os.chown(path(state), 65534, 65534)
    with pytest.raises(JournalError, match="plain file"):
        load(state)


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    open_dir = tmp_path / "open"
    open_dir.mkdir()
    open_dir.chmod(0o777)
    with pytest.raises(JournalError, match="writable by nobody else"):
        open_state_dir(str(open_dir))
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(JournalError):
        open_state_dir(str(link))


def test_nobody_else_can_read_it(state: int) -> None:
    Journal(state).record([qos(0)])
    assert path(state).stat().st_mode & 0o777 == 0o600
    assert path(state).parent.stat().st_mode & 0o777 == 0o700

"""Knobs that are files: what they may write at all, there and back, and whose they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.policies.builtin.softirq import mask
from agenttop.policies.guardian.journal import Hold, Journal, open_state_dir, ticks
from agenttop.policies.guardian.lease import Lease
from agenttop.policies.guardian.undo import recover, undo
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import Change, KnobError, format_cpus, parse_cpus, thread_stat
from agenttop.policies.knobs.files import (
    BLOCKDEV,
    CGROUP,
    IRQ_AFFINITY,
    NETDEV,
    SYSCTL,
    cgroup2_mount,
)
from tests.support.knob_files import Trees, use
from tests.support.policy_rig import machine_lock, needs_root, needs_two_cpus, victims

KINDS = ("irq_affinity", "sysctl", "netdev", "blockdev", "cgroup")


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    return use(tmp_path, monkeypatch)


def hold(kind: str, target: str, original: str, *ours: str) -> Hold:
    return Hold("test", kind, target, original, list(ours), ticks())


# --------------------------------------------------------------------------- what may be written


@pytest.mark.parametrize(
    ("kind", "target", "value"),
    [
        ("irq_affinity", "36", "0-1,4"),
        ("sysctl", "net.core.netdev_budget", "300"),
        ("sysctl", "vm.vfs_cache_pressure", "50"),
        ("netdev", "2/threaded", "1"),
        ("netdev", "2/gro_flush_timeout", "20000"),
        ("netdev", "2/queues/rx-0/rps_cpus", "ffffffff,00000003"),
        ("blockdev", "254:0/rq_affinity", "2"),
        ("blockdev", "8:16/wbt_lat_usec", "75000"),
        ("cgroup", "memory.low/user.slice/my agent:1", "1048576"),
        ("cgroup", "memory.min/a", "max"),
        ("cgroup", "io.weight/a/b", "300"),
        ("cgroup", "io.latency@8:0/a", "75"),
    ],
)
def test_what_policies_write_is_valid(kind: str, target: str, value: str) -> None:
    assert KNOBS[kind].valid(target, value)
    assert not KNOBS[kind].valid(target, value + "\n")
    assert not KNOBS[kind].valid(target, "")
    assert not KNOBS[kind].valid(target, "-1")
    assert not KNOBS[kind].valid("/" + target, value)


@pytest.mark.parametrize(
    ("kind", "target", "value"),
    [
        ("irq_affinity", "../sys/kernel", "1"),
        ("irq_affinity", "٣", "1"),
        ("irq_affinity", "36", "1\n2"),
        ("irq_affinity", "36", "99999"),
        ("sysctl", "kernel.core_pattern", "1"),
        ("sysctl", "net.core.netdev_budget", "0"),
        ("sysctl", "net/core/netdev_budget", "300"),
        ("netdev", "2/threaded", "2"),  # busy polling
        ("netdev", "../2/threaded", "1"),
        ("netdev", "2/queues/../rps_cpus", "1"),
        ("netdev", "2/queues/rx-0/rps_cpus", "1 2"),
        ("netdev", "2/mtu", "68"),
        ("blockdev", "254:0/scheduler", "1"),
        ("blockdev", "254:0/../rq_affinity", "1"),
        ("blockdev", "254:0/rq_affinity", "3"),
        ("cgroup", "memory.low/", "1"),
        ("cgroup", "memory.low", "1"),
        ("cgroup", "memory.low/a/../../b", "1"),
        ("cgroup", "memory.low//a", "1"),
        ("cgroup", "memory.low/a/", "1"),
        ("cgroup", "cgroup.kill/a", "1"),
        ("cgroup", "memory.low/a", "1\n2"),
        ("cgroup", "io.weight/a", "default 5"),
        ("cgroup", "io.latency/a", "75"),
    ],
)
def test_what_a_journal_must_not_make_us_write(kind: str, target: str, value: str) -> None:
    assert not KNOBS[kind].valid(target, value)


_PIECES = st.lists(
    st.sampled_from(
        ["..", ".", "/", "0", "36", "8:0", "a", "memory.low", "io.weight", "threaded", "\0", "\n",
         "queues", "rx-0", "rps_cpus", "rq_affinity", "net.core.netdev_budget", "1", "max", "@"]
    ),
    max_size=9,
)  # fmt: skip


@given(st.sampled_from(KINDS), _PIECES.map("".join) | st.text(max_size=30), _PIECES.map("".join))
def test_a_valid_target_never_leads_out_of_its_tree(kind: str, target: str, value: str) -> None:
    knob = KNOBS[kind]
    if not knob.valid(target, value):
        return
    paths = {
        "irq_affinity": ("/proc/irq/", IRQ_AFFINITY),
        "sysctl": ("/proc/sys/", SYSCTL),
        "blockdev": ("/sys/dev/block/", BLOCKDEV),
    }
    if kind in paths:
        root, file_knob = paths[kind]
        path = file_knob.path(target)
        assert path is not None
        assert os.path.normpath(path) == path
        assert path.startswith(root)
    else:
        assert ".." not in target.split("/")


# --------------------------------------------------------------------------- there and back


def test_an_interrupt_line_goes_there_and_back(trees: Trees) -> None:
    file = trees.irq(36, "virtio1-req.0", "0-3")
    assert IRQ_AFFINITY.read("36") == "0-3"
    IRQ_AFFINITY.write("36", "2")
    assert file.read_text() == "2"
    assert IRQ_AFFINITY.drift("36", "2") is None
    assert "IRQ 36 (virtio1-req.0): 2 -> 0-3" in undo(hold("irq_affinity", "36", "0-3", "2")).text
    assert file.read_text() == "0-3"


def test_what_somebody_else_has_set_is_left(trees: Trees) -> None:
    file = trees.irq(36, "nvme", "0-3")
    file.write_text("1\n")
    assert IRQ_AFFINITY.drift("36", "2") == "1"
    assert undo(hold("irq_affinity", "36", "0-3", "2")).foreign
    assert file.read_text() == "1\n"


def test_a_line_widened_because_its_cpu_went_offline_is_still_ours(trees: Trees) -> None:
    file = trees.irq(36, "nvme", "0-2")
    trees.put("sys/devices/system/cpu/online", "0-2\n")
    assert IRQ_AFFINITY.drift("36", "3") is None
    assert not undo(hold("irq_affinity", "36", "0-3", "3")).foreign
    assert file.read_text() == "0-3"


def test_a_line_that_has_gone_is_settled(trees: Trees) -> None:
    trees.irq(35, "nvme", "0-3")
    assert IRQ_AFFINITY.read("36") is None
    assert IRQ_AFFINITY.drift("36", "2") == ""
    assert undo(hold("irq_affinity", "36", "0-3", "2")).settled


def test_names_of_lines_are_shown_without_control_characters(trees: Trees) -> None:
    trees.irq(36, "evil\x1b[31m", "0-3")
    assert "\x1b" not in IRQ_AFFINITY.label("36")


def test_a_network_device_is_found_again_under_another_name(trees: Trees) -> None:
    folder = trees.netdev(2, "eth0")
    NETDEV.write("2/gro_flush_timeout", "20000")
    folder.rename(folder.with_name("lan0"))
    other = trees.netdev(7, "eth0")
    (other / "gro_flush_timeout").write_text("20000\n")
    outcome = undo(hold("netdev", "2/gro_flush_timeout", "0", "20000"))
    assert "lan0/gro_flush_timeout: 20000 -> 0" in outcome.text
    assert (folder.with_name("lan0") / "gro_flush_timeout").read_text() == "0"
    assert (other / "gro_flush_timeout").read_text() == "20000\n"


def test_what_is_not_there_to_look_in_is_kept(trees: Trees) -> None:
    for kind, target in (("irq_affinity", "36"), ("blockdev", "8:0/rq_affinity")):
        assert not undo(hold(kind, target, "1", "2")).settled


def test_a_network_device_that_has_gone_may_have_moved(trees: Trees) -> None:
    trees.netdev(3, "eth1")
    assert NETDEV.read("2/threaded") is None
    assert not undo(hold("netdev", "2/threaded", "0", "1")).settled


@given(st.frozensets(st.integers(0, 200), min_size=1))
def test_masks_are_what_the_kernel_parses(cpus: frozenset[int]) -> None:
    words = mask(cpus).split(",")
    assert all(len(word) == 8 for word in words[1:])
    assert 1 <= len(words[0]) <= 8
    bits = 0
    for word in words:
        bits = bits << 32 | int(word, 16)
    assert {n for n in range(256) if bits >> n & 1} == cpus
    # The kernel answers with leading zeros.
    assert NETDEV.same(mask(cpus), "00000000," * 2 + mask(cpus).rjust(8, "0"))
    assert NETDEV.valid("2/queues/rx-0/rps_cpus", mask(cpus))


def test_a_disk_is_named_as_people_know_it(trees: Trees) -> None:
    queue = trees.disk("254:0", "vda")
    BLOCKDEV.write("254:0/rq_affinity", "2")
    assert (queue / "rq_affinity").read_text() == "2"
    outcome = undo(hold("blockdev", "254:0/rq_affinity", "1", "2"))
    assert outcome.text == "/sys/block/vda/queue/rq_affinity: 2 -> 1"


def test_cgroup_files_in_their_formats(trees: Trees) -> None:
    trees.cgroup2("io memory")
    group = trees.group(
        "a/b", memory_low="0", io_weight="default 100\n8:0 50", io_latency="8:0 target=75000"
    )
    assert CGROUP.read("memory.low/a/b") == "0"
    assert CGROUP.read("io.weight/a/b") == "100"
    assert CGROUP.read("io.latency@8:0/a/b") == "75000"
    assert CGROUP.read("io.latency@8:16/a/b") == "max"
    CGROUP.write("io.weight/a/b", "300")
    assert (group / "io.weight").read_text() == "default 300"
    CGROUP.write("io.latency@8:16/a/b", "50")
    assert (group / "io.latency").read_text() == "8:16 target=50"
    assert CGROUP.read("memory.min/a/b") is None
    assert CGROUP.read("memory.low/gone") is None


def test_a_mount_with_a_blank_in_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = use(tmp_path / "my tree", monkeypatch)
    assert cgroup2_mount() is None
    trees.cgroup2("memory")
    assert cgroup2_mount() == str(trees.cgroup)


@given(st.text(max_size=200))
def test_no_cgroup_file_makes_reading_fail(text: str) -> None:
    for target in ("io.weight/a", "io.latency@8:0/a", "memory.low/a"):
        assert isinstance(CGROUP.parse(target, text), str)


# --------------------------------------------------------------------------- the guardian


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    lease = Lease(str(tmp_path / "state"))
    yield lease
    lease.close()


@needs_root
@pytest.mark.parametrize("odd", ["-5", "3000000000", "many"])
def test_what_could_not_be_given_back_is_not_touched(
    trees: Trees, tmp_path: Path, odd: str
) -> None:
    file = trees.sysctl("net.core.netdev_budget", odd)
    lease = Lease(str(tmp_path / "state"))
    (result,) = lease.apply([Change("softirq", "sysctl", "net.core.netdev_budget", odd, "128")])
    assert result.status == "refused"
    assert odd in result.text
    lease.close()
    assert file.read_text() == f"{odd}\n"


@needs_root
def test_a_journal_brings_every_kind_back(trees: Trees, tmp_path: Path) -> None:
    trees.cgroup2("memory")
    files = {
        ("irq_affinity", "36", "0-3", "2"): trees.irq(36, "nvme", "0-3"),
        ("sysctl", "vm.vfs_cache_pressure", "100", "50"): trees.sysctl(
            "vm.vfs_cache_pressure", "100"
        ),
        ("netdev", "2/threaded", "0", "1"): trees.netdev(2, "eth0") / "threaded",
        ("blockdev", "8:0/rq_affinity", "1", "2"): trees.disk("8:0", "sda") / "rq_affinity",
        ("cgroup", "memory.low/a b", "0", "4096"): trees.group("a b", memory_low="0")
        / "memory.low",
    }
    dir_fd = open_state_dir(str(tmp_path / "state"))
    assert dir_fd is not None
    try:
        journal = Journal(dir_fd)
        journal.record(Change("test", *row) for row in files)
        journal.close()
        for (kind, target, _, after), file in files.items():
            KNOBS[kind].write(target, after)
            assert file.read_text() == after
        outcomes = recover(dir_fd)
        assert outcomes is not None
        assert [o.settled and not o.foreign for o in outcomes] == [True] * len(files)
        assert {file.read_text() for file in files.values()} == {"0-3", "100", "0", "1"}
        assert recover(dir_fd) is None
    finally:
        os.close(dir_fd)


@needs_root
@needs_two_cpus
def test_a_value_that_the_kernel_rounds_is_taken_back(lease: Lease) -> None:
    with victims() as victim:
        tid = victim.tids()[-1]
        stat = thread_stat(victim.pid, tid)
        assert stat is not None
        before = victim.masks()
        cpus = format_cpus(before[tid])
        # A CPU that there is not is left out by the kernel without a word.
        absurd = f"{min(before[tid])},9999"
        target = f"{victim.pid}/{tid}/{stat.start}"
        (result,) = lease.apply([Change("test", "affinity", target, cpus, absurd)])
        assert result.status == "refused"
        assert absurd in result.text
        assert victim.masks() == before


# --------------------------------------------------------------------------- this machine

LINES = sorted(
    name
    for name in (os.listdir("/proc/irq") if os.path.isdir("/proc/irq") else ())
    if name.isdigit() and os.path.exists(f"/proc/irq/{name}/smp_affinity_list")
)
MOVABLE = [n for n in LINES if os.stat(f"/proc/irq/{n}/smp_affinity_list").st_mode & 0o222]
FIXED = [n for n in LINES if n not in MOVABLE]


@needs_root
@needs_two_cpus
@pytest.mark.skipif(not MOVABLE, reason="no interrupt line can be moved here")
def test_a_real_line_goes_there_and_back() -> None:
    with machine_lock():
        irq = MOVABLE[0]
        original = IRQ_AFFINITY.read(irq)
        assert original is not None
        one = str(min(parse_cpus(original)))
        try:
            IRQ_AFFINITY.write(irq, one)
            assert IRQ_AFFINITY.read(irq) == one
            assert undo(hold("irq_affinity", irq, original, one)).settled
            assert IRQ_AFFINITY.read(irq) == original
        finally:
            IRQ_AFFINITY.write(irq, original)


@needs_root
@pytest.mark.skipif(not FIXED, reason="every interrupt line can be moved here")
def test_a_real_line_that_cannot_be_moved_says_so() -> None:
    original = IRQ_AFFINITY.read(FIXED[0])
    assert original is not None
    with pytest.raises(KnobError, match="does not let it be moved"):
        IRQ_AFFINITY.write(FIXED[0], original)


@needs_root
@pytest.mark.skipif(not os.path.exists("/proc/sys/vm/vfs_cache_pressure"), reason="no such sysctl")
def test_a_number_that_the_kernel_does_not_take() -> None:
    original = SYSCTL.read("vm.vfs_cache_pressure")
    assert original is not None
    with pytest.raises(KnobError, match="does not take"):
        SYSCTL.write("vm.vfs_cache_pressure", "-1")
    assert SYSCTL.read("vm.vfs_cache_pressure") == original

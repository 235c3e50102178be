"""The /proc and /sys collectors, on machines of many kinds and on this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.collectors.procfs.cpu_time import TICK_NS, Stat
from agenttop.collectors.procfs.cpus import GROUPS, ProcfsCpus
from agenttop.collectors.procfs.host import host
from agenttop.collectors.procfs.interrupts import Interrupts
from agenttop.collectors.procfs.ksoftirqd import Ksoftirqd
from agenttop.collectors.procfs.own_cpu import SelfCost, process_cpu_ns
from agenttop.collectors.procfs.schedstat import TreeSchedstat
from agenttop.collectors.procfs.softirqs import Softirqs
from agenttop.collectors.procfs.softnet import SoftnetStat
from agenttop.collectors.procfs.tree_cpu import TreeCpu
from agenttop.linux import files
from agenttop.linux import process as procinfo
from agenttop.linux.descriptors import KEPT, SPARE, Budget
from agenttop.linux.files import KeptFile, parse_cpulist
from agenttop.model import vocabulary
from agenttop.model.sample import Softnet
from tests.support.trees import Tree
from tests.support.trees.machine import C_STATES, Machine


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path).use(monkeypatch)


def test_every_group_of_an_ordinary_machine(tree: Tree) -> None:
    machine = Machine(tree).write()
    tree.process(14, b"", ppid=2, comm="ksoftirqd/1", kernel=True)
    tree.write("proc/14/comm", "ksoftirqd/1\n")
    tree.write("proc/14/schedstat", "777 5 1\n")
    cpus = ProcfsCpus()
    first, second = cpus.read()
    assert (first.cpu, second.cpu) == (0, 1)
    assert first.busy_ns == (10 + 1 + 5 + 0 + 1) * TICK_NS
    assert first.steal_ns == 2 * TICK_NS
    assert first.softirq_ns == TICK_NS
    assert {line: a.count for line, a in first.irqs.items()} == {"24": 100, "26": 102}
    assert {line: a.count for line, a in second.irqs.items()} == {"25": 101, "27": 103}
    assert second.vectors["local_timer"].count == 1001
    assert set(second.vectors) <= set(vocabulary.VECTORS)
    assert second.softirqs["NET_RX"].count == 11 * vocabulary.SOFTIRQS.index("NET_RX")
    assert "HI" not in second.softirqs
    assert second.ksoftirqd_ns == 777
    assert first.ksoftirqd_ns is None
    assert [state.entries for state in first.idle] == [10, 11, 12, 13]
    assert first.idle[3].time_ns == 1_003_000
    assert (first.idle[0].above, first.idle[0].below) == (1, 0)
    assert (second.freq_khz, second.freq_min_khz, second.freq_max_khz) == (
        2_000_001,
        800_000,
        3_600_000,
    )
    assert cpus.irq_names() == {str(24 + i): f"nvme0q{i}" for i in range(4)}
    machine.tick = 2
    machine.write()
    later, _ = cpus.read()
    assert later.irqs["24"].count - first.irqs["24"].count == 100
    assert later.idle[2].entries - first.idle[2].entries == 10


def test_a_result_is_not_changed_by_the_next_read(tree: Tree) -> None:
    machine = Machine(tree).write()
    cpus = ProcfsCpus()
    first = cpus.read()
    before = [(c.irqs["24"].count if c.cpu == 0 else 0, c.idle[0].entries) for c in first]
    machine.tick = 9
    machine.write()
    cpus.read()
    after = [(c.irqs["24"].count if c.cpu == 0 else 0, c.idle[0].entries) for c in first]
    assert before == after


def test_a_cpu_goes_offline_and_comes_back(tree: Tree) -> None:
    machine = Machine(tree, cpus=4).write()
    cpus = ProcfsCpus()
    before = cpus.read()[2]
    machine.offline, machine.tick = {2}, 2
    machine.write()
    machine.remove("sys/devices/system/cpu/cpu2/cpuidle")
    machine.remove("sys/devices/system/cpu/cpu2/cpufreq")
    gone = cpus.read()
    assert [c.online for c in gone] == [True, True, False, True]
    assert gone[2].freq_khz is None
    # What is known of it stands still, so that no rate is negative or huge.
    assert gone[2].busy_ns == before.busy_ns
    assert gone[2].irqs == before.irqs
    assert gone[2].idle == before.idle
    assert gone[3].irqs["27"].count == 203
    machine.offline, machine.tick = set(), 3
    machine.write()
    back = cpus.read()
    assert back[2].online
    assert back[2].irqs["26"].count == 302
    assert back[2].freq_khz == 2_000_002
    assert back[2].idle[1].entries == 31


def softnet(*rows: tuple[int, ...]) -> str:
    return "".join(" ".join(f"{number:08x}" for number in row) + "\n" for row in rows)


def received(packets: int, dropped: int, squeezes: int, *cpu: int) -> tuple[int, ...]:
    return (packets, dropped, squeezes, *(0,) * 9, *cpu)


def test_received_packets_by_cpu_survive_wraps_and_offline_cpus(tree: Tree) -> None:
    file = SoftnetStat()
    assert file.read(None) == {}
    both = frozenset({0, 2})
    tree.write(
        "proc/net/softnet_stat",
        softnet(received(2**32 - 5, 1, 7, 0, 0, 0), received(10, 0, 0, 2, 0, 0)),
    )
    assert file.read(both) == {0: Softnet(2**32 - 5, 1, 7), 2: Softnet(10, 0, 0)}
    tree.write("proc/net/softnet_stat", softnet(received(5, 1, 9, 0, 0, 0)))
    assert file.read(frozenset({0})) == {0: Softnet(2**32 + 5, 1, 9), 2: Softnet(10, 0, 0)}


def test_received_packets_of_kernels_whose_lines_have_no_cpu(tree: Tree) -> None:
    file = SoftnetStat()
    tree.write("proc/net/softnet_stat", softnet(received(1, 0, 0), received(2, 0, 0)))
    assert file.read(frozenset({1, 3})) == {1: Softnet(1, 0, 0), 3: Softnet(2, 0, 0)}
    # One has just gone or come: whose the lines are is not known.
    assert SoftnetStat().read(frozenset({1})) == {}


def test_packets_through_the_loopback_are_received_packets_of_this_machine() -> None:
    file = SoftnetStat()

    def packets() -> int:
        return sum(one.packets for one in file.read(None).values())

    before = packets()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.bind(("127.0.0.1", 0))
        for _ in range(200):
            ours.sendto(b"", ours.getsockname())
    assert packets() >= before + 200


@given(st.binary(max_size=200))
def test_any_bytes_are_received_packets_or_none(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        tree = Tree(Path(folder)).use(patch)
        tree.write("proc/net/softnet_stat", raw.decode("latin-1"))
        for told in SoftnetStat().read(None).values():
            assert min(told.packets, told.dropped, told.time_squeezes) >= 0


def test_what_is_not_there_is_left_out_and_named(tree: Tree) -> None:
    Machine(tree, states=None, cpufreq=False, softirqs=False).write()
    cpus = ProcfsCpus()
    for counters in cpus.read():
        assert counters.idle == []
        assert counters.freq_khz is None
        assert counters.softirqs == {}
        assert counters.ksoftirqd_ns is None
    facts = host(cpus, missing={"chains": "no BPF"})
    assert (facts.name, facts.kernel, facts.cpus) == ("lab", "6.1.0-test", 2)
    assert set(facts.missing) == {"chains", "idle", "freq"}
    assert facts.idle_driver is None


def test_an_empty_machine_still_reads(tree: Tree) -> None:
    cpus = ProcfsCpus()
    assert all(c.online for c in cpus.read())
    assert cpus.irq_names() == {}
    assert host(cpus).name == "?"


def test_sensors_that_appear_later_are_found(tree: Tree) -> None:
    machine = Machine(tree, states=None, cpufreq=False).write()
    cpus = ProcfsCpus()
    cpus.read()
    machine.states, machine.cpufreq = C_STATES, True
    machine.write()
    for _ in range(20):
        found = cpus.read()
    assert [len(c.idle) for c in found] == [4, 4]
    assert found[0].freq_khz == 2_000_000
    assert host(cpus).idle_driver == "intel_idle"


def test_a_hybrid_machine_has_one_list_of_states(tree: Tree) -> None:
    Machine(tree, cpus=4, efficient={2, 3}).write()
    cpus = ProcfsCpus()
    found = cpus.read()
    names = [state.name for state in cpus.idle.states]
    assert names == ["POLL", "C1", "C1E", "C6", "C6S"]
    assert [s.entries for s in found[0].idle] == [10, 11, 12, 13, 0]
    assert [s.entries for s in found[3].idle] == [10, 11, 0, 0, 12]
    assert cpus.idle.index_of(0, 2) == 2
    assert cpus.idle.index_of(3, 2) == 4
    assert cpus.idle.index_of(3, 3) is None


def test_a_big_machine(tree: Tree) -> None:
    Machine(tree, cpus=128, irqs=300, offline={5, 77}).write()
    cpus = ProcfsCpus()
    found = cpus.read()
    assert len(found) == 128
    assert sum(c.online for c in found) == 126
    assert sum(len(c.irqs) for c in found) == 300 - sum(i % 128 in (5, 77) for i in range(300))
    assert found[127].vectors["reschedule"].count == 1127
    assert found[127].softirqs["RCU"].count == 137 * 9
    assert len(cpus.irq_names()) == 300


def test_few_descriptors_are_enough(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(tree, cpus=16).write()
    full = ProcfsCpus().read()
    poor = Budget()
    monkeypatch.setattr(poor, "take", lambda: False)
    monkeypatch.setattr(files, "_budget", poor)
    cpus = ProcfsCpus()
    before = len(os.listdir("/proc/self/fd"))
    assert cpus.read() == full
    assert cpus.read() == full
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("most", [64, 256, 512, 4096])
def test_descriptors_that_are_kept_are_bounded_and_some_are_spared(most: int) -> None:
    """In a process of its own: a hard limit cannot be raised again."""
    code = (
        "import resource, sys; n = int(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(n, 128), n))\n"
        "from agenttop.linux.descriptors import Budget\n"
        "budget = Budget()\n"
        "taken = sum(budget.take() for _ in range(5000))\n"
        "print(taken, *resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(most)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(min(KEPT, max(0, most - SPARE))), str(most), str(most)]


def test_a_large_machine_keeps_no_more_files_open_and_none_of_those_that_bpf_replaces(
    tree: Tree,
) -> None:
    Machine(tree, cpus=64).write()
    before = len(os.listdir("/proc/self/fd"))
    cpus = ProcfsCpus()
    full = cpus.read()
    assert cpus.read() == full
    assert len(os.listdir("/proc/self/fd")) - before <= KEPT
    del cpus
    assert len(os.listdir("/proc/self/fd")) == before


def test_skipped_groups_are_not_read_but_names_are(tree: Tree) -> None:
    Machine(tree).write()
    cpus = ProcfsCpus(GROUPS)
    found = cpus.read()[0]
    assert (found.irqs, found.softirqs, found.idle, found.freq_khz) == ({}, {}, [], None)
    assert found.busy_ns > 0
    assert cpus.irq_names()["24"] == "nvme0q0"
    assert host(cpus).idle_states


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("  1: 3 4  IR-IO-APIC    1-edge      i8042", "i8042"),
        (" 16: 3 4  IO-APIC  16-fasteoi   ehci_hcd:usb1, nvme", "ehci_hcd:usb1, nvme"),
        (" 24: 3 4  PCI-MSI 524288-edge      nvme0q0", "nvme0q0"),
        (" 11: 3 4  GICv3  27 Level     arch_timer", "arch_timer"),
        (" 40: 3 4  xen-percpu    -virq      timer0", "timer0"),
        (" 41: 3 4  IO-APIC   4-edge    ", ""),
        (" 42: 3 4  PCI-MSIX-0000:00:02.0   1-edge      \x1b[31m[b]x", "\ufffd[31m[b]x"),
        (" 43: 3 4", ""),
    ],
)
def test_names_of_lines_as_kernels_write_them(tree: Tree, line: str, name: str) -> None:
    tree.write("proc/interrupts", f"           CPU0       CPU1\n{line}\n")
    interrupts = Interrupts()
    irqs, _ = interrupts.read()
    number = line.split(":")[0].strip()
    assert irqs[1][number].count == 4
    assert interrupts.names() == {number: name}


def test_arm_names_its_ipis_by_description(tree: Tree) -> None:
    tree.write(
        "proc/interrupts",
        "      CPU0  CPU1\n"
        "IPI0:  5  6  Rescheduling interrupts\n"
        "IPI1:  1  2  Function call interrupts\n",
    )
    _, vectors = Interrupts().read()
    assert {k: v.count for k, v in vectors[1].items()} == {"reschedule": 6, "call_function": 2}


def test_a_line_that_goes_is_forgotten_by_name_not_by_count(tree: Tree) -> None:
    machine = Machine(tree, irqs=3).write()
    interrupts = Interrupts()
    interrupts.read()
    machine.irqs = 2
    machine.write()
    irqs, _ = interrupts.read()
    assert set(interrupts.names()) == {"24", "25"}
    assert irqs[0]["26"].count == 102


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    tree = Tree(tmp_path_factory.mktemp("any"))
    with pytest.MonkeyPatch.context() as patch:
        tree.use(patch)
        for prefix in (b"", b"   CPU0 CPU1\n 24: ", b"cpu0 "):
            for file in ("interrupts", "softirqs", "stat"):
                tree.write(f"proc/{file}", prefix + raw)
            Interrupts().read()
            Softirqs().read()
            Stat().read()


@given(st.sets(st.integers(0, 300)))
def test_cpu_lists_come_back(cpus: set[int]) -> None:
    assert parse_cpulist(",".join(map(str, cpus))) == sorted(cpus)


def test_cpu_lists_with_ranges_and_errors() -> None:
    assert parse_cpulist("0-3,8,10-11\n") == [0, 1, 2, 3, 8, 10, 11]
    assert parse_cpulist("") == []
    for bad in ("a", "3-1", "0-99999999", "-1", "1-2-3"):
        with pytest.raises(ValueError):
            parse_cpulist(bad)


def test_a_kept_file_follows_what_happens_to_its_path(tmp_path: Path) -> None:
    path = tmp_path / "f"
    kept = KeptFile(str(path))
    assert kept.read() is None
    path.write_text("5\n")
    assert kept.number() == 5
    path.write_text("x" * 300_000)
    assert kept.read_all() == b"x" * 300_000
    assert kept.number() is None
    kept.close()
    path.unlink()
    assert kept.read() is None
    assert kept.read_all() is None


def test_only_kernel_threads_count_as_ksoftirqd(tree: Tree) -> None:
    for pid, kernel in ((14, True), (15, False)):
        tree.process(pid, b"" if kernel else b"fake\0", comm=f"ksoftirqd/{pid - 14}", kernel=kernel)
        tree.write(f"proc/{pid}/comm", f"ksoftirqd/{pid - 14}\n")
        tree.write(f"proc/{pid}/schedstat", "100 5 1\n")
    threads = Ksoftirqd([0, 1])
    assert threads.read() == {0: 100}
    # The container hides it: what was counted stays.
    (tree.proc / "14" / "schedstat").unlink()
    assert threads.read() == {0: 100}


def test_one_read_looks_at_some_processes_only(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid in range(100, 2600):
        tree.write(f"proc/{pid}/comm", "worker\n")
    tree.process(3000, b"", comm="ksoftirqd/1", kernel=True)
    tree.write("proc/3000/comm", "ksoftirqd/1\n")
    tree.write("proc/3000/schedstat", "100 5 1\n")
    looks: list[str] = []
    read_file = procinfo.read_file

    def noted(path: str, size: int) -> bytes | None:
        looks.append(path)
        return read_file(path, size)

    monkeypatch.setattr(procinfo, "read_file", noted)
    # CPU 0 has no thread, however often it is searched for.
    threads = Ksoftirqd([0, 1])
    for _ in range(30):
        looks.clear()
        found = threads.read()
        assert len(looks) < 1100
    assert found == {1: 100}
    # And not at each read.
    assert not looks


# --------------------------------------------------------------------------- schedstat


def test_totals_never_fall_when_threads_and_processes_end(tree: Tree) -> None:
    tree.process(20, "a", threads=[(20, 100, 10, 1), (21, 50, 5, 2)])
    tree.process(30, "b", threads=[(30, 7, 7, 7)])
    sched = TreeSchedstat()
    assert sched.read([20, 30]) == (157, 22, 10, 3)
    tree.write("proc/20/task/20/schedstat", "200 20 2\n")
    assert sched.read([20, 30]) == (257, 32, 11, 3)
    machine = Machine(tree)
    machine.remove("proc/20/task/21")
    assert sched.read([20]) == (257, 32, 11, 1)
    tree.process(20, "a", threads=[(20, 200, 20, 2), (22, 1, 1, 1)])
    assert sched.read([20]) == (258, 33, 12, 2)
    assert sched.read([]) == (258, 33, 12, 0)


def test_a_thread_number_used_again_is_another_thread(tree: Tree) -> None:
    tree.process(20, "a", threads=[(20, 100, 10, 1)])
    sched = TreeSchedstat()
    sched.read([20])
    tree.write("proc/20/task/20/schedstat", "5 1 1\n")
    assert sched.read([20]) == (105, 11, 2, 1)


def test_without_schedstat_there_are_no_figures(tree: Tree) -> None:
    tree.process(20, "a")
    assert TreeSchedstat().read([20, 21]) is None


def test_real_threads_are_counted_and_their_time_stays() -> None:
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("a kernel without schedstat")
    script = (
        "import threading,sys,time\n"
        "def burn():\n"
        " t=time.thread_time_ns()\n"
        " while time.thread_time_ns()-t<30_000_000: pass\n"
        " gate.wait()\n"
        "gate=threading.Event()\n"
        "ts=[threading.Thread(target=burn) for _ in range(3)]\n"
        "[t.start() for t in ts]\n"
        "sys.stdin.readline(); gate.set(); [t.join() for t in ts]\n"
        "print('joined',flush=True); sys.stdin.readline()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdin
        assert child.stdout
        sched = TreeSchedstat()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            before = sched.read([child.pid])
            if before and before.threads == 4 and before.run_ns > 90_000_000:
                break
            time.sleep(0.02)
        assert before
        assert before.threads == 4
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "joined\n"
        # A thread is joined a little before the kernel has done with it.
        while (after := sched.read([child.pid])) and after.threads > 1:
            assert time.monotonic() < deadline
        assert after
        assert after.threads == 1
        assert after.run_ns >= before.run_ns > 90_000_000
        assert after.run_delay_ns >= before.run_delay_ns
    finally:
        child.kill()
        child.communicate()
    ended = sched.read([child.pid])
    assert ended
    assert ended.run_ns >= after.run_ns
    sched.close()


# --------------------------------------------------------------------------- own cost


def test_own_cost_counts_added_processes_and_keeps_the_dead() -> None:
    cost = SelfCost()
    before = cost.read()
    burn = "import time\nwhile time.process_time()<0.05: pass\nprint(1,flush=True)\ninput()"
    child = subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout
        child.stdout.readline()
        cost.add(child.pid)
        running = cost.read()
        assert running - before >= 50_000_000
    finally:
        child.kill()
        child.communicate()
    assert process_cpu_ns(child.pid) is None
    assert cost.read() >= running
    cost.add_ns(10**12)
    assert cost.read() >= running + 10**12


# --------------------------------------------------------------------------- this machine


#: Uses the CPU for a while, and then none.
BURNS = """
import sys, time
while time.process_time() < 0.3: pass
print("ready", flush=True)
sys.stdin.read()
"""


def burnt() -> subprocess.Popen[bytes]:
    """A process that has used 0.3 s."""
    child = subprocess.Popen(
        [sys.executable, "-c", BURNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def test_a_trees_cpu_time_is_what_its_processes_use_in_it() -> None:
    old, tick = burnt(), 0.02
    try:
        time.sleep(tick)
        tree, me = TreeCpu(), os.getpid()
        first = tree.read([me])
        # It had run before it came, and it comes and goes.
        for pids in ([me, old.pid], [me], [me, old.pid], [me], [old.pid]):
            start = time.process_time_ns()
            last, first = first, tree.read(pids)
            assert 0 <= first - last <= time.process_time_ns() - start + 50_000_000
        time.sleep(tick)
        # One that has started since, and one that has ended since.
        with burnt() as new:
            last, first = first, tree.read([old.pid, new.pid])
            assert 300_000_000 <= first - last < 400_000_000
        assert tree.read([old.pid, new.pid]) == pytest.approx(first, abs=20_000_000)
        assert tree.read([]) >= first
    finally:
        old.communicate()


def test_this_machine_reads_and_never_falls() -> None:
    cpus = ProcfsCpus()
    first = cpus.read()
    second = cpus.read()
    assert [c.cpu for c in first] == cpus.cpus
    assert any(c.vectors for c in first)
    for a, b in zip(first, second, strict=True):
        assert b.busy_ns >= a.busy_ns
        assert all(b.irqs[line].count >= a.irqs[line].count for line in a.irqs)
        assert all(b.softirqs[name].count >= a.softirqs[name].count for name in a.softirqs)
        assert all(y.time_ns >= x.time_ns for x, y in zip(a.idle, b.idle, strict=True))

"""Who is measured: inheritance, opt-in, ends, and nothing left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agenttop.collectors.bpf import syscall
from agenttop.collectors.bpf.layout import NO_SLOT
from agenttop.collectors.bpf.read.tracer import Edge, Tracer
from tests.support.loops import loop, until
from tests.support.tracing import VARIANTS, load, load_variant

pytestmark = pytest.mark.bpf


@pytest.fixture(scope="module", params=VARIANTS)
def tracer(request: pytest.FixtureRequest) -> Iterator[Tracer]:
    tracer = load_variant(request.param)
    yield tracer
    tracer.close()


def program(text: str) -> subprocess.Popen[str]:
    """A Python program that says a line when it is ready and waits for one."""
    child = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def edges_until(tracer: Tracer, wanted: Callable[[Edge], bool]) -> bool:
    return until(lambda: any(wanted(edge) for edge in tracer.edges()))


def test_all_threads_of_a_process_are_adopted(tracer: Tracer, slot: int) -> None:
    child = program(
        "import threading, time\n"
        "for _ in range(5): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print('ready', flush=True); input()"
    )
    try:
        tracer.assign({child.pid: slot}, {})
        mine = [thread for thread in tracer.threads() if thread.slot == slot]
        tids = {int(tid) for tid in os.listdir(f"/proc/{child.pid}/task")}
        assert {thread.tid for thread in mine} == tids
        assert len(tids) == 6
    finally:
        child.kill()
        child.communicate()


def test_children_and_threads_inherit(tracer: Tracer, slot: int) -> None:
    child = program(
        "import subprocess, sys, threading, time\n"
        "print('ready', flush=True); input()\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); input()\n"
        "child.kill()"
    )
    try:
        tracer.assign({child.pid: slot}, {})
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        tool = int(child.stdout.readline())
        tids = {thread.tid for thread in tracer.threads() if thread.slot == slot}
        assert tool in tids
        assert child.pid in tids
        assert len(tids) == 3
        child.communicate("\n")
        assert until(lambda: tracer.members(slot) == 0)
        assert not [thread for thread in tracer.threads() if thread.slot == slot]
    finally:
        child.kill()
        child.wait()


def test_the_end_of_an_agent_is_told(tracer: Tracer, slot: int) -> None:
    if tracer.mode != "tp_btf":
        pytest.skip("the hash has no count of members; user space lists it")
    with loop("--steps", 5) as running:
        tracer.assign({running.pid: slot}, {})
        running.run()
    assert edges_until(tracer, lambda e: e.kind == "exit" and e.slot == slot)


def test_exec_and_rename_are_told(tracer: Tracer) -> None:
    tracer.edges(1 << 20)
    child = subprocess.Popen(["/bin/sh", "-c", "printf changed > /proc/self/comm; exec sleep 0"])
    child.wait()
    kinds = set()

    def both(edge: Edge) -> bool:
        if edge.tgid == child.pid:
            kinds.add(edge.kind)
        return kinds >= {"exec", "rename"}

    # The shell's printf is a builtin: it renames the process that then execs.
    assert edges_until(tracer, both)


def test_the_marker_opts_in_once(tracer: Tracer) -> None:
    tracer.edges(1 << 20)
    with loop("--steps", 20, "--opt-in", "marker") as running:
        running.run()
        seen = [e for e in tracer.edges(1 << 20) if e.kind == "marker" and e.tgid == running.pid]
    assert len(seen) == 1
    assert seen[0].tid == running.pid


#: Marks steps for as many seconds as it is told, and tells for how long it did.
MARKS = """
import ctypes, time
marker = ctypes.CDLL(None).prctl
marker.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
print("ready", flush=True)
while seconds := float(input()):
    start = time.monotonic()
    while time.monotonic() < start + seconds:
        marker(0x41475354, 1, 0, 0, 0)
        time.sleep(0.01)
    print(time.monotonic() - start, flush=True)
"""


def test_who_was_not_heard_asks_again_each_second_until_it_is_seated(
    tracer: Tracer, slot: int
) -> None:
    child = program(MARKS)

    def asked() -> tuple[int, float]:
        assert child.stdin is not None
        assert child.stdout is not None
        tracer.edges(1 << 20)
        child.stdin.write("1.5\n")
        child.stdin.flush()
        lasted = float(child.stdout.readline())
        edges = [e for e in tracer.edges(1 << 20) if (e.kind, e.tid) == ("marker", child.pid)]
        return len(edges), lasted

    try:
        times, lasted = asked()
        assert 2 <= times <= 1 + lasted
        tracer.assign({}, {child.pid: slot})
        assert asked()[0] == 0
    finally:
        child.kill()
        child.communicate()


def test_sched_setattr_opts_in_at_level_full(tracer: Tracer) -> None:
    tracer.edges(1 << 20)
    with loop("--steps", 20, "--opt-in", "sched_setattr") as running:
        running.run()
        edges = [e for e in tracer.edges(1 << 20) if e.kind == "sched_setattr"]
    told = [e.tid for e in edges if e.tgid == running.pid]
    assert told == ([] if tracer.level == "lite" else [running.pid])


#: A thread that is not the first becomes another program.
EXECS = """
import os, threading, time
print("ready", flush=True); input()
threading.Thread(target=lambda: os.execv("/bin/sleep", ["sleep", "60"])).start()
time.sleep(60)
"""


def test_a_thread_that_calls_exec_is_measured_on(tracer: Tracer, slot: int) -> None:
    child = program(EXECS)

    def listed() -> list[int]:
        return [thread.tid for thread in tracer.threads() if thread.slot == slot]

    try:
        tracer.assign({child.pid: slot}, {})
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
        comm = Path(f"/proc/{child.pid}/comm")
        assert until(lambda: comm.read_text() == "sleep\n")
        assert until(lambda: listed() == [child.pid])
        assert tracer.members(slot) == 1
    finally:
        child.kill()
        child.communicate()
    assert until(lambda: tracer.members(slot) == 0)


def test_a_single_thread_does_not_pass_it_on(tracer: Tracer, slot: int) -> None:
    if tracer.mode != "tp_btf":
        pytest.skip("single threads need task-local storage")
    child = program(
        "import subprocess\nprint('ready', flush=True); input()\n"
        "c = subprocess.Popen(['sleep', '60']); print(c.pid, flush=True); input(); c.kill()"
    )
    try:
        tracer.assign({}, {child.pid: slot})
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        child.stdout.readline()
        assert [t.tid for t in tracer.threads() if t.slot == slot] == [child.pid]
        child.communicate("\n")
    finally:
        child.kill()
        child.wait()


def test_measuring_can_be_ended(tracer: Tracer, slot: int) -> None:
    child = program("print('ready', flush=True); input()")
    try:
        tracer.assign({child.pid: slot}, {})
        assert [t for t in tracer.threads() if t.slot == slot]
        tracer.assign({child.pid: NO_SLOT}, {})
        assert not [t for t in tracer.threads() if t.slot == slot]
    finally:
        child.kill()
        child.communicate()


def test_a_tree_may_have_more_processes_than_the_map_holds(tracer: Tracer, slot: int) -> None:
    child = program("print('ready', flush=True); input()")
    before = tracer.losses(tracer.cpus())["storage_full"]
    try:
        # Nobody has these numbers; the kernel's are below 1 << 22.
        crowd = dict.fromkeys(range(1 << 23, (1 << 23) + 20_000), slot)
        tracer.assign({**crowd, child.pid: slot}, {})
        assert [thread.tid for thread in tracer.threads() if thread.slot == slot] == [child.pid]
        assert tracer.losses(tracer.cpus())["storage_full"] == before
        assert syscall.map_keys(tracer._loaded.maps["assignments"], 4) == []
    finally:
        child.kill()
        child.communicate()


def test_who_finds_no_room_is_counted(
    tracer: Tracer, slot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, before = syscall.map_update, tracer.losses(tracer.cpus())["storage_full"]
    first, last = (program("print('ready', flush=True); input()") for _ in range(2))

    def full(fd: int, key: bytes, value: bytes) -> None:
        if int.from_bytes(key, "little") == first.pid:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        update(fd, key, value)

    try:
        monkeypatch.setattr(syscall, "map_update", full)
        tracer.assign({first.pid: slot, last.pid: slot}, {})
        assert {thread.tid for thread in tracer.threads() if thread.slot == slot} == {last.pid}
        assert tracer.losses(tracer.cpus())["storage_full"] == before + 1
        assert syscall.map_keys(tracer._loaded.maps["assignments"], 4) == []
    finally:
        for child in (first, last):
            child.kill()
            child.communicate()


def test_who_has_ended_already_is_not_adopted(tracer: Tracer, slot: int) -> None:
    child = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    tracer.assign({child.pid: slot}, {})
    assert tracer.members(slot) == 0
    child.wait()
    assert tracer.members(slot) == 0


def test_who_ends_while_being_adopted_is_counted_out_once(tracer: Tracer, slot: int) -> None:
    """A few hundred tries: some end before, some amid, some after the two passes."""
    for i in range(300):
        child = subprocess.Popen(["/bin/true"])
        time.sleep(i % 30 * 5e-5)
        tracer.assign({child.pid: slot}, {})
        child.wait()
        assert until(lambda: tracer.members(slot) == 0)


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_thousands_of_short_processes_leave_nothing(tracer: Tracer, slot: int, count: int) -> None:
    child = program(
        "import os\nprint('ready', flush=True); input()\n"
        f"for _ in range({count}):\n"
        "    os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)\n"
        "print('done', flush=True); input()"
    )
    stop = threading.Event()
    seen: list[int] = []

    def drain() -> None:
        while not stop.is_set():
            seen.append(len(tracer.edges(1 << 20)))
            time.sleep(0.05)

    reader = threading.Thread(target=drain)
    try:
        before = len(tracer.threads())
        refused = tracer.losses(tracer.cpus())["storage_full"]
        tracer.assign({child.pid: slot}, {})
        reader.start()
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "done\n"
        assert until(lambda: tracer.members(slot) == 1)
        assert len(tracer.threads()) <= before + 1
        if tracer.mode == "raw_tp":
            keys = syscall.map_keys(tracer._loaded.maps["threads"], 4)
            assert len(keys) <= before + 1
        losses = tracer.losses(tracer.cpus())
        assert losses["storage_full"] == refused
        assert losses["negative"] == 0
    finally:
        stop.set()
        if reader.ident:
            reader.join()
        child.kill()
        child.communicate()
    assert sum(seen) + tracer.losses(tracer.cpus())["edge_ring_full"] >= count


@pytest.mark.long
def test_a_full_ring_is_counted() -> None:
    tracer = load("lite")
    try:
        subprocess.run(
            ["/bin/sh", "-c", "i=0; while [ $i -lt 5000 ]; do /bin/true; i=$((i+1)); done"],
            check=True,
        )
        told = len(tracer.edges(1 << 20))
        lost = tracer.losses(tracer.cpus())["edge_ring_full"]
        assert lost > 0
        assert told + lost >= 5000
    finally:
        tracer.close()


def renamed(tracer: Tracer, comms: int) -> int:
    """Records in the ring of this many renames of this process."""
    tracer.edges(1 << 20)
    for number in range(comms):
        Path("/proc/self/comm").write_text(f"name {number}")
    return sum(edge.kind == "rename" and edge.tgid == os.getpid() for edge in tracer.edges(1 << 20))


def test_a_process_that_renames_itself_takes_one_place_in_the_ring(tracer: Tracer) -> None:
    before = tracer.losses(tracer.cpus())["edge_ring_full"]
    own = Path("/proc/self/comm").read_text()
    try:
        assert renamed(tracer, 20_000) <= 2
        # The one after the ring was read is told again.
        assert renamed(tracer, 1) == 1
    finally:
        Path("/proc/self/comm").write_text(own.strip())
    assert tracer.losses(tracer.cpus())["edge_ring_full"] == before


def test_a_rename_behind_one_that_came_while_the_ring_was_read_is_told(
    tracer: Tracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, own = tracer._edges, Path("/proc/self/comm")
    before = own.read_text()

    class Busy:
        def records(self, limit: int) -> Iterator[bytes]:
            own.write_text("meanwhile")
            yield from ring.records(limit)

    tracer.edges(1 << 20)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(tracer, "_edges", Busy())
            assert any(edge.tgid == os.getpid() for edge in tracer.edges(1 << 20))
        # By now its reader has looked at the process, and takes it for "meanwhile".
        own.write_text("claude")
        assert any(edge.tgid == os.getpid() for edge in tracer.edges(1 << 20))
    finally:
        own.write_text(before.strip())


def test_a_thread_that_waits_for_a_slot_is_listed_with_its_user(tracer: Tracer, slot: int) -> None:
    nobody = 65534
    script = (
        "import ctypes, os, time\n"
        f"os.setuid({nobody})\n"
        "prctl = ctypes.CDLL(None).prctl\n"
        "while True: prctl(0x41475354, 7, 0, 0, 1); time.sleep(0.05)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as child:
        try:

            def asking() -> bool:
                tracer.threads()
                mine = [one for one in tracer.asking() if one.tid == child.pid]
                return [(one.kind, one.uid) for one in mine] == [("marker", nobody)]

            assert until(asking)
            tracer.assign({}, {child.pid: slot})
            assert not asking()
            tracer.shut(slot)
            tracer.threads()
            assert until(asking)
            assert tracer.members(slot) == 0
        finally:
            child.kill()
            tracer.clear(slot)

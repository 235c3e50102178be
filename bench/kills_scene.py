"""What kills are tried on: the machine's settings, fixture trees for what it lacks, victims.

A picture has every setting that may be changed and every attribute of every thread of the
victims, those included that were born meanwhile.
"""

from __future__ import annotations

import glob
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import KnobError, cpu_set, thread_stat
from agenttop.policies.knobs.cgroup import mount
from agenttop.policies.knobs.sched_attr import THREAD_KNOBS, Attr
from bench.kills_victims import CHOOSING, CHOSE

ROOT: Final = Path(__file__).resolve().parents[1]
#: What policies write beside the settings of ``live``.
FILES: Final = (
    "/proc/sys/net/core/netdev_budget*",
    "/proc/irq/*/smp_affinity_list",
    "/sys/block/*/queue/rq_affinity",
    "/sys/block/*/queue/wbt_lat_usec",
    "/sys/class/net/*/threaded",
    "/sys/class/net/*/queues/*/[rx]ps_cpus",
    "/sys/devices/system/cpu/cpufreq/policy*/scaling_min_freq",
    "/sys/devices/system/cpu/cpufreq/policy*/energy_performance_preference",
)
#: Kernel threads that may be moved, and that nothing waits for.
KERNEL_THREADS: Final = ("khugepaged", "kauditd", "khungtaskd", "ksmd")
GROUP: Final = "agenttop-kills"
CPUS: Final = 4


class Setting(NamedTuple):
    """A knob, and values that are written to it."""

    kind: str
    target: str
    values: tuple[str, ...]


#: (kind, what is set) -> value.
Picture = dict[tuple[str, str], object]


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        return str(error.strerror)


# --------------------------------------------------------------------------- this machine


def live() -> Iterator[Setting]:
    """A few settings of each kind that this machine seems to have."""
    last = str(max(cpu_set("online")))
    for cpu in sorted(cpu_set("online"))[:4]:
        yield Setting("pm_qos", f"cpu{cpu}", ("40", "7"))
    yield Setting("cpu_latency", "all", ("30", "9"))
    yield Setting("sysctl", "net.core.netdev_budget", ("311", "97"))
    yield Setting("sysctl", "vm.vfs_cache_pressure", ("77", "51"))
    for folder in sorted(glob.glob("/sys/class/net/*")):
        if os.path.exists(f"{folder}/device"):
            continue
        number = _text(f"{folder}/ifindex")
        yield Setting("netdev", f"{number}/gro_flush_timeout", ("20000", "9000"))
        yield Setting("netdev", f"{number}/queues/rx-0/rps_cpus", ("1",))
        break
    for folder in sorted(glob.glob("/sys/block/*"))[-2:]:
        if _text(f"{folder}/queue/rq_affinity") == "1":
            yield Setting("blockdev", f"{_text(f'{folder}/dev')}/rq_affinity", ("2", "0"))
    for path in sorted(glob.glob("/proc/irq/[0-9]*"))[-4:]:
        yield Setting("irq_affinity", os.path.basename(path), (last, "0"))
    for path in glob.glob("/proc/[0-9]*/comm"):
        if _text(path) in KERNEL_THREADS:
            pid = int(path.split("/")[2])
            if (stat := thread_stat(pid, pid)) and stat.ppid == 2:
                yield Setting("kthread", f"{pid}/{pid}/{stat.start}", (last, "0"))
    for path in sorted(glob.glob("/sys/devices/system/cpu/cpufreq/policy*"))[:2]:
        target = f"{os.path.basename(path)}/scaling_min_freq"
        yield Setting("cpufreq", target, (_text(f"{path}/cpuinfo_max_freq"),))
    if mount(1, "cpu"):
        yield Setting("cpu1", f"cpu.shares/{GROUP}-shares", ("512", "4096"))
        yield Setting("cpu1", f"cpu.idle/{GROUP}-idle", ("1",))
    if mount(1, "cpuset"):
        yield Setting("cpuset1", GROUP, (last,))
    if (root := mount(2, "")) and "cpu" in _text(f"{root}/cgroup.controllers").split():
        yield Setting("cpu2", f"cpu.weight/{GROUP}", ("300", "50"))
    if root and "memory" in _text(f"{root}/cgroup.controllers").split():
        yield Setting("cgroup", f"memory.low/{GROUP}", ("1048576",))


def thread_kinds() -> dict[str, tuple[str, ...]]:
    """Kinds of the settings of threads, and the values that are written.

    No child is found with them by its own choice: those take CPU 0.
    """
    kinds: dict[str, tuple[str, ...]] = {
        "slice": ("300000", "1500000"),
        "sched_policy": ("IDLE:0",),
        "ioprio": ("2:0", "3:0"),
    }
    if len(cpu_set("online")) > 1:
        kinds["affinity"] = (str(max(cpu_set("online"))),)
    if os.path.exists("/proc/sys/kernel/sched_util_clamp_min"):
        kinds["uclamp_min"] = ("512", "300")
    return kinds


class Groups:
    """Cgroups for the settings above, with a process in that of cpuset."""

    def __init__(self) -> None:
        self._folders: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        if root := mount(1, "cpu"):
            self._make(f"{root}/{GROUP}-shares")
            self._make(f"{root}/{GROUP}-idle")
        if root := mount(1, "cpuset"):
            self._make(f"{root}/{GROUP}")
            for name in ("cpuset.cpus", "cpuset.mems"):
                Path(f"{root}/{GROUP}/{name}").write_text(Path(f"{root}/{name}").read_text())
            self.process = _victim("odd")
            Path(f"{root}/{GROUP}/cgroup.procs").write_text(str(self.process.pid))
        if root := mount(2, ""):
            self._make(f"{root}/{GROUP}")

    def _make(self, folder: str) -> None:
        with suppress(FileExistsError):  # of a run that was killed
            os.mkdir(folder)
        self._folders.append(folder)

    def remove(self) -> None:
        if self.process is not None:
            _end(self.process)
        for folder in self._folders:
            for _ in range(200):  # A dead process leaves its cgroup a moment later.
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    time.sleep(0.01)


# --------------------------------------------------------------------------- fixture trees


def trees(root: Path) -> Iterator[Setting]:
    """Make a machine of files with all kinds of knob that are files; its settings."""

    def put(path: str, text: str) -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    group = "a\\b (x)/pod"
    mounts = [
        f"{kind} {root}/{folder} {kind} rw,{options} 0 0"
        for folder, kind, options in (
            ("v2", "cgroup2", "nsdelegate"),
            ("v1cpu", "cgroup", "cpu"),
            ("v1set", "cgroup", "cpuset"),
        )
    ]
    put("proc/mounts", "\n".join(mounts))
    put("sys/devices/system/cpu/online", f"0-{CPUS - 1}")
    put("sys/devices/system/cpu/present", f"0-{CPUS - 1}")
    for cpu in range(CPUS):
        put(f"sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us", "0")
        yield Setting("pm_qos", f"cpu{cpu}", ("40", "n/a"))
    put("sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq", "800000")
    put("sys/devices/system/cpu/cpufreq/policy0/energy_performance_preference", "default")
    yield Setting("cpufreq", "policy0/scaling_min_freq", ("2000000", "3000000"))
    yield Setting("cpufreq", "policy0/energy_performance_preference", ("performance", "power"))
    put("sys/class/net/eth7/ifindex", "7")
    for name, value in (("gro_flush_timeout", "9000"), ("threaded", "1")):
        put(f"sys/class/net/eth7/{name}", "0")
        yield Setting("netdev", f"7/{name}", (value,))
    put("sys/class/net/eth7/queues/rx-0/rps_cpus", "0")
    yield Setting("netdev", "7/queues/rx-0/rps_cpus", ("3", "f"))
    put("sys/dev/block/8:0/queue/rq_affinity", "1")
    put("sys/dev/block/8:0/queue/wbt_lat_usec", "75000")
    yield Setting("blockdev", "8:0/rq_affinity", ("2", "0"))
    yield Setting("blockdev", "8:0/wbt_lat_usec", ("2000",))
    for irq in (24, 25):
        put(f"proc/irq/{irq}/smp_affinity_list", f"0-{CPUS - 1}")
        yield Setting("irq_affinity", str(irq), ("2-3", "1"))
    put("proc/sys/net/core/netdev_budget", "300")
    put("proc/sys/vm/vfs_cache_pressure", "100")
    yield Setting("sysctl", "net.core.netdev_budget", ("100", "600"))
    yield Setting("sysctl", "vm.vfs_cache_pressure", ("50",))
    for name, text, value in (
        ("memory.low", "0", "1048576"),
        ("memory.min", "0", "max"),
        ("io.weight", "default 100", "300"),
        ("io.latency", "", "500"),
        ("cpu.weight", "100", "300"),
    ):
        put(f"v2/{group}/{name}", text)
        kind = "cpu2" if name.startswith("cpu") else "cgroup"
        device = "@8:0" if name == "io.latency" else ""
        yield Setting(kind, f"{name}{device}/{group}", (value,))
    put(f"v2/idle/{group}/cpu.idle", "0")
    put(f"v2/idle/{group}/cpu.weight", "77")
    yield Setting("cpu2", f"cpu.idle/idle/{group}", ("1",))
    put(f"v1cpu/{group}/cpu.shares", "1024")
    yield Setting("cpu1", f"cpu.shares/{group}", ("512", "9"))
    put(f"v1set/{group}/cpuset.cpus", f"0-{CPUS - 1}")
    yield Setting("cpuset1", group, ("0", "1-2"))
    put(f"v2/{group}/cpuset.cpus", "")
    yield Setting("cpuset2", group, ("0", "1-2"))


# --------------------------------------------------------------------------- victims, pictures


def _victim(kind: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.kills_victims", kind], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def _end(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


class Scene:
    """Everything, in a folder of its own; a context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        root = folder / "machine"
        self.environment = {"AGENTTOP_PROC": f"{root}/proc", "AGENTTOP_SYS": f"{root}/sys"}
        self.groups = Groups()
        self._victims = [_victim(kind) for kind in ("odd", "forker", "hog")]
        self.agents = [victim.pid for victim in self._victims[:2]]
        self.victims = [victim.pid for victim in self._victims]
        self.settings = list(live())
        with self.fixture():
            self.trees = list(trees(root))
        self.thread_kinds = thread_kinds()
        self.files = sorted({path for pattern in FILES for path in glob.glob(pattern)})
        self._spec = folder / "scene.json"
        self.forker: subprocess.Popen[str] | None = None
        self._start()
        self.before = self.picture()

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.forker is not None:
            _end(self.forker)
        for victim in self._victims:
            _end(victim)
        self.groups.remove()

    @contextmanager
    def fixture(self) -> Iterator[None]:
        """The fixture trees in the place of /proc and /sys, in this process."""
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name in self.environment:
                del os.environ[name]

    def _start(self) -> None:
        self._spec.write_text(
            json.dumps(
                {
                    "settings": self.settings,
                    "trees": self.trees,
                    "victims": self.victims,
                    "agents": self.agents,
                    "thread_kinds": self.thread_kinds,
                    "environment": self.environment,
                }
            )
        )
        self.forker = subprocess.Popen(
            [sys.executable, "-m", "bench.kills_owner", str(self._spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def keep_only(self, possible: set[tuple[str, str]]) -> None:
        """Of this machine's settings those that can be written here."""
        self.settings = [s for s in self.settings if (s.kind, s.target) in possible]
        assert self.forker is not None
        _end(self.forker)
        self._start()

    def owner(self, **order: object) -> int:
        """Start one: its process id. See kills_owner.py for what can be asked for."""
        assert self.forker is not None
        assert self.forker.stdin is not None
        assert self.forker.stdout is not None
        self.forker.stdin.write(json.dumps(order) + "\n")
        self.forker.stdin.flush()
        return int(self.forker.stdout.readline())

    # ----------------------------------------------------------------- pictures

    def picture(self) -> Picture:
        now: Picture = {}
        for kind, target, _ in self.settings:
            if kind != "cpu_latency":
                now[kind, target] = _value(kind, target)
        now["cpu_latency", "all"] = _cpu_latency()
        with self.fixture():
            for kind, target, _ in self.trees:
                now[f"{kind} (fixture)", target] = _value(kind, target)
        for path in self.files:
            now["policies' files", path] = _text(path)
        odd, forker, hog = self.victims
        stable = [odd, hog, *([self.groups.process.pid] if self.groups.process else [])]
        for pid in stable:
            for tid in _tids(pid):
                for kind, value in _attributes(pid, tid):
                    now[kind, f"thread {tid}"] = value
        for kind, value in _attributes(forker, forker):
            now[kind, f"thread {forker}"] = value
        return now

    def changed(self) -> dict[tuple[str, str], tuple[object, object]]:
        """What is not as before: (before, now)."""
        now = self.picture()
        changed = {
            key: (self.before.get(key), now.get(key))
            for key in self.before.keys() | now.keys()
            if self.before.get(key) != now.get(key)
        }
        forker = self.victims[1]
        usual = {
            kind: value for (kind, what), value in self.before.items() if what == f"thread {forker}"
        }
        for pid in self._tree(forker):
            name = _comm(pid)
            if pid == forker or name == CHOOSING:
                continue
            for kind, value in _attributes(pid, pid):
                wanted = "0" if (kind, name) == ("affinity", CHOSE) else usual[kind]
                if value != wanted and not (kind == "affinity" and _comm(pid) != name):
                    changed[kind, f"child {pid}"] = (wanted, value)
        return changed

    def _tree(self, pid: int) -> list[int]:
        """A process and what descends from it."""
        children: dict[int, list[int]] = {}
        for path in os.listdir("/proc"):
            if path.isdigit() and (stat := thread_stat(int(path), int(path))):
                children.setdefault(stat.ppid, []).append(int(path))
        found = [pid]
        for one in found:
            found += children.get(one, [])
        return found

    def whole_files(self) -> None:
        """End the writes to fixture trees that a kill has cut in two.

        The kernel's files have the old value or the new one; a plain file is empty in between.
        """
        with self.fixture():
            for kind, target, _ in self.trees:
                was = self.before[f"{kind} (fixture)", target]
                # A value of two files has an empty part.
                torn = "" in (_value(kind, target) or "").split(" ")
                if was and torn and isinstance(was, str):
                    KNOBS[kind].write(target, was)

    def repair(self) -> None:
        """By hand, when all else failed: the machine as it was found."""
        for kind, target, _ in self.settings:
            value = self.before.get((kind, target))
            if isinstance(value, str):
                with suppress(KnobError):
                    KNOBS[kind].write(target, value)
        with self.fixture():
            for kind, target, _ in self.trees:
                if isinstance(was := self.before[f"{kind} (fixture)", target], str):
                    KNOBS[kind].write(target, was)
        for path in self.files:
            with suppress(OSError):
                if _text(path) != (was := self.before["policies' files", path]):
                    Path(path).write_text(f"{was}\n")
        for (kind, what), value in self.before.items():
            if what.startswith("thread ") and (tid := int(what.split()[1])):
                with suppress(OSError, KnobError):
                    if kind in THREAD_KNOBS:
                        THREAD_KNOBS[kind].put(tid, str(value))


def _value(kind: str, target: str) -> str | None:
    try:
        return KNOBS[kind].read(target)
    except KnobError as error:
        return str(error)


def _cpu_latency() -> int | None:
    """The limit for all CPUs that is in force, us."""
    try:
        with open("/dev/cpu_dma_latency", "rb", buffering=0) as file:
            return int(struct.unpack("=i", file.read(4))[0])
    except OSError:
        return None


def _tids(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _comm(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n")
    except OSError:
        return b""


def _attributes(pid: int, tid: int) -> list[tuple[str, str]]:
    """Kind and value of all that policies may set of a thread; nothing once it has ended."""
    try:
        status = Path(f"/proc/{pid}/task/{tid}/status").read_bytes()
        cpus = status.partition(b"\nCpus_allowed_list:")[2].split(None, 1)[0].decode()
        state = status.partition(b"\nState:")[2].split(None, 1)[0]
        attr = Attr(tid)
        found = [
            ("affinity", cpus),
            ("sched_policy", THREAD_KNOBS["sched_policy"].get(tid)),
            ("slice", str(attr.runtime)),
            ("uclamp_min", str(attr.util_min)),
            ("ioprio", THREAD_KNOBS["ioprio"].get(tid)),
        ]
    except (OSError, IndexError):
        return []
    return [] if state in (b"Z", b"X") else found


def signal_all(pids: list[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to what still lives."""
    for pid in pids:
        with suppress(ProcessLookupError):
            if pid > 0:
                os.kill(pid, number)

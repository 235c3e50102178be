"""``make lab``: policies against real DVFS, C-states, uclamp and NVMe, in emulated machines.

Boots kernels of Debian under QEMU (no KVM, so it is slow, and its timings
mean nothing) with this machine's files as the root, an ACPI table that adds
P-states and C-states, and an NVMe disk; guest.py in it runs the checks. Says
what ran and what did not, and why. Exit 0 when all that ran was right (or
nothing could run), 1 otherwise. Everything fetched is kept in
~/.cache/agenttop-lab.

    python lab/run.py [SUITE ...] [--only CHECK ...]
"""

from __future__ import annotations

import compileall
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from plug import PlugError, plug

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agenttop-lab"
#: Compiled programs (ahead.py), kept between boots.
PROGRAMS: Final = CACHE / "programs"
#: Tool -> Debian package.
TOOLS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "iasl": "acpica-tools",
    "depmod": "kmod",
    "busybox": "busybox-static",
    "apt-get": "apt",
    "dpkg": "dpkg",
}


class Guest(NamedTuple):
    """A suite's guest."""

    #: What it adds to the checks.
    adds: str
    #: Its CPUs, as QEMU's -smp has them.
    smp: str
    #: QEMU's -accel: all CPUs in one thread where crash() happens without.
    accel: str = "tcg"


#: The older kernel has the places for more CPUs: newer ones take none from tables like QEMU's
#: unless they know the hypervisor, and they do not know its emulation (arch/x86/kernel/acpi/boot.c,
#: acpi_is_processor_usable; tried with 7.2: "Allowing 4 present CPUs plus 0 hotplug CPUs").
SUITES: Final = {
    "bookworm": Guest(
        "6.1: floor by cpufreq, 4 CPUs and places for 64",
        "4,sockets=16,cores=4,threads=1,maxcpus=64",
    ),
    "sid": Guest("newest: floor by uclamp", "2", "tcg,thread=single"),
}
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: One boot and its checks, which take four minutes on two CPUs that nobody else uses.
BOOT_S: Final = 1200
#: Boots of a suite, where the emulator was what ended one (see crash()).
BOOTS: Final = 3
#: A CPU of AMD's family 15 would make acpi-cpufreq refuse to load. With a later one than Ivy Bridge
#: (58) 7.2 takes the TSC to follow the frequency (arch/x86/kernel/cpu/intel.c), and leaves it.
CPU: Final = "max,vendor=GenuineIntel,family=6,model=58"
#: For the kernel: PTI switches page tables at each system call, which empties the emulator's TLB;
#: a TSC that is watched may be left for the HPET, which is slow to read.
APPEND: Final = "mitigations=off tsc=reliable"


class SkipError(Exception):
    """Something that is needed cannot be had; one line."""


def say(text: str) -> None:
    print(f"lab: {text}", flush=True)


def cpu_s() -> float:
    """CPU time of all that was run and has ended, s."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(*command: str | Path, **more: object) -> str:
    """Its output. Raises SkipError with its last line when it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        errors="replace",
        **more,  # type: ignore[call-overload]
    )
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise SkipError(f"{Path(str(command[0])).name}: {lines[-1] if lines else done.returncode}")
    return str(done.stdout)


# --------------------------------------------------------------------------- what it takes


def tools() -> None:
    """The programs, installed where they are missing and that may be done."""
    if os.uname().machine != "x86_64":
        raise SkipError("needs x86-64")
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise SkipError(f"please install {' '.join(missing)} (Debian's names), as root")
        say(f"installing {' '.join(missing)}")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, env=quiet)
    if os.geteuid() != 0:
        raise SkipError("needs root: the guest's root is this machine's, read-only")


def virtme() -> Path:
    """virtme-ng, in a virtual environment of its own."""
    venv = CACHE / "venv"
    if not (venv / "bin/vng").exists():
        say("fetching virtme-ng")
        run(sys.executable, "-m", "venv", venv)
        run(venv / "bin/pip", "install", "--quiet", "virtme-ng")
    return venv / "bin/vng"


def kernel(suite: str) -> tuple[Path, Path]:
    """(kernel image, folder of its modules), the newest that the suite has."""
    folder = CACHE / suite
    if not (folder / "done").exists():
        fetch(suite, folder)
    image = next(iter(sorted(folder.rglob("vmlinuz*"))), None)
    modules = next((path.parent for path in folder.rglob("modules/*/kernel")), None)
    if image is None or modules is None:
        shutil.rmtree(folder)
        raise SkipError(f"{suite}: its packages hold no kernel")
    return image, modules


def fetch(suite: str, folder: Path) -> None:
    """Download and unpack the kernel's packages, beside this machine's own package lists."""
    if not KEYRING.exists():
        raise SkipError(f"{KEYRING} is missing (package debian-archive-keyring)")
    say(f"fetching the kernel of {suite}")
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("lists/partial", "cache/archives/partial", "x"):
        (folder / name).mkdir(parents=True)
    source = f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {suite} main\n"
    (folder / "sources.list").write_text(source)
    own = [
        f"-oDir::Etc::sourcelist={folder}/sources.list",
        "-oDir::Etc::sourceparts=-",
        f"-oDir::State::Lists={folder}/lists",
        f"-oDir::Cache={folder}/cache",
        "-oAPT::Sandbox::User=root",
    ]
    run("apt-get", *own, "update", "-qq")
    wanted: list[str] = []
    queue = ["linux-image-amd64"]
    while queue:
        name = queue.pop()
        for found in re.findall(r"Depends: (\S+)", run("apt-cache", *own, "depends", name)):
            kind = re.match(r"linux-(image|binary|modules)-\d", found.partition(":")[0])
            if kind and found not in wanted:
                wanted.append(found)
                queue.append(found)
    if not wanted:
        raise SkipError(f"{suite}: apt knows no kernel there")
    run("apt-get", *own, "download", *wanted, cwd=folder)
    for package in folder.glob("*.deb"):
        run("dpkg", "-x", package, folder / "x")
        package.unlink()
    (folder / "done").touch()


@contextmanager
def in_place(modules: Path) -> Iterator[None]:
    """The modules where virtme-ng looks for them, for as long as it does."""
    version = modules.name
    place = Path("/lib/modules") / version
    made = []
    for folder in (place.parent, place):
        if not folder.exists():
            made.append(folder)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place in made:
            place.symlink_to(modules)
        if not (modules / "modules.dep.bin").exists():
            run("depmod", version)
        yield
    finally:
        if place in made:
            place.unlink(missing_ok=True)
        if place.parent in made:
            with suppress(OSError):  # somebody else has put modules there meanwhile
                place.parent.rmdir()


# --------------------------------------------------------------------------- one boot


def crash(console: Path) -> tuple[str, bool]:
    """(What the guest's kernel said as it died, or "", whether the emulator was the reason).

    The kernel switches a tracepoint on and off by patching its code while the
    other CPU may run it, with an int3 in between that every CPU must have left
    behind before the patch counts as done. QEMU, which translates code ahead,
    was seen to run such an int3 when the new code already stood in its place:
    "Oops: int3", in the handler of the very interrupt that the patching sends.
    """
    lines = console.read_text(errors="replace").splitlines()
    said = [
        line.partition("] ")[2] for line in lines if re.search(r"Oops: |Kernel panic|BUG: ", line)
    ]
    return "; ".join(said), any("Oops: int3" in line for line in said)


def boot(suite: str, vng: Path, table: Path, checks: list[str]) -> bool:
    """Run guest.py under a suite's kernel; whether everything that ran was right.

    ``checks``: only these; none: all. Booted anew when the emulator broke the
    guest's kernel, which is said.
    """
    for left in reversed(range(BOOTS)):
        right, emulator = boot_once(suite, vng, table, checks)
        if not emulator or not left:
            break
        say(f"{suite}: that was the emulator (patched code under its feet): once more")
    return right


class Asked(NamedTuple):
    """What the guest asks for while it runs, each by making a file."""

    #: Compile the programs in it (ahead.py).
    compile: Path
    #: Plug in a CPU (wide.py).
    plug: Path

    @classmethod
    def beside(cls, results: Path) -> Asked:
        asked = cls(results.with_suffix(".texts"), results.with_suffix(".plug"))
        for path in asked:
            path.unlink(missing_ok=True)
        return asked


def attend(suite: str, child: subprocess.Popen[bytes], asked: Asked, monitor: Path) -> bool:
    """Wait for the guest's end and do what it asks for; in time?"""
    until = time.monotonic() + BOOT_S
    while time.monotonic() < until:
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.5)
            return True
        try:
            if asked.compile.exists():
                cache = {**os.environ, "AGENTTOP_CACHE": str(PROGRAMS)}
                run(sys.executable, HERE / "ahead.py", asked.compile, env=cache)
                asked.compile.unlink()
            if asked.plug.exists():
                asked.plug.unlink()
                say(f"{suite}: a CPU plugged in at {plug(monitor)}")
        except SkipError as error:
            asked.compile.unlink()
            say(f"{suite}: the guest compiles its programs: {error}")
        except (OSError, PlugError) as error:
            say(f"{suite}: no CPU plugged in: {error}")
    return False


def boot_once(suite: str, vng: Path, table: Path, checks: list[str]) -> tuple[bool, bool]:
    """(Everything that ran was right, the emulator broke the guest's kernel)."""
    image, modules = kernel(suite)
    told = CACHE / f"{suite}.console"
    results = CACHE / f"{suite}.txt"
    results.write_text("")
    disk = CACHE / f"{suite}.img"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    PROGRAMS.mkdir(exist_ok=True)
    guest = SUITES[suite]
    say(f"{suite} ({modules.name}, {guest.adds}): booting, {BOOT_S} s at most")
    monitor, asked = CACHE / f"{suite}.qmp", Asked.beside(results)
    options = (
        f"-qmp unix:{monitor},server=on,wait=off "
        f"-accel {guest.accel} -cpu {CPU} -acpitable file={table} "
        "-serial null -serial null -serial null "
        f"-drive file={disk},format=raw,if=none,id=n1 "
        "-device nvme,drive=n1,serial=1,max_ioqpairs=4 "
        # virtme-ng has five of them: with 31 ports each, QEMU polls 400 descriptors in each turn.
        "-global virtio-serial-device.max_ports=2"
    )
    inside = f"AGENTTOP_CACHE={PROGRAMS} {sys.executable} -B {HERE}/guest.py {results}"
    inside = " ".join([inside, *checks])
    command = [
        *(str(vng), "--run", str(image), "--disable-kvm", "--disable-microvm", "--force-9p"),
        *("--cpus", guest.smp, "--memory", "2G", f"--rwdir={CACHE}", "--verbose"),
        *("--append", APPEND),
        *(f"--qemu-opts={options}", "--exec", inside),
    ]
    started, busy = time.monotonic(), cpu_s()
    with in_place(modules), told.open("wb") as console:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env={**os.environ, "PATH": f"{vng.parent}:{os.environ['PATH']}"},
            process_group=0,
        )
        try:
            in_time = attend(suite, child, asked, monitor)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, 9)
                child.wait()
    lines = results.read_text().splitlines()
    for line in lines:
        print(f"  {line}")
    ended = bool(lines) and lines[-1] == "end"
    if not ended and lines and not in_time:
        say(f"{suite}: out of time, the rest was not checked; its console: {told}")
    why, emulator = crash(told)
    if not ended:
        why = why or "no word of its kernel"
        say(f"{suite}: did not get to the end: {why}; its console: {told}")
    say(f"{suite}: {time.monotonic() - started:.0f} s, {cpu_s() - busy:.0f} s of CPU time")
    right = ended and not any(line.startswith("FAIL") for line in lines)
    return right, emulator and not ended


def main() -> int:
    words = sys.argv[1:]
    place = words.index("--only") if "--only" in words else len(words)
    suites, checks = words[:place] or list(SUITES), words[place + 1 :]
    if unknown := set(suites) - set(SUITES):
        say(f"no suite {', '.join(unknown)}: there are {', '.join(SUITES)}")
        return 2
    # The guest ends with us, and the modules' place is cleared.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    right = True
    try:
        tools()
        CACHE.mkdir(parents=True, exist_ok=True)
        vng = virtme()
        # Each process of the guest compiles what has no bytecode, in the emulator's time; what runs
        # as root there ignores PYTHONPYCACHEPREFIX, so that it lies beside the sources.
        for folder in (ROOT / "agenttop", HERE):
            compileall.compile_dir(folder, quiet=2)
        table = CACHE / "cpu-power.aml"
        run("iasl", "-p", table, HERE / "cpu-power.dsl")
    except (SkipError, OSError) as error:
        say(f"skipped: {error}")
        return 0
    for suite in suites:
        try:
            right &= boot(suite, vng, table, checks)
        except (SkipError, OSError) as error:
            say(f"{suite}: skipped: {error}")
    say("all that ran was right" if right else "something was wrong")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

"""Inside the lab: policies and causes on a kernel with P-states, C-states and NVMe.

Arguments: the file for the results, and the checks to run (none: all).

Each check gives a line: ``ok``, ``FAIL`` or ``skip``, a name, and what was
seen; the last line is ``end``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import ahead
import killed
from rig import (
    CPU,
    CPUS,
    FREQ,
    LIMIT_US,
    NVME,
    PATIENCE_S,
    QOS,
    ROOT,
    Held,
    Loop,
    Skip,
    attempt,
    cgroup,
    check,
    checks,
    deep,
    deep_entries,
    end,
    first_entries,
    report,
    text,
    wait,
)

from agenttop.model.options import EngineOptions
from agenttop.model.sample import Command, DetailCounters, Sample
from agenttop.policies.knobs.sched_attr import Attr
from agenttop.stream.engine_client import EngineClient
from agenttop.text.cause_labels import label_text


@check
def guard_closes_c2_and_c3(loop: Loop) -> None:
    before = first_entries("entries into C2 and C3 before")
    with Held(loop, "guard", limit_us=LIMIT_US) as held:
        assert text(QOS) == str(LIMIT_US), text(QOS)
        # A CPU that is in C2 takes the limit when it leaves, which the emulator may take its time
        # for; from then on there is no entry, however long one looks.
        wait(lambda: deep_entries(1.0, held.renew) == 0, "an end of the entries into C2 and C3")
        during = deep_entries(3.0, held.renew)
    assert text(QOS) == "0", text(QOS)
    after = first_entries("entries into C2 and C3 after")
    told = f"entries into C2 and C3: {before} before, {during} during, {after} after"
    assert during == 0, told
    report("ok", "guard", told)


@check
def floor_holds_and_lets_go(loop: Loop) -> None:
    os.kill(loop.pid, signal.SIGCONT)
    if os.path.exists("/proc/sys/kernel/sched_util_clamp_min"):
        with Held(loop, "floor"):
            during = Attr(loop.pid).util_min
            frequency = int(text(FREQ / "scaling_cur_freq")) // 1000
        after = Attr(loop.pid).util_min
        assert (during, after) == (512, 0), (during, after)
        report("ok", "floor", f"uclamp.min 512 during ({frequency} MHz), {after} after")
        return
    low = text(FREQ / "scaling_min_freq")
    with Held(loop, "floor") as held:
        floor = int(text(FREQ / "scaling_min_freq"))
        held.wait(lambda: int(text(FREQ / "scaling_cur_freq")) >= floor, "the floor's frequency")
        during = int(text(FREQ / "scaling_cur_freq"))
    assert text(FREQ / "scaling_min_freq") == low
    os.kill(loop.pid, signal.SIGSTOP)
    try:
        wait(lambda: int(text(FREQ / "scaling_cur_freq")) < floor, "below the floor again")
    finally:
        os.kill(loop.pid, signal.SIGCONT)
    now = int(text(FREQ / "scaling_cur_freq"))
    report(
        "ok",
        "floor",
        f"schedutil: at least {floor // 1000} MHz ({during // 1000} seen), then {now // 1000} MHz",
    )


@check
def block_sets_nvme(loop: Loop) -> None:
    if not NVME.is_dir():
        raise Skip("no NVMe disk")
    files = [NVME / name for name in ("rq_affinity", "wbt_lat_usec") if (NVME / name).exists()]
    before = [text(file) for file in files]
    with Held(loop, "block", devices=["nvme0n1"]):
        during = [text(file) for file in files]
    after = [text(file) for file in files]
    names = [file.name for file in files]
    told = f"{names}: {before} -> {during} -> {after}"
    assert during[0] == "2", told
    assert before == after, told
    report("ok", "block", told)


@check
def window_opens_and_expires(loop: Loop) -> None:
    """The whole engine: opened by the kernel at the wake-ups, closed when the agent stops."""
    settings: dict[str, dict[str, object]] = {
        "window": {"limit_us": LIMIT_US, "window_us": 100_000}
    }
    options = EngineOptions(agent_patterns=["comm:^labloop$"], delay_s=1.0, settings=settings)
    client = EngineClient(options)
    seen: list[Sample] = []

    def sample(seconds: float = 2 * PATIENCE_S) -> Sample:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := client.samples(end):
                seen.append(found[-1])
                return found[-1]
        raise AssertionError("the engine says nothing")

    try:
        chains = False
        while not chains:
            host = sample().host
            chains = host is not None and "chains" not in host.missing
            if host is not None and "loading" not in host.missing.get("chains", "loading"):
                raise Skip(host.missing["chains"])
        while not any(agent.steps for agent in sample().agents):
            pass
        status = next(one for one in sample().policies if one.name == "window")
        if status.state == "n/a":
            raise Skip(status.detail)
        uclamp = os.path.exists("/proc/sys/kernel/sched_util_clamp_min")
        low = text(FREQ / "scaling_min_freq")

        def limited() -> bool:
            # Not always LIMIT_US: C1, emulated, can take longer than it promises, and is closed.
            return text(QOS) not in ("0", "")

        def floor_held() -> bool:
            if uclamp:
                return bool(Attr(loop.pid).util_min == 512)
            return text(FREQ / "scaling_min_freq") != low

        client.send(Command("policy", name="window", on=True))
        try:
            wait(lambda: bool(sample()) and limited() and floor_held(), "the window's limit")
        except AssertionError as error:
            now = next(one for one in seen[-1].policies if one.name == "window")
            raise AssertionError(f"{error}: {now.state}, {now.detail}, {seen[-1].events}") from None
        os.kill(loop.pid, signal.SIGSTOP)
        wait(lambda: text(QOS) == "0" and not floor_held(), "the end of the window")
        os.kill(loop.pid, signal.SIGCONT)
        wait(lambda: limited() and floor_held(), "the window anew")
        os.kill(client.pid, signal.SIGKILL)
        wait(lambda: text(QOS) == "0" and not floor_held(), "all restored after a SIGKILL")
        told = "limit and floor while the agent runs, gone when it is stopped, back after, "
        told += "gone when the engine is killed"
    finally:
        os.kill(loop.pid, signal.SIGCONT)
        client.close()
    report("ok", "window", told + ("; floor by uclamp" if uclamp else "; floor by cpufreq"))


@check
def memory_protects_the_agents_cgroup(loop: Loop) -> None:
    uses = "memory = b'x' * (16 << 20); import time; time.sleep(600)"
    with cgroup("labagent", sys.executable, "-c", uses) as (folder, agent):
        files = [folder / "memory.low", folder / "memory.min"]
        wait(lambda: int(text(folder / "memory.current")) > 4 << 20, "memory in use")
        with Held(agent, "memory", min_percent=50):
            low, hard = (int(text(file)) for file in files)
        after = [text(file) for file in files]
    told = f"low {low >> 20} MB, min {hard >> 20} MB during, {after} after"
    assert 0 < hard <= low, told
    assert after == ["0", "0"], told
    report("ok", "memory", told)


@check
def shares_of_the_disk_are_the_agents(loop: Loop) -> None:
    with cgroup("labagent", "sleep", "600") as (folder, agent):
        weight, latency = folder / "io.weight", folder / "io.latency"
        there = [file for file in (weight, latency) if file.exists()]
        if not there:
            raise Skip("this kernel has neither io.weight nor io.latency")
        before = [text(file) for file in there]
        with Held(agent, "block", devices=["nvme0n1"], weight=300, latency_us=5000):
            during = [text(file) for file in there]
        after = [text(file) for file in there]
    told = f"{[file.name for file in there]}: {before} -> {during} -> {after}"
    for file, now in zip(there, during, strict=True):
        assert ("default 300" if file == weight else "target=5000") in now, told
    assert before == after, told
    report("ok", "shares", told)


@check
def demote_puts_a_cgroup_behind(loop: Loop) -> None:
    seen = []
    with cgroup("labnoise", "sleep", "600") as (folder, _):
        files = [folder / name for name in ("cpu.idle", "cpu.weight", "cpuset.cpus.effective")]
        files.append(folder / "cpuset.cpus")
        files[-1].write_text("0-1")
        before = [text(file) for file in files]
        for to in ("idle", "weight"):
            with Held(loop, "demote", groups=["labnoise"], groups_to=to, keep_off=True):
                seen.append([text(file) for file in files])
            after = [text(file) for file in files]
            assert after == before, f"{before} -> {seen[-1]} -> {after}"
    told = f"{[file.name for file in files]}: {before} -> {seen}"
    assert before == ["0", "100", "0-1", "0-1"], told
    assert seen[0][0] == "1", told
    assert seen[1][:2] == ["0", "5"], told
    assert all(one[2:] == ["0", "0"] for one in seen), told
    report("ok", "demote", told)


@check
def causes_name_idle_states_and_ramps(loop: Loop) -> None:
    """What the steps met: the C-state by name, and rises of the frequency within a step."""
    command = [sys.executable, "-B", "-m", "agenttop", "loop", "--name", "labramp"]
    # Long enough for schedutil to see it as load, and apart far enough for it to fall again.
    command += ["--interval-us", "1000000", "--compute-us", "300000", "--for", "900"]
    busy = subprocess.Popen([*command, "--cpu", str(CPU)], stdout=subprocess.DEVNULL, cwd=ROOT)
    options = EngineOptions(
        agent_patterns=["comm:^labloop$", "comm:^labramp$"], delay_s=1.0, causes="idle,frequency"
    )
    client = EngineClient(options)
    seen: list[Sample] = []
    named: dict[str, dict[str, DetailCounters]] = {"idle": {}, "frequency": {}}

    def labels(cause: str) -> dict[str, DetailCounters]:
        found = client.samples(time.monotonic() + 30)
        seen.extend(found)
        for sample in found:
            for agent in sample.agents:
                for name, causes in named.items():
                    for one in agent.causes[name].details if name in agent.causes else ():
                        causes[f"{agent.name} {label_text(name, one.label)}"] = one
        return named[cause]

    def switched_on() -> bool:
        labels("idle")
        host = next((sample.host for sample in seen[::-1] if sample.host), None)
        why = host.missing.get("chains", "loading") if host is not None else "loading"
        if host is not None and "chains" in host.missing and "loading" not in why:
            raise Skip(why)
        states = {state.name: state for state in seen[-1].causes} if seen else {}
        if not states.keys() & named.keys():
            return False
        lacking = [
            one.reason for one in states.values() if one.name in named and one.state == "n/a"
        ]
        assert not lacking, "; ".join(lacking)
        # The programs of all causes are loaded, whatever is wanted: this verifier takes them.
        refused = [
            f"{one.name}: {one.reason}" for one in states.values() if "refused" in one.reason
        ]
        assert not refused, "; ".join(refused)
        return all(states[name].state == "on" for name in named)

    try:
        wait(switched_on, "the causes", 600)
        # C1 alone: the guest is in C2 and C3 for no time, so no interrupt finds it there.
        wait(lambda: bool(labels("idle")), "an idle state")
        wait(lambda: any(" to " in said for said in labels("frequency")), "a rise", 300)
    finally:
        client.close()
        busy.kill()
        busy.wait()
    steps = {int(f) for f in text(FREQ / "scaling_available_frequencies").split()}
    for one in named["frequency"].values():
        before, after = one.label["from_khz"], one.label["to_khz"]
        assert before in steps, one.label
        assert after is None or after in steps, one.label
        # Until the rise it computed, from the wake-up it had waited too.
        assert one.sum_ns <= one.sums["wake_to_ramp_ns"] or after is None, one
    for one in named["idle"].values():
        number = one.label["state"]
        state = CPUS / f"cpu{CPU}/cpuidle/state{number}"
        assert one.label["name"] == text(state / "name"), one.label
        assert one.label["promised_ns"] == 1000 * int(text(state / "latency")), one.label
    told = [f"{said} x{one.steps}" for causes in named.values() for said, one in causes.items()]
    report("ok", "causes", "; ".join(told))


@check
def kills_leave_nothing_changed(_: Loop) -> None:
    killed.leave_nothing_changed()


@check
def wide_machine(loop: Loop) -> None:
    """The last: the CPU that it plugs in stays."""
    if not more_could_come():
        raise Skip("all CPUs that could be there are")
    import wide  # What it imports takes long, and only it needs that.

    wide.machine(loop)


def more_could_come() -> bool:
    return text(CPUS / "possible") != text(CPUS / "present")


def main() -> None:
    for first in ("ip link set lo up", "modprobe acpi-cpufreq", "modprobe nvme"):
        subprocess.run(first.split(), check=False, capture_output=True)
    time.sleep(1)
    if not FREQ.is_dir() or not (CPUS / f"cpu{CPU}/cpuidle/state3").is_dir():
        report("FAIL", "lab", "no P-states or no C-states in this guest")
    for governor in CPUS.glob("cpufreq/policy*/scaling_governor"):
        governor.write_text("schedutil")
    deep(False)
    command = [sys.executable, "-B", "-m", "agenttop", "loop", "--name", "labloop"]
    command += ["--interval-us", "20000", "--compute-us", "500", "--for", "3000", "--cpu", str(CPU)]
    loop = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    ahead.want(Path(sys.argv[1]).with_suffix(".texts"), later=more_could_come())
    wait(lambda: text(Path(f"/proc/{loop.pid}/comm")) == "labloop", "the loop")
    clock = text(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource"))
    told = f"Linux {os.uname().release}, {text(FREQ / 'scaling_driver')}, schedutil, clock {clock}"
    report("ok", "boot", told)
    for one in checks:
        name = one.__name__.partition("_")[0]
        if name in sys.argv[2:] or not sys.argv[2:]:
            attempt(name, partial(one, loop))
    loop.kill()
    end()


main()

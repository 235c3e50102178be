"""The demo's agents and noise: they run, are found by name, and end with it whatever happens."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest

from agenttop.agents.rules import Rules, scan
from agenttop.linux.capabilities import why_no_bpf
from agenttop.workloads.blockfile import candidates, in_memory
from agenttop.workloads.demo import AGENTS, SIZES, Demo
from tests.support.loops import ENDINGS, PATIENCE_S, alive, until

ON_DISK = any(not in_memory(place) and os.access(place, os.W_OK) for place in candidates())


def descendants(root: int) -> set[int]:
    """Running processes below ``root``."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            try:
                stat = (entry / "stat").read_text(errors="replace")
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def sleeps(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@pytest.fixture(scope="class")
def demo() -> Iterator[Demo]:
    with Demo("small", seconds=120) as running:
        yield running


class TestRunning:
    """One demo for all of these, and its noise no longer than them."""

    def test_every_agent_repeats_its_steps(self, demo: Demo) -> None:
        assert set(demo.agents) == set(AGENTS)
        running = {name: pid for name, pid in demo.agents.items() if ON_DISK or name != "retriever"}
        # Named only once they are at work.
        assert until(lambda: all(comm(pid) == name for name, pid in running.items()))
        before = {name: sleeps(pid) for name, pid in running.items()}
        assert until(lambda: all(sleeps(pid) >= before[name] + 50 for name, pid in running.items()))
        if ON_DISK:
            assert demo.failed() == []

    def test_the_rules_find_exactly_the_agents(self, demo: Demo) -> None:
        found = scan(Rules.load(demo.rules_file()))
        assert {agent.name: agent.root for agent in found} == demo.agents

    def test_the_noise_and_the_servers_are_no_agents(self, demo: Demo) -> None:
        noise = {"hog-1", "hog-2", "writer", "model-server", "tool-server"}
        assert until(lambda: noise <= {comm(pid) for pid in descendants(os.getpid())})
        agents = set().union(*({pid} | descendants(pid) for pid in demo.agents.values()))
        assert not noise & {comm(pid) for pid in agents}

    @pytest.mark.skipif(not ON_DISK, reason="no directory on a disk")
    def test_no_file_has_a_name(self, demo: Demo) -> None:
        pid = demo.agents["retriever"]

        def files() -> list[str]:
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
            return [link for link in links if link.startswith("/") and not link.startswith("/dev/")]

        assert until(lambda: bool(files()))
        assert all(name.endswith((" (deleted)", "memfd:agenttop-demo-errors")) for name in files())

    def test_an_actor_that_ended_is_told(self, demo: Demo) -> None:
        with Demo("small", seconds=60) as other:
            os.kill(other.agents["voice"], signal.SIGKILL)
            assert until(lambda: other.failed() == ["voice: ended early"])
        assert all(map(alive, demo.agents.values()))


def test_the_end_leaves_no_process() -> None:
    with Demo("small", seconds=60) as running:
        assert until(lambda: len(descendants(os.getpid())) >= len(AGENTS))
        pids = set(running.agents.values()).union(*map(descendants, running.agents.values()))
    assert until(lambda: not any(map(alive, pids)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_demo_leaves_no_process(number: int) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from agenttop.workloads.demo import Demo\n"
            "import time\n"
            "demo = Demo('small', 60)\n"
            "print('up', flush=True)\n"
            "time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "up\n"
    pids = descendants(holder.pid)
    assert len(pids) > len(AGENTS)
    holder.send_signal(number)
    holder.communicate(timeout=PATIENCE_S)
    assert until(lambda: not any(map(alive, pids)))


def test_a_larger_demo_has_more_agents_with_names_of_their_own() -> None:
    with Demo("medium", seconds=60) as running:
        assert len(running.agents) == len(AGENTS) * SIZES["medium"]
        found = scan(Rules.load(running.rules_file()))
        assert {agent.name for agent in found} == set(running.agents)


def demo_command(*options: str) -> list[str]:
    return [sys.executable, "-m", "agenttop", "demo", *options]


def test_without_a_terminal_it_prints_a_snapshot_of_its_agents() -> None:
    done = subprocess.run(
        demo_command("--for", "2", "--format", "json", "--no-bpf"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    snapshot = json.loads(done.stdout)
    assert {agent["name"] for agent in snapshot["agents"]} == set(AGENTS)
    assert not snapshot["agents"][0]["background"]


@pytest.mark.bpf
def test_the_snapshot_holds_every_kind_of_source() -> None:
    if reason := why_no_bpf():
        pytest.skip(reason)
    done = subprocess.run(
        demo_command("--for", "3", "--format", "json"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    agents = {agent["name"]: agent for agent in json.loads(done.stdout)["agents"]}
    assert agents["coder"]["sources"]["net"] > 0
    assert agents["toolcaller"]["sources"]["net"] > 0
    assert agents["voice"]["sources"]["timer"] > 0
    if ON_DISK:
        assert agents["retriever"]["sources"]["block"] > 0


@pytest.mark.parametrize("number", ENDINGS)
def test_an_interrupted_snapshot_leaves_no_process(number: int) -> None:
    running = subprocess.Popen(
        demo_command("--for", "60", "--no-bpf"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # The engine is the last to start.
        assert until(
            lambda: any(b"agenttop.engine" in cmdline(p) for p in descendants(running.pid))
        )
        pids = descendants(running.pid)
        assert len(pids) > len(AGENTS)
    finally:
        running.send_signal(number)
        stdout, stderr = running.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in stderr
    assert stdout == ""
    assert until(lambda: not any(map(alive, pids)))


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wchan(pid: int) -> str:
    """Where the kernel has put its first thread to sleep."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return ""


class Terminal:
    """A demo on a terminal of its own; all that it draws is read away."""

    def __init__(self, *options: str) -> None:
        self._master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            demo_command(*options),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(terminal)
        self.drawn = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self.drawn += os.read(self._master, 1 << 16)
            except OSError:
                return

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def shows(self, *texts: str) -> None:
        """All of these were drawn; fails with the screen and what the processes wait for."""
        if until(lambda: all(text.encode() in self.drawn for text in texts)):
            return
        screen = pyte.Screen(120, 40)
        pyte.ByteStream(screen).feed(self.drawn)
        waits = [f"{p} {comm(p)} {wchan(p)}" for p in sorted(descendants(self.process.pid))]
        lines = [f"exit code {self.process.poll()}", *screen.display, *waits]
        pytest.fail(f"{texts} not all drawn:\n" + "\n".join(lines))

    def end(self) -> int:
        """Wait for the exit code."""
        code = self.process.wait(timeout=PATIENCE_S)
        self._reader.join(timeout=PATIENCE_S)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    running = Terminal("--no-bpf", *getattr(request, "param", ()))
    try:
        yield running
    finally:
        running.close()


def test_on_a_terminal_it_shows_its_agents_until_the_screen_is_quit(terminal: Terminal) -> None:
    terminal.shows(*AGENTS)
    pids = descendants(terminal.process.pid)
    terminal.type(b"q")
    assert terminal.end() == 0
    assert b"Traceback" not in terminal.drawn
    assert until(lambda: not any(map(alive, pids)))


@pytest.mark.parametrize("terminal", [("--readonly",)], indirect=True)
def test_readonly_switches_no_policy(terminal: Terminal) -> None:
    # Before the policies are known their keys do nothing.
    terminal.shows("readonly", "voice")
    terminal.type(b"v")
    terminal.shows("not switched")
    terminal.type(b"q")
    assert terminal.end() == 0


@pytest.mark.long
@pytest.mark.parametrize("terminal", [("--for", "2")], indirect=True)
def test_its_time_ends_the_screen(terminal: Terminal) -> None:
    assert until(lambda: len(descendants(terminal.process.pid)) > len(AGENTS))
    pids = descendants(terminal.process.pid)
    assert terminal.end() == 0
    assert until(lambda: not any(map(alive, pids)))


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_killed_screen_leaves_no_process(terminal: Terminal, number: int) -> None:
    terminal.shows("voice")
    pids = descendants(terminal.process.pid)
    terminal.process.send_signal(number)
    terminal.end()
    assert until(lambda: not any(map(alive, pids)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "huge"], "--size"),
        (["--for", "0"], "--for"),
        (["--for", "3601"], "--for"),
        (["--format", "text", "--sort", "beauty"], "beauty"),
        (["--no-bpf", "--level", "full"], "--level full"),
        (["-o", "/no/such/place"], "/no/such/place"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], says: str) -> None:
    done = subprocess.run(
        demo_command(*options), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr

"""Process trees become agents."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agenttop.agents import own_processes as own
from agenttop.agents.rules import ExecFilter, Rules, scan
from agenttop.engine.agent_registry import Registry
from agenttop.errors import UserError
from agenttop.linux import process as procinfo
from tests.support.loops import until
from tests.support.trees import Tree


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made = Tree(tmp_path).use(monkeypatch)
    made.process(1, "/sbin/init", ppid=0)
    made.process(2, b"", ppid=0, comm="kthreadd", kernel=True)
    made.process(3, b"", ppid=2, comm="claude", kernel=True)
    made.process(10, "-bash")
    return made


def agents(*patterns: str, file: Path | None = None) -> dict[int, tuple[str, tuple[int, ...]]]:
    rules = Rules.load(str(file) if file else None, patterns)
    return {found.root: (found.name, found.pids) for found in scan(rules)}


def test_tools_belong_to_the_tree_and_other_agents_do_not(tree: Tree) -> None:
    tree.process(20, "claude", ppid=10)
    tree.process(21, "bash -c make", ppid=20)
    tree.process(22, "make", ppid=21)
    tree.process(23, "node /src/weather-mcp/index.js", ppid=20)
    tree.process(24, "sleep 5", ppid=23)
    tree.process(25, "claude -p sub", ppid=22)
    tree.process(30, "vim claude.md", ppid=10)
    assert agents() == {
        20: ("claude", (20, 21, 22, 25)),
        23: ("weather-mcp", (23, 24)),
    }


def test_two_sessions_are_two_agents_oldest_first(tree: Tree) -> None:
    tree.process(40, "claude", ppid=10)
    tree.process(20, "claude", ppid=10)
    assert list(agents()) == [20, 40]


def test_agenttops_own_processes_are_known_by_their_tree_not_by_name(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_engine", 22)
    monkeypatch.setattr(own, "_known", frozenset({21, 22}))
    tree.process(20, "claude", ppid=10)
    tree.process(21, "python renamed", ppid=20)  # the view
    tree.process(22, "python engine", ppid=21)
    tree.process(25, "python guardian", ppid=22)
    tree.process(23, "/venv/bin/python -m agenttop loop", ppid=21, comm="voice")
    tree.process(24, "sha1sum /dev/zero", ppid=21)
    # A stranger's, by a name that agenttop's own have.
    tree.process(30, "python -m agenttop.engine", ppid=10)
    assert agents() == {20: ("claude", (20,)), 23: ("voice", (23,))}
    assert {21, 22, 25}.isdisjoint(agents("comm:python"))
    assert 30 in agents("cmd:agenttop.engine")


def test_this_process_is_never_an_agent(tree: Tree) -> None:
    tree.process(os.getpid(), "claude", ppid=10)
    assert agents() == {}


def test_orphans_and_loops_in_the_parents_do_not_hide_a_process(tree: Tree) -> None:
    tree.process(20, "claude", ppid=9999)
    tree.process(21, "ollama serve", ppid=21)
    assert set(agents()) == {20, 21}


def test_a_process_that_vanishes_meanwhile_is_not_there(tree: Tree) -> None:
    tree.process(20, "claude")
    (tree.proc / "20" / "cmdline").unlink()
    (tree.proc / "21").mkdir()
    tree.write("proc/22/stat", "22 (broken")
    assert agents() == {}
    assert procinfo.read(20) is None


def test_options_pick_processes(tree: Tree) -> None:
    tree.process(20, "/usr/bin/python3 train.py", ppid=10)
    tree.process(21, "sleep 1", ppid=20, uid=0)
    assert agents("pid:20") == {20: ("train", (20, 21))}
    assert agents("comm:^pyth") == {20: ("python3", (20, 21))}
    assert agents(r"cmd:train\.py$") == {20: ("train", (20, 21))}
    assert agents("user:0", "user:1000")[21] == ("sleep", (21,))
    with pytest.raises(UserError, match=r"^--agent pid:77: no such process$"):
        Rules.load(patterns=["pid:77"])


def test_a_cgroup_is_one_agent(tree: Tree) -> None:
    tree.process(20, "worker a", ppid=1, cgroup="/system.slice/app.service")
    tree.process(21, "worker b", ppid=1, cgroup="/system.slice/app.service/sub")
    tree.process(22, "tool", ppid=21, cgroup="/system.slice/app.service/sub")
    tree.process(23, "worker c", ppid=1, cgroup="/system.slice/app.service2")
    expected = {20: ("app.service", (20, 21, 22))}
    assert agents("cgroup:/system.slice/app.service") == expected
    assert agents("cgroup:/sys/fs/cgroup/system.slice/app.service/") == expected
    both = agents("cgroup:/system.slice/app.s*")
    assert {root: pids for root, (_, pids) in both.items()} == {20: (20, 21, 22), 23: (23,)}


def test_the_v1_path_of_a_cgroup_counts_too(tree: Tree) -> None:
    tree.process(20, "worker", cgroup="/new")
    tree.process(21, "worker", cgroup="/new/below")
    assert agents("cgroup:/old")[1][1] == (1, 10, 20, 21)
    assert agents("cgroup:/new") == {20: ("new", (20, 21))}


def test_exec_joins_the_tree_above_or_starts_one(tree: Tree) -> None:
    tree.process(20, "claude", ppid=10)
    tree.process(21, "bash", ppid=20)
    tree.process(25, "claude -p sub", ppid=21)
    tree.process(26, "ollama serve", ppid=21)
    tree.process(27, "claude", ppid=26)
    rules = Rules.load()
    check = ExecFilter(rules).check
    known = {found.root: found.key for found in scan(rules)}
    sub = check(25)
    assert sub is not None
    assert (sub.root, sub.pids, sub.key) == (20, (25,), known[20])
    own = check(26)
    assert own is not None
    assert own.key == known[26]
    # A claude below an ollama below a claude: a tree of its own, as the scan says.
    again = check(27)
    assert again is not None
    assert again.key == known[27]
    assert check(21) is None
    assert check(12345) is None


def test_exec_into_a_cgroup_means_the_known_agent(tree: Tree) -> None:
    tree.process(20, "worker", cgroup="/app")
    rules = Rules.load(patterns=["cgroup:/app"])
    (known,) = scan(rules)
    tree.process(30, "other", cgroup="/app/x")
    found = ExecFilter(rules).check(30)
    assert found is not None
    assert found.key == known.key


def test_hostile_names_are_text(tree: Tree) -> None:
    tree.process(20, b"claude\0\x1b[31m\xff\xfe\0", comm=b"a) R (\x1b[2J\n[b]", ppid=10)
    info = procinfo.read(20)
    assert info is not None
    assert info.ppid == 10
    info.comm.encode()
    "".join(info.cmdline).encode()
    (found,) = scan(Rules.load(patterns=["pid:20"]))
    assert found.name.isprintable()
    shown = procinfo.printable(info.comm)
    assert "\x1b" not in shown
    assert "\n" not in shown


def test_a_real_process_reads_as_the_kernel_tells() -> None:
    info = procinfo.read(os.getpid(), uid=True, cgroups=True)
    assert info is not None
    assert info.ppid == os.getppid()
    assert info.uid == os.getuid()
    assert not info.kernel
    assert info.threads >= 1
    assert info.cgroups
    assert procinfo.read(1 << 22) is None


def test_a_process_that_waits_to_be_reaped_is_no_agent() -> None:
    child = subprocess.Popen(["/bin/true"])
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert procinfo.read(child.pid) is None
    finally:
        child.wait()


#: Its first thread ends, another works on.
LEADERLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread only
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="calls exit by its number")
def test_a_process_lives_as_long_as_any_of_its_threads() -> None:
    child = subprocess.Popen([sys.executable, "-c", LEADERLESS])
    try:
        assert until(lambda: b") Z " in Path(f"/proc/{child.pid}/stat").read_bytes())
        info = procinfo.read(child.pid)
        assert info is not None
        assert info.cmdline == (sys.executable, "-c", LEADERLESS)
        registry = Registry(Rules.load(patterns=[f"pid:{child.pid}"]))
        registry.scan()
        (agent,) = registry.agents()
        assert agent.pids == [child.pid]
        registry.scan()
        assert agent.alive
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert procinfo.read(child.pid) is None
        registry.scan()
        assert not agent.alive
    finally:
        child.kill()
        child.wait()

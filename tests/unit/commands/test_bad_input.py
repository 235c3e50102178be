"""Whatever is wrong with what the user gives: one line that says where and what, exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.places import ROOT
from tests.support.warm_process import Warm, warm

#: Nothing here waits for longer on a quiet machine; a hang is a failure, not a slow pass.
PATIENCE_S = 60.0

RULE = "rules:\n- name: a\n  match: "
FILES: dict[str, bytes] = {
    "binary.yaml": bytes(range(256)),
    "huge.yaml": b"rules: " + b"x" * (2 << 20),
    "alias.yaml": b"a: &a [1]\nb: *a\n",
    "laughs.yaml": b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nrules: [*c, *c]\n",
    "twice.yaml": b"rules:\n- name: x\n  name: y\n  match: comm:a\n",
    "types.yaml": b"rules:\n- name: 5\n  match: {a: 1}\n",
    "scalar.yaml": b"5",
    "list.yaml": b"[1]",
    "empty.yaml": b"",
    "tag.yaml": b'rules: !!python/object/apply:os.system ["echo hi"]\n',
    "nested.yaml": b"[" * 40 + b"]" * 40,
    "deep.yaml": b"[" * 500_000,
    "blocks.yaml": b"".join(b" " * n + b"a:\n" for n in range(500)),
    "date.yaml": b"rules: 9999-99-99\n",
    "unknown.yaml": b"rules: []\nfoo: 1\n",
    "regex.yaml": f"{RULE}'comm:('\n".encode(),
    "explosive.yaml": f"{RULE}'cmd:(a{{99}}){{99}}$'\n".encode(),
    "escape.yaml": b'rules:\n- name: "a\\e[31m"\n  match: "foo:\\e]0;x\\a\\u202e"\n',
    "label.yaml": f"{RULE}comm:a\n  label: '{{0.__class__}}'\n".encode(),
    "documents.yaml": b"---\na: 1\n---\nb: 2\n",
    "key.yaml": b"? [1,2]\n: 3\nrules: []\n",
    "digits.yaml": b"rules: " + b"9" * 5000 + b"\n",
    "bool.yaml": b"rules:\n- name: x\n  match: !!bool x\n",
    "sixty.yaml": b"rules: 1" + b":0" * 200 + b".0\n",
    "surrogate.yaml": b'rules: "\\ud800"\n',
    "latin.yaml": b"rules: \xe9\n",
    "wide.yaml": "rules: []".encode("utf-16"),
    "tabs.yaml": b"rules:\n\t- name: a\n",
    "name\n\x1b[31m.yaml": b"5",
    "color.yaml": b"base: dark\ncolors:\n  text: notacolor\n",
    "own.yaml": b"base: own\n",
    "colors.yaml": b"base: dark\ncolors: 5\n",
    "heat.yaml": b"base: dark\nheat: [red]\n",
}
#: File -> where in it, if that can be known, and our own words of what is wrong. What a library or
#: the interpreter says is theirs to change: of that, the place and the user's own words are held.
BAD_RULES = {
    "binary.yaml": ":2: not UTF-8",
    "huge.yaml": "larger than 1 MB",
    "alias.yaml": ":2: aliases",
    "laughs.yaml": ":2: aliases",
    "twice.yaml": ":3: 'name' is given twice",
    "types.yaml": ":2: rules[0].name: ",
    "scalar.yaml": ":1: ",
    "list.yaml": ":1: ",
    "empty.yaml": "",
    "tag.yaml": ":1: tags (!!name) are not supported",
    "nested.yaml": ":1: nested deeper",
    "deep.yaml": ":1: ",
    "blocks.yaml": ": nested deeper",
    "date.yaml": "not YAML",
    "unknown.yaml": "`foo`",
    "regex.yaml": ":3: rules[0].match: 'comm:(': bad regular expression",
    "explosive.yaml": ":3: rules[0].match: 'cmd:(a{99}){99}$': bad regular expression: too large",
    "escape.yaml": ":3: rules[0].match: 'foo:",
    "label.yaml": ":4: rules[0].label: '{0.__class__}' is not one of",
    "documents.yaml": ":3: ",
    "key.yaml": ":1: ",
    "digits.yaml": "not YAML",
    "bool.yaml": ":3: tags",
    "sixty.yaml": "not YAML: ",
    "surrogate.yaml": ":1: ",
    "latin.yaml": ":1: not UTF-8",
    "wide.yaml": ":1: not UTF-8",
    "tabs.yaml": ":2: ",
    "name\n\x1b[31m.yaml": ":1: ",
    "folder.yaml": "s a directory",
    "fifo.yaml": "not a regular file",
    "circle.yaml": "symbolic links",
    "missing.yaml": "No such file",
    "/dev/zero": "not a regular file",
    "/dev/null": "not a regular file",
    "/proc/self/mem": "Input/output error",
}
BAD_THEMES = {
    "color.yaml": ":3: colors.text: no colour 'notacolor'",
    "own.yaml": ":1: base: no such theme",
    "colors.yaml": ":2: colors: ",
    "heat.yaml": ":2: heat: 1 colours",
    "binary.yaml": ":2: not UTF-8",
    "scalar.yaml": "not a theme",
    "empty.yaml": "not a theme",
    "unknown.yaml": ":1: ",
    "fifo.yaml": "not a regular file",
    "folder.yaml": "s a directory",
    "nested.yaml": "nested deeper",
    "deep.yaml": ":1: ",
    "nothing": "no theme 'nothing'",
    "\x1b[31m": "no theme",
}
OPTIONS = {
    "bogus": "no command 'bogus'",
    "\x1b[31m": "no command",
    "--bogus": ": --bogus",
    "-x": "-x",
    "live x": ": x",
    "snapshot extra": ": extra",
    "snapshot --for": "--for",
    "snapshot --for 0": "0 is not within",
    "snapshot --for 1e400": "is not within",
    "snapshot --for soon": "'soon'",
    "snapshot --fo 1": "--fo",
    "snapshot --level half": "'half'",
    "snapshot --no-bpf --level full": "--level full needs BPF",
    "snapshot --agents a --agent pid:1": "exclude each other",
    "snapshot --agent nothing": "'nothing' is no pattern",
    "snapshot --agent pid:0": "a process id is a number",
    "snapshot --agent pid:4194303": "no such process",
    "snapshot --agent comm:(": "bad regular expression",
    "snapshot --agent cmd:(a{99}){99}": "too large",
    "snapshot --agent user:": "nothing after",
    "snapshot --agent user:no-such-user": "no such user",
    "snapshot --agent user:4294967295": "a user id is a number below",
    "snapshot --agent cgroup:": "nothing after",
    "snapshot --agent comm:\x1b[31m(": "bad regular expression",
    "snapshot --agent comm:\udcff(": "bad regular expression",
    "snapshot -s beauty": "no such key",
    "snapshot --hdr": "say --format json too",
    "snapshot --theme nothing": "no theme 'nothing'",
    "snapshot -o .": "is a directory",
    "snapshot -o /": "is a directory",
    "snapshot -o x/": "the name of a file",
    "snapshot -o /proc/x": "No such file",
    "snapshot -o /nonexistent/x": "No such file",
    "snapshot --for 0.1 --no-bpf -o /dev/full": "-o /dev/full: No space left",
    "snapshot --for 0.1 --no-bpf -o fifo.yaml": "nobody reads this pipe",
    "-b -n 0": "0 is not within",
    "-b -n 1.5": "whole number",
    "-b -d 0": "0 is not within",
    "-b --window nan": "nan is not within",
    "-b --theme nothing": "no theme 'nothing'",
    "-n 3": "say -b too",
    "-p 0": "0 is not within",
    "-p self": "'self'",
    "--theme nothing": "no theme 'nothing'",
    "demo --for 0": "0 is not within",
    "demo --size huge": "'huge'",
    "demo --theme nothing": "no theme 'nothing'",
    "demo -o /nonexistent/x": "No such file",
    "demo -s beauty": "no such key",
    "demo --causes weather": "no cause 'weather'",
    "demo --no-bpf --causes lite": "--causes needs BPF",
    "demo --set guard.limit=5": "guard has no parameter",
    "loop --gate door": "'door'",
    "loop --gate sleep --source tcp": "gate sleep cannot wait for source tcp",
    "loop --steps 0": "0 is not within",
    "loop --interval-us -1": "-1 is not within",
    "loop --cpu 100000": "cannot run on CPU 100000",
    "loop --source tcp --peer-cpu 100000": "cannot run on CPU 100000",
    "loop --name sixteen-letters.": "--name takes 1 to 15 bytes",
    "loop --file x": "--file is for --source block",
    "loop --gate read --source block --file /nonexistent": "No such file",
    "policy": "ACTION",
    "policy praise": "'praise'",
    "policy plan": "NAME",
    "policy plan performance": "'performance' is never offered",
    "policy apply guard": "--for",
    "policy apply guard --for 0": "0 is not within",
    "policy apply turbo --for 1": "no policy or bundle 'turbo'",
    "policy apply guard --for 1 --set guard.limit_us=0": "guard: ",
    "policy apply guard --for 1 --set guard.limit=5": "guard has no parameter",
    "policy plan guard --set guard": "write POLICY.PARAM=VALUE",
    "policy show vfs --set vfs.pressure=!!timestamp": "not a YAML value",
    "--set turbo.x=1": "no policy",
    "policy apply guard --for 1 --agent zz": "'zz' is no pattern",
    "policy revert turbo": "no policy or bundle 'turbo'",
    "policy status x": ": x",
    "doctor --foo": ": --foo",
    "schema x": "'x'",
    "snapshot --from x --agent comm:a": "--agent is for a measurement, not for a recording",
    "snapshot --from x --on-breach p99>1ms": "--on-breach is for a measurement",
    "trace -o y --from x --no-bpf": "--no-bpf is for a measurement",
    "report x --causes off": "--causes is for a measurement",
    "restore x": ": x",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory full of bad files."""
    where = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items():
        (where / name).write_bytes(content)
    (where / "folder.yaml").mkdir()
    os.mkfifo(where / "fifo.yaml")
    (where / "circle.yaml").symlink_to("circle.yaml")
    return where


@pytest.fixture(scope="module", autouse=True)
def started() -> Iterator[Warm]:
    """What most commands here run in; the others are processes of their own."""
    with warm() as running:
        yield running


def agenttop(started: Warm, folder: Path, *arguments: str, **env: str) -> CompletedProcess[bytes]:
    environ = {**os.environ, "AGENTTOP_STATE": str(folder / "state"), **env}
    return started.run(*arguments, cwd=folder, environ=environ)


def refused(done: CompletedProcess[bytes], *words: str) -> None:
    """It ended with one line for the user, which does nothing to the terminal."""
    said = done.stderr.decode()
    assert done.returncode == 2, said
    assert done.stdout == b""
    assert said.startswith("agenttop: ")
    assert said.endswith("\n")
    assert said[:-1].isprintable(), said
    for word in words:
        assert word in said


def place(file: str) -> str:
    """What stands for the file in an error."""
    return file.partition("\n")[0]


@pytest.mark.parametrize("file", BAD_RULES)
def test_rules(started: Warm, folder: Path, file: str) -> None:
    done = agenttop(started, folder, "snapshot", "--agents", file)
    refused(done, place(file), BAD_RULES[file])


@pytest.mark.parametrize("file", BAD_THEMES)
def test_themes(started: Warm, folder: Path, file: str) -> None:
    theme = f"./{file}" if file.endswith(".yaml") else file
    words = [BAD_THEMES[file], *([file] if file.isprintable() else [])]
    refused(agenttop(started, folder, "snapshot", "--format", "svg", "--theme", theme), *words)


@pytest.mark.parametrize("line", OPTIONS)
def test_options(started: Warm, folder: Path, line: str) -> None:
    refused(agenttop(started, folder, *line.split(" ")), OPTIONS[line])


def test_the_users_own_rules_are_told_with_their_place(
    started: Warm, folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "agenttop" / "agents.yaml"
    own.parent.mkdir()
    own.write_bytes(FILES["regex.yaml"])
    done = agenttop(started, folder, "snapshot", XDG_CONFIG_HOME=str(tmp_path))
    refused(done, f"{own}:3: rules[0].match")


@pytest.mark.parametrize("command", ["restore", "policy status", "policy revert"])
def test_a_state_directory_that_is_none(started: Warm, folder: Path, command: str) -> None:
    state = str(folder / "scalar.yaml")
    refused(
        agenttop(started, folder, *command.split(), AGENTTOP_STATE=state), state, "Not a directory"
    )


@pytest.mark.parametrize(
    "command",
    ["schema", "--version", "doctor", "snapshot --for 0.1 --no-bpf", "-b -d 0.1 --no-bpf"],
)
def test_a_full_disk_behind_stdout(folder: Path, command: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "agenttop", *command.split()],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE_S,
        )
    assert done.stderr == b"agenttop: No space left on device\n"
    assert done.returncode == 2


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(folder: Path, tmp_path: Path, closed: str) -> None:
    """No socket or file that is opened later gets their numbers."""
    out = tmp_path / "out.json"
    line = f'"$0" -m agenttop snapshot --for 0.1 --no-bpf --format json -o {out} {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", line, sys.executable],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert json.loads(out.read_bytes())["schema"] == "agenttop.snapshot"


def test_a_pipe_gets_all_of_it_once(started: Warm, folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        done = agenttop(started, folder, "snapshot", "--for", "0.1", "--no-bpf", "-o", str(pipe))
        assert (done.returncode, done.stderr) == (0, b"")
        assert reader.stdout is not None
        assert reader.stdout.read().startswith(b"agenttop ")

"""Patterns and rule files: what is taken, and what is said about the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.agents.patterns import Pattern
from agenttop.agents.program_names import programs
from agenttop.agents.rules import Rules
from agenttop.config import yaml_document
from agenttop.errors import UserError
from agenttop.linux import process


def said_by(action: Callable[[], object]) -> str:
    """The text of the UserError that it raises, or "" if it does not; others pass through."""
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("claude", "'claude' is no pattern: it must be pid:N, comm:RE"),
        ("exe:claude", "is no pattern"),
        ("comm:", "nothing after 'comm:'"),
        ("pid:x", "a process id is a number from 1 to"),
        ("pid:0", "a process id is a number from 1 to"),
        ("pid:²", "a process id is a number from 1 to"),
        ("comm:(ab", "bad regular expression: missing ), unterminated subpattern at position 1"),
        ("comm:a**", "bad regular expression: multiple repeat at position 3"),
        ("cmd:(a{0,32}){0,32}b", "too large with its repeats written out"),
        ("cmd:(?=a)b", "look-around is not supported"),
        ("user:no-such-user-here", "no such user on this machine"),
        ("comm:" + "a" * 600, "longer than 500 characters"),
    ],
)
def test_bad_patterns_are_one_clear_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        Pattern.parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["comm:^a+b$", "cmd:python3? .*serve", "prog:(a|b)-[0-9]{1,3}"])
def test_ordinary_regular_expressions_are_taken(text: str) -> None:
    assert str(Pattern.parse(text)) == text


@given(st.text(max_size=60))
def test_any_text_is_a_pattern_or_a_user_error(text: str) -> None:
    for kind in ("", "pid:", "comm:", "cmd:", "prog:", "cgroup:", "user:"):
        assert said_by(lambda kind=kind: Pattern.parse(kind + text)).isprintable()


@given(st.lists(st.text(max_size=30), max_size=12), st.text(max_size=15))
def test_any_command_line_has_names(argv: list[str], comm: str) -> None:
    names = programs(argv, comm)
    assert len(set(names)) == len(names)


WORDS = st.sampled_from(
    [
        "uv",
        "uvx",
        "npx",
        "run",
        "tool",
        "-m",
        "-p",
        "--",
        "python",
        "node",
        "bash",
        "-c",
        "x@1",
        "@",
    ]
)


@given(st.lists(WORDS, max_size=10))
def test_runners_within_runners_end(argv: list[str]) -> None:
    programs(argv)


@given(st.binary(max_size=300))
def test_any_bytes_parse_as_proc_files(raw: bytes) -> None:
    process.parse_stat(raw)
    process.is_worker(raw)
    process.parse_uid(raw)
    "".join(process.parse_cmdline(raw)).encode()
    "".join(process.parse_cgroups(raw)).encode()


@given(
    st.text(alphabet=st.characters(exclude_characters="\0"), max_size=15), st.integers(0, 1 << 22)
)
def test_stat_survives_any_name(comm: str, ppid: int) -> None:
    raw = f"5 ({comm}) S {ppid} 5 5 0 -1 4194304 {'0 ' * 10}7 0 99 0".encode(errors="replace")
    parsed = process.parse_stat(raw)
    assert parsed is not None
    assert parsed[1:] == (ppid, False, 7, 99)
    assert not process.is_worker(raw)
    assert process.is_worker(raw.replace(b" 4194304 ", b" 4194320 "))


@given(st.text(max_size=200), st.integers(2, 80))
def test_printable_is_one_bounded_line(text: str, limit: int) -> None:
    shown = process.printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()


def load(tmp_path: Path, text: str | bytes) -> Rules:
    file = tmp_path / "agents.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return Rules.load(str(file))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":?: "),
        ("rules: []", ":1: rules: no rules"),
        ("rules:\n- name: a\n  match: comm:a\n  colour: red\n", ":2: rules[0]: .*`colour`"),
        (
            "rules:\n- name: a\n  match: [comm:a,\n    'comm:(']\n",
            r":4: rules\[0\].match\[1\]: .*bad",
        ),
        ("rules:\n- name: a\n  match:\n  - 3\n", r":4: rules\[0\].match"),
        (
            "rules:\n- {name: a, match: 'comm:a'}\n- {name: a, match: 'comm:b'}\n",
            ":3: .*second rule",
        ),
        ("rules:\n- name: a\n  name: b\n  match: comm:a\n", ":3: 'name' is given twice"),
        ("rules:\n- name: a\n match: b\n", ":3: "),
        ("rules: [{name: a, match: []}]", ":1: .*could never match"),
        ("rules:\n- name: a\n  match: comm:a\n  label: '{pid'\n", ":4: .*bad label"),
        ("rules:\n- name: a\n  match: comm:a\n  label: '{cmd}'\n", ":4: .*not one of"),
        ("rules:\n- name: a\n  match: comm:a\n  as: thing\n", r":4: rules\[0\].as: .*thing"),
        ("rules:\n- name: ''\n  match: comm:a\n", r":2: rules\[0\].name: "),
        ("a: &x [1]\nrules: *x\n", "aliases"),
        (b"rules:\n- name: \xff\n", ":2: not UTF-8"),
        ("\x1b[31m", ": "),
        ("[" * 5000, ":1: "),
        ("2026-99-99", ": "),
    ],
)
def test_bad_files_are_one_line_with_file_and_place(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    with pytest.raises(UserError, match=said.replace("rules[0]", r"rules\[0\]")) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "agents.yaml"))
    assert str(caught.value).isprintable()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        Rules.load(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="Is a directory"):
        Rules.load(str(tmp_path))
    with pytest.raises(UserError, match="larger than"):
        load(tmp_path, "#" * (2 << 20))


@given(st.text(max_size=200))
def test_any_text_is_rules_or_a_user_error(text: str) -> None:
    for prefix in ("", "rules:\n- name: x\n  match: "):
        said = said_by(
            lambda prefix=prefix: yaml_document.Document(prefix + text, "f.yaml").convert(
                dict[str, list[dict[str, str]]]
            )
        )
        assert said.isprintable()
        assert said.startswith("f.yaml") or not said


def test_the_users_own_file_replaces_the_builtin_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    builtin = Rules.load()
    assert builtin.origin == "built-in rules"
    own = tmp_path / "agenttop" / "agents.yaml"
    own.parent.mkdir()
    own.write_text("rules:\n- {name: claude, match: 'comm:^mine$', background: true, as: cgroup}\n")
    (rule,) = Rules.load().rules
    assert (rule.name, rule.background, rule.as_) == ("claude", True, "cgroup")
    own.write_text("builtin: true\n" + own.read_text())
    names = [rule.name for rule in Rules.load().rules]
    assert names[0] == "claude"
    assert sorted(names) == sorted(rule.name for rule in builtin.rules)
    assert [r.name for r in Rules.load(patterns=["comm:x"]).rules] == ["--agent comm:x"]
    with pytest.raises(UserError, match="exclude each other"):
        Rules.load("x.yaml", ["comm:x"])


def test_unless_takes_processes_out(tmp_path: Path) -> None:
    rules = load(tmp_path, "rules:\n- {name: a, match: 'comm:^a', unless: 'cmd:--dry'}\n")
    info = process.ProcInfo(9, 1, "ab", ("ab", "--dry"), None, None, 1, 1, False)
    assert rules.match(info) is None
    assert rules.match(info._replace(cmdline=("ab",))) is not None


def test_only_the_beginning_of_a_command_line_is_searched() -> None:
    info = process.ProcInfo(9, 1, "x", ("x", "a" * 100_000 + "end"), None, None, 1, 1, False)
    assert Pattern.parse("cmd:^x a+").matches(info, list)
    assert not Pattern.parse("cmd:end").matches(info, list)


@pytest.mark.parametrize("extra", ["prog:(?i)CODER", "prog:(?P<n>x)y", "comm:^z$", "user:0"])
def test_looking_at_all_names_at_once_changes_no_answer(tmp_path: Path, extra: str) -> None:
    text = (
        f'rules:\n- name: a\n  match: ["prog:co.*r", "prog:run x"]\n- name: b\n  match: "{extra}"\n'
    )
    rules = load(tmp_path, text)
    for argv in (["coder"], ["CODER"], ["run", "x"], ["run"], ["aa"], ["xy"], ["z"], ["other"]):
        info = process.ProcInfo(9, 1, argv[0], tuple(argv), 0, None, 1, 1, False)
        names = programs(argv, argv[0])
        slow = next((rule for rule in rules.rules if rule.matches(info, names)), None)
        assert rules.match(info) is slow
        assert rules.match(info) is slow

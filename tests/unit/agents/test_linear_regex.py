"""Patterns mean what they mean to re, in time that is linear in the text."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agenttop.agents.linear_regex import Linear, TooComplexError
from agenttop.agents.patterns import Pattern
from agenttop.agents.rules import Rules
from agenttop.cli import main
from agenttop.errors import UserError
from agenttop.policies import catalog

_ATOMS = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", r"\w", r"\d", r"\s", r"\b", r"\B", "^", "$", r"\A", r"\Z", "é"]
)


def _more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.sampled_from(["(%s)", "(?:%s)", "(?i:%s)", "(?m:%s)", "(?s:%s)", "(?a:%s)"])
    repeat = st.sampled_from(["*", "+", "?", "*?", "+?", "{0,3}", "{2}", "{1,2}", "{2,}"])
    return (
        st.lists(inner, max_size=3).map("".join)
        | st.lists(inner, min_size=2, max_size=3).map("|".join)
        | st.tuples(group, inner).map(lambda x: x[0] % x[1])
        | st.tuples(inner, repeat).map(lambda x: f"(?:{x[0]}){x[1]}")
    )


_PATTERNS = st.recursive(_ATOMS, _more, max_leaves=8)


@example(r"(?a:\b)", ["é"])
@settings(max_examples=300)
@given(_PATTERNS, st.lists(st.text("abAé1 _\n", max_size=6), min_size=1, max_size=4))
def test_as_re(pattern: str, texts: list[str]) -> None:
    try:
        ours = Linear(pattern)
    except TooComplexError:
        return
    theirs = re.compile(pattern)
    for text in texts:
        assert ours.search(text) == (theirs.search(text) is not None), text
        assert ours.fullmatch(text) == (theirs.fullmatch(text) is not None), text


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", "(?!)", "(?=a)b", "(?<!a)b", "(?>a)b", "a*+b", "(a)?(?(1)b)"]
)
def test_what_needs_trying_is_refused(pattern: str) -> None:
    with pytest.raises(TooComplexError, match="not supported"):
        Linear(pattern)


@pytest.mark.parametrize(
    "pattern", ["(a{0,32}){0,32}b", "a{1000}", "((a{9}){9}){9}", "a{0,3000000000}"]
)
def test_repeats_count_as_written_out(pattern: str) -> None:
    with pytest.raises(TooComplexError, match="too large"):
        Linear(pattern)


@pytest.mark.parametrize(
    "pattern",
    ["(a{0,14}){0,14}b", "(a*)*b", "(a|a|aa)+b", "a*a*a*a*a*a*b", "(.*,){9}b", "(a?){9}b"],
)
def test_a_hostile_name_ends(pattern: str) -> None:
    began = time.process_time()
    assert not Linear(pattern).search("a" * 1024)
    assert not Linear(pattern).fullmatch("a," * 512)
    # Not how fast: by trying one way after the other it would take years.
    assert time.process_time() - began < 20


def lacking(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "re._parser", None)


def other(patch: pytest.MonkeyPatch) -> None:
    patch.delattr("re._parser.SubPattern.__init__")


def renamed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("re._parser.parse", lambda *_: [("REPEAT_AT_MOST", (1, 2, []))])


@pytest.mark.parametrize("python", [lacking, other, renamed])
def test_another_python_is_one_clear_error(
    python: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("agenttop.agents.linear_regex._codes", {})
    python(monkeypatch)
    with pytest.raises(UserError, match=r"^'comm:a\.\*b': .* run agenttop with Python 3") as error:
        Pattern.parse("comm:a.*b")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"builtin\.yaml:.* run agenttop with Python 3"):
        Rules.load()
    # What needs no regular expression is as it was.
    for text in ("pid:1", "user:0", "cgroup:/system.slice/*"):
        assert str(Pattern.parse(text)) == text
    assert Rules.load(patterns=["user:0"]).rules
    assert catalog.make_all({})
    assert main(["policy", "plan", "demote"]) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err

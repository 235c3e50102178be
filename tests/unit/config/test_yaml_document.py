"""Whatever scalar stands in a YAML file or behind --set: its value, or one line for the user."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.config.yaml_document import Document
from agenttop.errors import UserError
from agenttop.policies import catalog

_KINDS = ("bool", "int", "float", "timestamp", "null", "str", "binary", "seq", "map", "set", "x")
_TAGS = st.sampled_from([*(f"!!{kind} " for kind in _KINDS), "! ", "!<tag:yaml.org,2002:int> "])
#: What YAML 1.1 makes numbers and times of, and some more.
_TEXTS = st.text("0123456789abefnoxyTtZz-+_.:~=<'\" ", max_size=40) | st.text(max_size=20)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert text.isprintable()
    return text


@given(_TAGS, _TEXTS)
def test_a_tag_is_refused_with_its_line(tag: str, text: str) -> None:
    with pytest.raises(UserError) as error:
        Document(f"a: 1\nb: {tag}''\n", "f.yaml")
    assert one_line(error) == "f.yaml:2: tags (!!name) are not supported here"
    with pytest.raises(UserError) as error:
        Document(f"a: 1\nb: {tag}{text}\n", "f.yaml")
    assert one_line(error).startswith("f.yaml:")
    with pytest.raises(UserError) as error:
        catalog.parse_set([f"vfs.pressure={tag}{text}"])
    assert one_line(error).startswith("--set vfs.pressure=")


@given(_TEXTS)
def test_any_other_scalar_is_a_value_or_a_line(text: str) -> None:
    with contextlib.suppress(UserError):
        Document(f"a: {text}", "f.yaml")
    with contextlib.suppress(UserError):
        catalog.parse_set([f"guard.limit_us={text}"])


@pytest.mark.parametrize(
    "text",
    [
        *("!!bool x", "!!timestamp x", "!!int ''", "!!float ''", "!!int -", "!!set {a, b}"),
        *("1" + ":0" * 200 + ".0", "2001-12-14t21:59:43-99:00", "9" * 5000, "[" * 5000, "&a [*a]"),
    ],
)
def test_what_the_parser_itself_fails_on(text: str) -> None:
    with pytest.raises(UserError, match=r"^--set .*: not a YAML value$"):
        catalog.parse_set([f"vfs.pressure={text}"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" + "a," * 100_000 + "]", "more than 20000 values"),
        ("a: " + ":1" * 100_000, "more than 10000 characters"),
        ("a: 0x" + "f" * 100_000, "more than 10000 characters"),
        ("? " + "k" * 100_000 + "\n: 1", "more than 10000 characters"),
        ("[" * 33 + "]" * 33, "nested deeper"),
        ("a: &x [1]\nb: *x", "aliases"),
    ],
)
def test_what_costs_more_than_it_can_mean_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        Document(text, "f.yaml")
    assert said in one_line(error)

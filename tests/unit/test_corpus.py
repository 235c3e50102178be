"""What agenttop writes today stays as it is, byte for byte, wherever its code is moved to.

data/corpus/input has recordings, journals and settings, data/corpus/expected what became of
them; corpus.py tells how. Where a format or a text is changed on purpose: make_corpus.py.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import pytest

from tests.support.corpus import EXPECTED, KINDS, WRITTEN_WITH, made, read, written_with


def difference(expected: bytes, found: bytes) -> str:
    """Where two outputs differ, in some lines."""
    pairs = enumerate(zip(expected, found, strict=False))
    at = next((i for i, (one, other) in pairs if one != other), None)
    if at is None:
        at = min(len(expected), len(found))
    said = f"{len(expected)} bytes expected, {len(found)} found, the first other is number {at}\n"
    try:
        a, b = expected.decode().splitlines(), found.decode().splitlines()
    except UnicodeDecodeError:
        return f"{said}{expected[at : at + 40]!r}\n{found[at : at + 40]!r}"
    lines = list(difflib.unified_diff(a, b, "expected", "found", lineterm=""))
    return said + "\n".join(lines[:40])


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_comes_out_as_it_was(kind: str, tmp_path: Path) -> None:
    now = written_with().get(kind)
    then = json.loads(WRITTEN_WITH.read_text()).get(kind)
    if now != then:
        pytest.skip(f"written with {then}, this is {now}")
    found, expected = made(kind, tmp_path), read(EXPECTED / kind)
    assert list(found) == list(expected)
    other = [
        f"{kind}/{name}: {difference(expected[name], body)}"
        for name, body in found.items()
        if body != expected[name]
    ]
    assert not other, "\n\n".join(
        [*other, f"on purpose? python -m tests.support.make_corpus {kind}"]
    )


@pytest.mark.parametrize(
    ("expected", "found", "said"),
    [
        (b"a\nb\n", b"a\nc\n", "number 2\n--- expected\n+++ found\n@@ -1,2 +1,2 @@\n a\n-b\n+c"),
        (b"\xff\x00", b"\xff", "2 bytes expected, 1 found, the first other is number 1"),
    ],
)
def test_a_difference_is_shown(expected: bytes, found: bytes, said: str) -> None:
    assert said in difference(expected, found)

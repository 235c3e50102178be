"""Processes named to do harm show as text, everywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_terminal import ROOT, live
from tests.support.policy_rig import until

pytestmark = pytest.mark.bpf

#: A process's comm: 15 bytes that it chooses.
NAMES = (
    b"\x1b[31mred\x1b]0;ti",
    b"[red]b[/] [@x]",
    "\u202egnp.exe\u2066".encode(),
    b"new\nline\ttab\rx",
    b"\xff\xfe\xf0\x9f\x92",
    b"a\x9b31m\x9d0;x\x07",
    b") R 1 1 1 0 (",
    b"%s%n{0}{pid!r}",
    "e\u0301\u0301\u0301\u0301\u0301\u0301".encode()[:15],
    "日本語ワ".encode(),
    b"<b>&amp;\"']]>",
    b"\x08\x7f\x00"[:2],
)
#: Begins before the sleeps, so that it is in the command line as well.
TITLE = b"\x1b]0;pwned\x07\x1b[2J[red]\xe2\x80\xae" + b"A" * 4096
SLEEPER = """
import ctypes, sys, time
ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0)
print(flush=True)
while True:
    time.sleep(0.02)
"""
#: What only a terminal's own program may send (Textual sends CSI sequences, never these).
FORBIDDEN = (b"\x1b]0;", b"\x1b[31mred", b"\x9b31m", "\u202e".encode(), "\u2066".encode(), b"\xff")


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of rules for processes with all these names."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-S", "-c", SLEEPER, name.hex(), TITLE, b"\xff\xfe"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        for name in NAMES
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.read(1)
        file = tmp_path_factory.mktemp("rules") / "agents.yaml"
        file.write_text(
            "rules:\n"
            + "".join(
                f"- name: n{p.pid}\n  match: pid:{p.pid}\n  label: '{{comm}}'\n" for p in processes
            )
        )
        yield file
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def snapshot(rules: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "agenttop", "snapshot", "--for", "1", "--agents", rules, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "140"},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.splitlines()) and not set(text) & set("\r\v\f")


@pytest.mark.parametrize("extra", [(), ("--no-bpf",)])
def test_text(rules: Path, extra: tuple[str, ...]) -> None:
    text = snapshot(rules, *extra)
    assert harmless(text)
    assert f"AGENTS {len(NAMES)}" in text
    assert "[red]b[/]" in text


@pytest.mark.long
def test_ascii(rules: Path) -> None:
    text = snapshot(rules, "--ascii")
    assert text.isascii()
    assert harmless(text)


def test_json(rules: Path) -> None:
    text = snapshot(rules, "--format", "json")
    assert harmless(text)
    names = [agent["name"] for agent in json.loads(text)["agents"]]
    assert len(names) == len(NAMES)
    assert "[red]b[/] [@x]" in names
    assert "%s%n{0}{pid!r}" in names
    assert all(name.isprintable() for name in names)


@pytest.mark.long
def test_svg(rules: Path) -> None:
    text = snapshot(rules, "--format", "svg")
    assert harmless(text)
    drawn = "".join(ElementTree.fromstring(text).itertext())
    assert "[red]b[/]" in drawn.replace("\xa0", " ")


@pytest.mark.parametrize(
    "size",
    [
        (80, 24),
        pytest.param((200, 50), marks=pytest.mark.long),
        pytest.param((20, 5), marks=pytest.mark.long),
    ],
)
def test_screen(rules: Path, size: tuple[int, int], tmp_path: Path) -> None:
    environ = {"AGENTTOP_STATE": str(tmp_path)}
    with live("--agents", str(rules), env=environ, size=size) as screen:
        if size == (20, 5):
            assert until(lambda: bool(screen.seen().strip()), 30)
            time.sleep(3)
        else:
            screen.until("[red]b[/]")
            # The details; then the search, typed in one go: no letter of it is a key.
            screen.type("\r")
            screen.until("Esc closes")
            screen.type("\x1b")
            screen.until("q quit")
            assert until(lambda: "Esc closes" not in screen.seen(), 20)
            screen.type("/ghgh")
            screen.until("ghgh")
            assert "guard ● on" not in screen.seen()
            screen.type("\r")
            assert until(lambda: "Enter keeps" not in screen.seen(), 20)
            screen.until("[red]b[/]")
        assert screen.alive()
        for sequence in FORBIDDEN:
            assert sequence not in screen.output
        screen.type("q")
        assert screen.wait(20) == 0
        assert b"Traceback" not in screen.output
        assert screen.settings_now() == screen.settings


def test_one_that_ends_and_takes_a_signal(rules: Path, tmp_path: Path) -> None:
    """SIGTERM while such names are on the screen."""
    with live("--agents", str(rules), env={"AGENTTOP_STATE": str(tmp_path)}) as screen:
        screen.until("[red]b[/]")
        os.kill(screen.pid, signal.SIGTERM)
        assert screen.wait(20) == 128 + signal.SIGTERM
        assert screen.settings_now() == screen.settings

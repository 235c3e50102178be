"""Whatever else comes from others: the engine's stream, files, YAML, patterns, names, numbers."""

from __future__ import annotations

import argparse
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from agenttop.agents.patterns import Pattern
from agenttop.agents.program_names import programs
from agenttop.agents.rules import Rules
from agenttop.commands.arguments import count, number
from agenttop.config import theme_file
from agenttop.errors import UserError
from agenttop.flight.breach_condition import parse as condition
from agenttop.linux import process
from agenttop.model.options import causes_of
from agenttop.model.sample import Command, Failure
from agenttop.policies import bundles, catalog
from agenttop.render.columns import sort_key
from agenttop.render.snapshot_text import Layout, report
from agenttop.step import _made
from agenttop.store.replayed import measured, still
from agenttop.store.store import Store
from agenttop.stream.framing import Decoder, StreamError
from agenttop.stream.recording import MAGIC, Header, Recording
from agenttop.text import figures as shown
from bench import fuzz_frames
from bench.fuzz_frames import HOSTILE, damaged

#: Makes and reads one input; gives it (to be kept where it fails), and a line if it was refused.
Input = tuple[bytes, Callable[[], None]]

_RULES: Final = """\
# agents
builtin: false
rules:
  - name: coder
    match: ["prog:claude", 'comm:^co.er$']
    unless: cmd:--dry-run
    background: false
    as: tree
    label: "{program} {pid}"
  - name: other
    match: cgroup:/a/*
"""
_BUNDLE: Final = """\
title: quiet
why: >
  Placement only.
policies:
  home: {}
  guard: {limit_us: 5}
  window: {capacity: 9.5}
"""
_THEME: Final = """\
base: ansi16
title: mine
dark: true
colors:
  text: "bold #aabbcc on black"
  key: yellow
stages: {irq: red}
heat: [black, blue, cyan, green, yellow, red, "#000000", white]
"""
_YAML: Final = (
    "{}", "[]", "~", "!!python/name:os.system", "&a [*a, *a]", "*a", "1:2:3:4", "2001-99-99",
    "0x" + "f" * 400, "1e999", ".nan", "\t", "? x", "- - - -", "{" * 40, "[" * 2000, "'", '"\\x"',
    "|", ">", "%YAML 9.9", "---\n---", "\x85", "\ufeff", "a: a: a", "9" * 9000, "true", "null",
    "<<: {a: 1}", "name: coder", "limit_us: -1", "capacity: .inf", "prog:(a{0,32}){0,32}b",
)  # fmt: skip
_PIECES: Final = (
    "a", "b", ".", "\\d", "\\w", "\\b", "^", "$", "(", ")", "(?:", "(?=", "(?P<n>", "(?i)", "[",
    "]", "[^a]", "|", "*", "+", "?", "*?", "{0,32}", "{,9}", "{2}", "{999999}", "\\1", "\\", "é",
    "\x00",
    "(a|a)*", "(a{0,32}){0,32}b", ".*.*.*x", "(a+)+$", " ", "claude", "-",
)  # fmt: skip
_WORDS: Final = (
    "0", "1", "-0", "+1", "1e3", "1e999", "-1e-999", "nan", "inf", "-inf", "0x10", "1_0", "٣", "² ",
    "9" * 400, "9" * 5000, "", " ", "\x00", "1.5.5", ".", "e", "-", "p99>2ms", "step p50 > 1.5s",
    "a:p999>1us", "p99>" + "9" * 400 + "s", "p99>0ns", "off", "lite", "full", "lock,timer", ",",
    "-p99", "guard.limit_us=5", "guard.limit_us=[1]", "window.capacity=.nan", "home.x=", "a.b=c",
    "guard.limit_us=" + "9" * 400, "guard.limit_us=!!x", "guard.limit_us=1:2:3",
)  # fmt: skip


def _mixed(rng: random.Random, text: str, pieces: tuple[str, ...]) -> str:
    """The text with some pieces in it, lines twice, swapped or gone."""
    for _ in range(rng.choice((1, 1, 1, 3))):
        kind = rng.random()
        at = rng.randrange(len(text) + 1)
        if kind < 0.5:
            text = text[:at] + rng.choice(pieces) + text[at + rng.choice((0, 0, 1, 5)) :]
            continue
        lines = text.splitlines(keepends=True)
        if len(lines) < 2:
            continue
        one, two = rng.randrange(len(lines)), rng.randrange(len(lines))
        if kind < 0.65:
            lines[one], lines[two] = lines[two], lines[one]
        elif kind < 0.8:
            del lines[one]
        else:
            head, colon, _ = lines[one].partition(":")
            lines[one] = f"{head}{colon} {rng.choice(pieces)}\n"
        text = "".join(lines)
    return text


def yaml(rng: random.Random, folder: Path) -> Input:
    """Agents, bundles and themes as files."""
    base, name, load = rng.choice(
        (
            (_RULES, "agents.yaml", lambda path: Rules.load(str(path))),
            (_BUNDLE, "mine.yaml", bundles.load),
            (_THEME, "mine.yaml", lambda path: theme_file.load(str(path))),
        )
    )
    body = _mixed(rng, base, (*_YAML, *HOSTILE)).encode("utf-8", "surrogatepass")
    body = damaged(body, rng) if rng.random() < 0.1 else body
    path = folder / name

    def read() -> None:
        path.write_bytes(body)
        load(path)

    return body, read


def pattern(rng: random.Random, folder: Path) -> Input:
    """A pattern, and names that anybody may give to a process."""
    kind = rng.choice(("comm", "comm", "cmd", "cmd", "prog", "prog", "cgroup", "pid", "user", "x"))
    parts = [rng.choice((*_PIECES, "a", "b")) for _ in range(rng.randrange(1, 9))]
    value = "".join(parts)
    name = rng.choice(("a" * 1024, "ab" * 500, "claude", *HOSTILE))
    text = f"{kind}:{value}"

    def read() -> None:
        found = Pattern.parse(text)
        info = process.ProcInfo(
            pid=1, ppid=0, comm=name[:15], cmdline=(name, value), uid=0,
            cgroups=("/a/b", f"/{value}"), starttime=1, threads=1, kernel=False,
        )  # fmt: skip
        found.matches(info, lambda: programs(info.cmdline, info.comm))

    return f"{text}\n{name}".encode("utf-8", "surrogatepass"), read


def names(rng: random.Random, folder: Path) -> Input:
    """What a process tells of itself: /proc, command lines, step names."""
    text = "".join(rng.choice((*HOSTILE, "a", ") S 1 ", "\n")) for _ in range(rng.randrange(1, 5)))
    raw = text.encode("utf-8", "surrogatepass")
    line = b"12 (" + raw + b") S 1 12 12 0 -1 0 " + b"1 " * 40
    words = [rng.choice(("python3", "-m", "node", "uv", "run", "bash", "-c", "npx", "--", text))
             for _ in range(rng.randrange(9))]  # fmt: skip
    line = damaged(line, rng) if rng.random() < 0.7 else line

    def read() -> None:
        process.parse_stat(line)
        process.parse_cgroups(line)
        process.parse_uid(b"Name:\nUid:" + line[: rng.randrange(30)])
        programs(process.parse_cmdline(b"\0".join([line, raw])), text)
        programs(words, text)
        _made(text.encode("utf-8", "replace").decode(), 1)
        cleaned = shown.clean(text, rng.choice((1, 8, 64)))
        for width in (0, 1, 20):
            fitted = shown.fit(cleaned, width)
            assert shown.cells(fitted) == width, (fitted, width)
        assert shown.ascii_only(cleaned).isascii()

    return line + b"\n" + raw, read


def numbers(rng: random.Random, folder: Path) -> Input:
    """Values of options."""
    text = _mixed(rng, rng.choice(_WORDS), (*_WORDS, *HOSTILE[:20]))
    read = rng.choice(
        (
            number(0.1, 1e6), count(1, 1 << 22), condition, causes_of, sort_key,
            lambda word: catalog.parse_set([word]),
        )
    )  # fmt: skip

    def parse() -> None:
        try:
            read(text)
        except (argparse.ArgumentTypeError, ValueError) as error:  # what argparse takes
            if isinstance(error, UnicodeError):
                raise
            raise UserError("argparse") from None

    return text.encode("utf-8", "surrogatepass"), parse


_streams: list[list[bytes]] = []


def _frames() -> list[list[bytes]]:
    if not _streams:
        _streams.extend(fuzz_frames.bases())
    return _streams


def stream(rng: random.Random, folder: Path) -> Input:
    """Messages of an engine, in pieces of any size, some of them damaged."""
    bodies = [
        rng.choice(
            (
                msgspec.msgpack.encode(Command("policy", "guard", True)),
                msgspec.msgpack.encode(Failure(rng.choice(HOSTILE))),
                rng.choice(rng.choice(_frames())),
            )
        )
        for _ in range(rng.randrange(1, 4))
    ]
    data = b"".join(struct.pack("<I", len(body)) + body for body in bodies)
    if rng.random() < 0.8:
        data = damaged(data, rng)
    if rng.random() < 0.1:
        data = struct.pack("<I", rng.choice((0, 1, 1 << 26, (1 << 26) + 1, (1 << 32) - 1))) + data
    cuts = [rng.choice((1, 2, 3, 4, 5, 64, 1000)) for _ in range(40)]

    def read() -> None:
        decoder, at = Decoder(), 0
        for size in cuts:
            list(decoder.feed(data[at : at + size]))
            at += size
        list(decoder.feed(data[at:]))
        if decoder.pending:
            raise StreamError("cut")

    return data, read


def file(rng: random.Random, folder: Path) -> Input:
    """A whole recording: its header, its compression, its end."""
    frames = fuzz_frames.stream(rng, _frames(), rng.randrange(3))
    header = msgspec.msgpack.encode(Header())
    header = damaged(header, rng) if rng.random() < 0.1 else header
    squeeze = zlib.compressobj(1)
    body = b"".join(squeeze.compress(struct.pack("<I", len(one)) + one) for one in frames)
    body += squeeze.flush(zlib.Z_SYNC_FLUSH if rng.random() < 0.2 else zlib.Z_FINISH)
    data = MAGIC + struct.pack("<I", len(header)) + header + body
    data = damaged(data, rng) if rng.random() < 0.5 else data
    path = folder / "fuzz.rec"

    def read() -> None:
        path.write_bytes(data)
        store = Store(clock=still)
        with Recording(path) as opened:
            for _ in measured(opened, store):
                pass
        shot = store.snapshot()
        assert shot is not None
        report(shot, Layout())

    return data, read


SOURCES: Final[dict[str, Callable[[random.Random, Path], Input]]] = {
    "file": file,
    "stream": stream,
    "yaml": yaml,
    "pattern": pattern,
    "names": names,
    "numbers": numbers,
}

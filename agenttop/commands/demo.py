"""Agents of several kinds and background noise, on the screen; without a terminal, as a snapshot.

The agents are a coder (model answers over TCP, files, tool processes), a
retriever (disk reads past the page cache), a toolcaller (requests over TCP)
and a voice loop (a timer). Beside them run two CPU hogs and a writer.
Everything ends with the demo.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from agenttop.commands import arguments, live, session
from agenttop.commands.snapshot import FORMATS, Wanted, measure
from agenttop.config import output_file
from agenttop.errors import UserError
from agenttop.model.options import EngineOptions
from agenttop.model.vocabulary import LEVELS
from agenttop.render.columns import sort_help
from agenttop.text.figures import clean
from agenttop.view.options import ViewOptions
from agenttop.workloads.demo import LIMIT_S, SIZES, Demo

#: Without a terminal.
SNAPSHOT_S = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--for",
        dest="for_s",
        type=arguments.number(0.1, LIMIT_S),
        metavar="SECONDS",
        help=f"end after that long ({SNAPSHOT_S:g} without a terminal; else when the screen is"
        f" quit, at most {LIMIT_S:,})",
    )
    add(
        "--size",
        choices=SIZES,
        default="small",
        help="of each kind of agent "
        + ", ".join(f"{count} ({size})" for size, count in SIZES.items()),
    )
    add("--format", choices=FORMATS, help="no screen: measure, then print this")
    add("-o", "--output", metavar="FILE", help="no screen: measure, then write there")
    add("--level", choices=LEVELS, default="lite", help="(%(default)s)")
    add("--no-bpf", action="store_true", help="without BPF: only what /proc and /sys tell")
    arguments.add_causes(parser)
    add("--readonly", action="store_true", help="policies can be looked at but not switched")
    arguments.add_policy_settings(parser)
    add("--theme", metavar="NAME", help="of the screen, or of an svg")
    add("--ascii", action="store_true", help="plain ASCII only")
    arguments.add_sort(parser)


def run(args: argparse.Namespace) -> int:
    """The whole demo. Raises UserError."""
    if args.sort == "help":
        print(sort_help())
        return 0
    from agenttop.policies.catalog import parse_set

    arguments.check_bpf(args)
    args.settings = parse_set(args.set)
    screen = args.format is None and args.output is None and live.on_terminal(os.environ)
    if screen:
        return _screen(args)
    args.format = args.format or "text"
    args.for_s = args.for_s or SNAPSHOT_S
    wanted = Wanted.of(args)
    if wanted.output is not None:
        output_file.check(wanted.output)

    def work() -> int:
        with _demo(args.size, wanted.seconds) as demo:
            body = measure(_engine(args, demo), wanted)
        if wanted.output is not None:
            output_file.write(wanted.output, body)
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(body)
            sys.stdout.buffer.flush()
        return 0

    return session.quietly(work)


def _screen(args: argparse.Namespace) -> int:
    seconds = args.for_s or LIMIT_S
    view = ViewOptions(
        theme=args.theme,
        ascii_only=args.ascii,
        readonly=args.readonly,
        sort=args.sort,
        for_s=float(seconds),
    )
    with _demo(args.size, seconds) as demo:
        return live.show(_engine(args, demo), view=view)


def _engine(args: argparse.Namespace, demo: Demo) -> EngineOptions:
    """An engine that measures exactly the demo's agents."""
    chosen = [f"pid:{pid}" for pid in demo.background]
    demote = {"processes": chosen, **args.settings.get("demote", {})}
    return EngineOptions(
        agents_file=demo.rules_file(),
        level=args.level,
        bpf="off" if args.no_bpf else "auto",
        causes=args.causes,
        readonly=args.readonly,
        settings={**args.settings, "demote": demote},
    )


@contextmanager
def _demo(size: str, seconds: float) -> Iterator[Demo]:
    """A running demo; at its end it says on stderr which of its parts could not run."""
    try:
        demo = Demo(size, seconds)
    except OSError as error:
        raise UserError(f"cannot start the demo: {error}") from None
    failed: list[str] = []
    with demo:
        yield demo
        failed = demo.failed()
    for line in failed:
        print(f"agenttop demo: {clean(line)}", file=sys.stderr)

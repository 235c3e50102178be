"""Answer the open questions about agents' tail latency, with figures and intervals.

Measures for a while, or reads a recording. What this machine cannot measure
is said so, with how it could be.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agenttop.commands import arguments
from agenttop.commands import session as headless
from agenttop.config import output_file
from agenttop.errors import UserError
from agenttop.model.options import EngineOptions
from agenttop.trial import switching
from agenttop.trial.switching import Switching

if TYPE_CHECKING:
    from agenttop.report.time_blocks import Blocks

EPILOG = "Ctrl-C ends the measurement early and reports what there is."

FORMATS: Final = ("text", "json", "md", "html")
SECONDS: Final = 30.0
#: --causes, unless something is asked for.
_ALL: Final = "all"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recording", nargs="?", metavar="FILE", help="of agenttop record, instead of measuring now"
    )
    parser.add_argument(
        "--for",
        dest="for_s",
        type=arguments.number(1, 10_000_000),
        metavar="SECONDS",
        help=f"how long to measure ({SECONDS:g}; of a recording: all of it)",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="(%(default)s)")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write there instead, when all is done"
    )
    switching.add(parser)
    arguments.add_engine(parser)
    # The questions ask for them: all, unless others (or off) are asked for.
    parser.set_defaults(causes=_ALL)


def run(args: argparse.Namespace) -> int:
    """Measure or read, then report. Raises UserError before it starts, where it can be known."""
    output = None if args.output is None else Path(args.output)
    if output is not None:
        if not args.output:
            raise UserError("-o '': the name of a file is wanted")
        output_file.check(output)
    if args.recording is not None:
        if args.switch:
            raise UserError("--switch is for a measurement, not for a recording")
        arguments.refuse_measuring(args, causes=_ALL)
        return headless.quietly(
            lambda: _deliver(_of_recording(args.recording, args.for_s, args.format), output)
        )
    seconds = args.for_s or SECONDS
    if args.causes == _ALL:
        # All of them, those that tax every system call too: they are what questions ask for.
        args.causes = "off" if args.no_bpf else "full"
    engine = arguments.engine_options(args)
    switched = Switching.of(args.switch, seconds, engine)
    return headless.quietly(
        lambda: _deliver(_measured(engine, switched, seconds, args.format), output)
    )


def _deliver(body: bytes, output: Path | None) -> int:
    if output is not None:
        output_file.write(output, body)
    else:
        headless.write_out(body)
    return 0


def _measured(
    engine: EngineOptions, switched: Switching | None, seconds: float, form: str
) -> bytes:
    from agenttop.report.time_blocks import Blocks

    blocks = Blocks(time.monotonic_ns)
    with headless.Session(engine, blocks) as session:
        samples = session.samples()
        first = session.ready(samples)
        blocks.begin()
        try:
            for sample in samples:
                if switched is not None:
                    switched.take(sample, blocks, session.send)
                # A sample a little early will do: the time is measured, not assumed.
                if sample.t_ns >= first.t_ns + (seconds - 0.1 * engine.delay_s) * 1e9:
                    break
        except KeyboardInterrupt:
            pass
    return _render(blocks, "live", form)


def _of_recording(path: str, seconds: float | None, form: str) -> bytes:
    from agenttop.report.time_blocks import Blocks
    from agenttop.store.replayed import measured, still
    from agenttop.stream import memory_limit
    from agenttop.stream.recording import Recording

    blocks = Blocks(still)
    with Recording(path) as recording, memory_limit.memory(recording.name):
        samples = measured(recording, blocks)
        first = next(samples)
        blocks.begin()
        for sample in samples:
            if seconds is not None and sample.t_ns >= first.t_ns + seconds * 1e9:
                break
        return _render(blocks, Path(path).name, form)


def _render(blocks: Blocks, source: str, form: str) -> bytes:
    import msgspec

    from agenttop.report.builder import build
    from agenttop.text.figures import ascii_only

    report = build(blocks, source)
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    if form == "html":
        from agenttop.report.formats import html

        return html.render(report).encode("utf-8", "replace")
    if form == "md":
        from agenttop.report.formats import markdown

        return markdown.render(report).encode("utf-8", "replace")
    from agenttop.render.snapshot_text import terminal_width
    from agenttop.report.formats import text

    body = text.render(report, terminal_width())
    return (body if headless.speaks_unicode() else ascii_only(body)).encode("utf-8", "replace")

"""Measure for a while, then print it once: as text, JSON or SVG."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Final

from agenttop.commands import arguments, breach_arguments
from agenttop.commands import session as headless
from agenttop.config import output_file, theme_file
from agenttop.errors import UserError
from agenttop.flight import breach_watch
from agenttop.model.options import EngineOptions
from agenttop.model.snapshot import Snapshot
from agenttop.render.columns import sort_help, sort_key
from agenttop.render.snapshot_text import Layout, report, terminal_width
from agenttop.store.store import Store

EPILOG = "Percentiles are over the time measured (--for), not over a rolling window."

FORMATS: Final = ("text", "json", "svg")
#: Cells of an SVG: the screen that it shows.
SVG_SIZE: Final = (160, 50)
SECONDS: Final = 5.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--for",
        dest="for_s",
        type=arguments.number(0.1, 86_400),
        metavar="SECONDS",
        help=f"how long to measure ({SECONDS:g}; of a recording: all of it)",
    )
    parser.add_argument(
        "--from",
        dest="recording",
        metavar="FILE",
        help="of a recording (agenttop record) instead of measuring now",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="(%(default)s)")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write there instead, when all is done"
    )
    parser.add_argument(
        "--hdr",
        action="store_true",
        help="whole distributions too, as HdrHistogram V2 (with --format json)",
    )
    parser.add_argument("--theme", metavar="NAME|FILE", help="of an svg (dark)")
    parser.add_argument("--ascii", action="store_true", help="text in plain ASCII")
    arguments.add_sort(parser)
    arguments.add_engine(parser)
    breach_arguments.add(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print. Raises UserError before it starts, where it can be known then.

    Also serves plain ``agenttop`` without a terminal, whose options lack some of ours.
    """
    if args.sort == "help":
        print(sort_help())
        return 0
    wanted = Wanted.of(args)
    recording = getattr(args, "recording", None)
    if recording is not None:
        arguments.refuse_measuring(args)
        if getattr(args, "on_breach", None):
            raise UserError("--on-breach is for a measurement, not for a recording")
        seconds = getattr(args, "for_s", None)
        return headless.quietly(lambda: deliver(of_recording(recording, wanted, seconds), wanted))
    engine = arguments.engine_options(args)
    # A sample at the end of the time, however short it is.
    engine.delay_s = min(engine.delay_s, wanted.seconds)
    if wanted.output is not None:
        output_file.check(wanted.output)

    watched = breach_watch.Breach.of(args)
    return headless.quietly(lambda: deliver(measure(engine, wanted, watched), wanted))


def deliver(body: bytes, wanted: Wanted) -> int:
    """To the file or to stdout; the exit code. Raises UserError."""
    if wanted.output is not None:
        output_file.write(wanted.output, body)
    else:
        headless.write_out(body)
    return 0


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be made of the measurement."""

    seconds: float
    format: str
    output: Path | None
    hdr: bool
    theme: str
    layout: Layout

    @classmethod
    def of(cls, args: argparse.Namespace) -> Wanted:
        """From the command line. Raises UserError."""
        key, inverted = sort_key(args.sort)
        form = getattr(args, "format", "text")
        output = getattr(args, "output", None)
        if output is not None and (
            not output or (output.endswith("/") and not os.path.isdir(output))
        ):
            raise UserError(f"-o '{output}': the name of a file is wanted")
        hdr = bool(getattr(args, "hdr", False))
        if hdr and form != "json":
            raise UserError("--hdr adds to JSON: say --format json too")
        theme = getattr(args, "theme", None)
        if theme is not None or form == "svg":
            theme_file.load(theme or theme_file.DEFAULT)
        # A file has no width of its own: the table's comfortable one.
        width = 120 if output else terminal_width()
        return cls(
            seconds=getattr(args, "for_s", None) or SECONDS,
            format=form,
            output=None if output is None else Path(output),
            hdr=hdr,
            theme=theme or theme_file.DEFAULT,
            layout=Layout(
                width=width,
                sort=key,
                inverted=inverted,
                ascii=bool(getattr(args, "ascii", False)),
            ),
        )


def measure(
    engine: EngineOptions, wanted: Wanted, watched: breach_watch.Breach | None = None
) -> bytes:
    """Run an engine for the time; what is to be written. Raises UserError."""
    store = Store()
    seconds_ns = int(wanted.seconds * 1e9)
    with headless.Session(engine, store, watched) as session:
        samples = session.samples()
        session.ready(samples)
        since = store.start_since()
        for sample in samples:
            # A sample a little early will do: the interval is measured, not assumed.
            if sample.t_ns >= since + seconds_ns - int(engine.delay_s * 0.1e9):
                break
        snapshot = store.snapshot(since_ns=since, hdr=wanted.hdr)
    if snapshot is None:
        raise UserError("the engine ended before it measured anything")
    return render(store, snapshot, wanted)


def of_recording(path: str, wanted: Wanted, seconds: float | None) -> bytes:
    """The same of a recording, over its first seconds or all of it. Raises UserError."""
    from agenttop.store.replayed import measured, still, whole
    from agenttop.stream import memory_limit
    from agenttop.stream.recording import Recording

    store = Store(clock=still) if wanted.format == "svg" else whole()
    if wanted.format == "svg":
        import agenttop.screens.picture  # noqa: F401 (threads of its libraries begin before the bound)
    with Recording(path) as recording, memory_limit.memory(recording.name):
        samples = measured(recording, store)
        next(samples)
        since = store.start_since()
        for sample in samples:
            if seconds is not None and sample.t_ns >= since + int(seconds * 1e9):
                break
        snapshot = store.snapshot(since_ns=since, hdr=wanted.hdr)
        assert snapshot is not None
        return render(store, snapshot, wanted)


def render(store: Store, snapshot: Snapshot, wanted: Wanted) -> bytes:
    """The snapshot in the wanted format."""
    if wanted.format == "json":
        from agenttop.render.snapshot_json import encode
        from agenttop.store.toggles import attach

        return encode(attach(snapshot, store.history.effect))
    if wanted.format == "svg":
        from agenttop.screens.picture import render_svg

        return render_svg(store, snapshot, SVG_SIZE, wanted.theme).encode()
    layout = wanted.layout
    if wanted.output is None and not headless.speaks_unicode():
        layout = dataclasses.replace(layout, ascii=True)
    return report(snapshot, layout).encode("utf-8", "replace")

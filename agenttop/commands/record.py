"""Record the engine's samples into a file, for replay, report and snapshot --from.

The file is complete at every moment: what is recorded until a power failure
or a kill can be read. It holds figures and the names of agents, devices and
policies, no command lines and no data.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from agenttop.commands import arguments, breach_arguments
from agenttop.commands import session as headless
from agenttop.errors import UserError
from agenttop.flight import breach_watch
from agenttop.linux import signals
from agenttop.model.options import EngineOptions
from agenttop.store.store import Store
from agenttop.stream.recording import Writer, create
from agenttop.text.figures import count, duration
from agenttop.trial import switching
from agenttop.trial.switching import Switching

EPILOG = "Ctrl-C ends a recording well. An existing file is never overwritten."


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write there; - is stdout (agenttop-DATE-TIME.rec in the current directory)",
    )
    parser.add_argument(
        "--for",
        dest="for_s",
        type=arguments.number(0.1, 10_000_000),
        metavar="SECONDS",
        help="how long (until Ctrl-C)",
    )
    switching.add(parser)
    arguments.add_engine(parser)
    breach_arguments.add(parser)


def run(args: argparse.Namespace) -> int:
    """Record until the time is over, Ctrl-C or a signal. Raises UserError."""
    engine = arguments.engine_options(args)
    if args.for_s is not None:
        engine.delay_s = min(engine.delay_s, args.for_s)
    switched = Switching.of(args.switch, args.for_s, engine)
    watched = breach_watch.Breach.of(args)
    path = None if args.output in ("-", None) else Path(args.output)
    if args.output == "":
        raise UserError("-o '': the name of a file is wanted")
    if args.output == "-" and os.isatty(1):
        raise UserError("-o -: stdout is a terminal; a file or a pipe is wanted")

    def work() -> int:
        with contextlib.ExitStack() as stack:
            file: BinaryIO
            if args.output == "-":
                sys.stdout.flush()
                file, name = os.fdopen(os.dup(1), "wb", buffering=0), "stdout"
            else:
                file, name = create(path)
            stack.enter_context(file)
            told = record(file, engine, switched, args.for_s, watched)
        print(f"agenttop: {told}: {name}", file=sys.stderr, flush=True)
        return 0

    return headless.quietly(work)


def record(
    file: BinaryIO,
    engine: EngineOptions,
    switched: Switching | None,
    seconds: float | None,
    watched: breach_watch.Breach | None = None,
) -> str:
    """Record into an open file; what was recorded, in a few words. Raises UserError."""
    store = Store()
    started: int | None = None
    last_ns = 0
    # A sample is not broken off. A pipe's reader may take its time, though: no signal waits for it.
    regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    whole = signals.put_off if regular else contextlib.nullcontext
    try:
        writer = Writer(file, engine.delay_s)
        with headless.Session(engine, store, watched) as session, contextlib.closing(writer):
            for sample in session.samples():
                with whole():
                    writer.add(sample)
                last_ns = sample.t_ns
                if started is None and store.settled:
                    started = last_ns
                if started is None:
                    continue
                if switched is not None:
                    switched.take(sample, store, session.send)
                # A sample a little early will do.
                if seconds is not None and last_ns >= started + (
                    seconds * 1e9 - engine.delay_s * 0.1e9
                ):
                    break
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        raise  # whoever read it has enough
    except OSError as error:
        raise UserError(f"the recording ends early: {error.strerror}") from None
    length = duration(last_ns - started) if started is not None else "nothing"
    return f"{length}, {count(writer.samples)} samples, {writer.written / 1000:,.0f} kB"

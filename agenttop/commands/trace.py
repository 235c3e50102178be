"""Write the slowest steps, whole, as a trace that Perfetto shows (ui.perfetto.dev).

Each agent's control-loop threads with their slow steps and the stages of each,
the CPUs' part in them, who woke whom, and beside them the slowpath's p99, the
CPUs' interrupts and softirqs, and the policies' toggles. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from agenttop.commands import arguments
from agenttop.commands import session as headless
from agenttop.config import output_file
from agenttop.errors import UserError
from agenttop.flight.perfetto_trace import trace
from agenttop.flight.recorder import Flight
from agenttop.model.options import EngineOptions
from agenttop.model.sample import Host, Sample
from agenttop.store.store import Store
from agenttop.text.figures import clean, count

SECONDS = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="write there")
    parser.add_argument(
        "--for",
        dest="for_s",
        type=arguments.number(0.1, 86_400),
        metavar="SECONDS",
        help=f"how long to record ({SECONDS:g}; of a recording: all of it)",
    )
    parser.add_argument(
        "--from",
        dest="recording",
        metavar="FILE",
        help="of a recording (agenttop record, or a breach) instead of measuring now",
    )
    arguments.add_engine(parser)


def run(args: argparse.Namespace) -> int:
    """Gather and write. Raises UserError before it starts, where it can be known then."""
    if not args.output:
        raise UserError("-o '': the name of a file is wanted")
    if args.recording is not None:
        arguments.refuse_measuring(args)
    output = Path(args.output)
    output_file.check(output)

    def work() -> int:
        if args.recording is not None:
            flight, body = of_recording(args.recording, args.for_s)
        else:
            flight = of_now(arguments.engine_options(args), args.for_s or SECONDS)
            body = trace(flight)
        output_file.write(output, body)
        agents = len({step.agent for step in flight.steps})
        told = f"{count(len(flight.steps))} steps of {count(agents)} agents"
        if flight.left_out:
            told += f" (the newest: {count(flight.left_out)} older ones are left out)"
        if not flight.agents:
            told += " (none found: --agent pid:N names one)"
        print(f"agenttop: {told}: {clean(str(output))}", file=sys.stderr, flush=True)
        return 0

    return headless.quietly(work)


def of_now(engine: EngineOptions, seconds: float) -> Flight:
    """What an engine tells within the time. Raises UserError, also where there are no chains."""
    engine.delay_s = min(engine.delay_s, seconds)
    store = Store()
    with headless.Session(engine, store) as session:
        samples = session.samples()
        session.ready(samples)
        check_chains(store.host)
        return gather(samples, store, seconds, early_s=engine.delay_s * 0.1)


def of_recording(path: str, seconds: float | None) -> tuple[Flight, bytes]:
    """The same of a recording, of its first seconds or all of it, and its trace.

    Raises UserError.
    """
    from agenttop.store.replayed import measured, whole
    from agenttop.stream import memory_limit
    from agenttop.stream.recording import Recording

    store = whole()
    with Recording(path) as recording, memory_limit.memory(recording.name):
        flight = gather(measured(recording, store), store, seconds)
        check_chains(store.host)
        return flight, trace(flight)


def check_chains(host: Host | None) -> None:
    """Raises UserError where no step can be measured."""
    reason = host.missing.get("chains") if host is not None else "nothing was measured"
    if reason is not None:
        raise UserError(f"no steps to trace without step chains: {reason}")


def gather(
    samples: Iterable[Sample], store: Store, seconds: float | None, early_s: float = 0.0
) -> Flight:
    """Samples that ``store`` has been fed, until the time is over.

    One that is ``early_s`` too early is taken for the last one.
    """
    flight = Flight()
    since: int | None = None
    for sample in samples:
        flight.feed(sample, store)
        since = sample.t_ns if since is None else since
        if seconds is not None and sample.t_ns >= since + (seconds - early_s) * 1e9:
            break
    return flight

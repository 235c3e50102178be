"""A controlled agent loop that times its own steps, to hold agenttop's figures against.

A step lasts from one gate entry to the next. The percentiles are exact: every
value is kept, nearest rank. A gate is ready if it returned without sleeping;
"slept" are the steps between gates that did sleep: what level lite sees, and level
full too for the gates read and wait.
"""

from __future__ import annotations

import argparse
import json

from agenttop.commands.arguments import count, number
from agenttop.errors import UserError
from agenttop.workloads.cause_makers import ASIDE, MAKERS, READS
from agenttop.workloads.exact_stats import Figures, Result
from agenttop.workloads.gates import PACED, SOURCES, TABLE, Plan
from agenttop.workloads.loop import MAX_STEPS, Settings
from agenttop.workloads.loop import run as run_loop
from agenttop.workloads.run_delays import AWAITED

EPILOG = "gates and their sources:\n" + "\n".join(
    f"  {gate:<9} {', '.join(sources)}" for gate, sources in TABLE.items()
)


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    hour_us = 3_600_000_000
    add("--gate", choices=TABLE, default="epoll", help="the call to wait in (%(default)s)")
    add("--source", choices=SOURCES, default="timer", help="what to wait for (%(default)s)")
    add(
        "--interval-us",
        type=number(0, hour_us),
        default=1000.0,
        metavar="N",
        help=f"between completions (%(default)g); only {', '.join(PACED)} have one",
    )
    add("--compute-us", type=number(0, hour_us), default=0.0, metavar="N", help="CPU per step (0)")
    add("--steps", type=count(1, MAX_STEPS), metavar="N", help="gates to pass (1000)")
    add(
        "--for",
        dest="seconds",
        type=number(0.001, 86_400),
        metavar="SECONDS",
        help=f"end after that long (without --steps: or after {MAX_STEPS:,} gates)",
    )
    add("--json", action="store_true", help="print one JSON object")
    add("--cpu", type=count(0, 1 << 20), metavar="N", help="run on this CPU only")
    add("--peer-cpu", type=count(0, 1 << 20), metavar="N", help="the peer process on this CPU")
    add("--name", default="atloop", help="the process's comm (%(default)s), at most 15 bytes")
    add("--file", metavar="PATH", help="block: read this file, or make the temporary one there")
    add(
        "--slack-ns",
        type=count(0, 10**9),
        default=1,
        metavar="N",
        help="timer slack (%(default)s; 0 is the system's own)",
    )
    add(
        "--opt-in",
        choices=("none", "marker", "sched_setattr"),
        default="none",
        help="tell agenttop: this thread is an agent (%(default)s)",
    )
    add(
        "--cause",
        choices=(*MAKERS, *ASIDE, *AWAITED),
        help="make this in each step, and time it: see agenttop --causes",
    )
    add("--wait", action="store_true", help="print 'READY pid=N', begin at a line on stdin")


def settings(args: argparse.Namespace) -> Settings:
    """The loop that the options describe. Raises UserError."""
    if not args.name or len(args.name.encode()) > 15 or "\0" in args.name:
        raise UserError("--name takes 1 to 15 bytes, the length of a process's comm")
    reads = args.source in ("block", "io_worker") or args.cause in READS
    if args.file is not None and not reads:
        causes = ", ".join(READS)
        raise UserError(f"--file is for --source block or io_worker and --cause {causes}")
    if args.cause in AWAITED and args.source != "timer":
        raise UserError(f"--cause {args.cause} needs --source timer")
    steps = args.steps or (1000 if args.seconds is None else MAX_STEPS)
    return Settings(
        plan=Plan(
            gate=args.gate,
            source=args.source,
            interval_ns=round(args.interval_us * 1000),
            peer_cpu=args.peer_cpu,
            slack_ns=args.slack_ns,
            file=args.file,
        ),
        steps=steps,
        compute_ns=round(args.compute_us * 1000),
        seconds=args.seconds,
        cpu=args.cpu,
        name=args.name,
        opt_in=args.opt_in,
        wait=args.wait,
        cause=args.cause,
    )


def run(args: argparse.Namespace) -> int:
    result = run_loop(settings(args))
    print(json.dumps(result.as_json()) if args.json else text(result))
    return 0


def text(result: Result) -> str:
    """The figures as a table, microseconds."""
    rate = result.steps * 1e9 / result.wall_ns if result.wall_ns else 0.0
    lines = [
        f"{result.gate} {result.source}: {result.steps} steps in {result.wall_ns / 1e9:.3f} s"
        f" ({rate:.0f}/s), {result.ready} of them ready, pid {result.pid}",
        f"{'us':<9}{'count':>9}{'p50':>11}{'p99':>11}{'p99.9':>11}{'max':>11}",
    ]
    measures = {
        "step": result.step,
        "gate": result.gate_ns,
        "compute": result.compute,
        "lateness": result.lateness,
        "slept": result.slept_step,
    }
    if result.caused is not None:
        measures["caused"] = result.caused
    lines += [_row(name, measure) for name, measure in measures.items()]
    return "\n".join(lines)


def _row(name: str, measure: Figures | None) -> str:
    if measure is None:
        return f"{name:<9}{'N/A':>9}  (this source has no due time)"
    values = (measure.p50_ns, measure.p99_ns, measure.p999_ns, measure.max_ns)
    cells = ("N/A" if value is None else f"{value / 1000:.1f}" for value in values)
    return f"{name:<9}{measure.count:>9}" + "".join(f"{cell:>11}" for cell in cells)

"""``python -m bench [NAME ...]``: all benches, or those named; exit 1 when a limit is missed."""

from __future__ import annotations

import argparse
import importlib
import sys

from bench.report import Report, save

BENCHES = (
    "pingpong",
    "marker",
    "inherit",
    "accuracy",
    "engine",
    "screen",
    "start",
    "guard",
    "trial",
    "window",
    "demo",
    "causes",
    "large",
    "fuzz",
    "soak",
    "kills",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each (%(default)s)")
    parser.add_argument("--count", type=int, default=1000, help="kills in kills (%(default)s)")
    parser.add_argument("--seed", default="", help="of kills: with it, one can go on later")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in BENCHES]
    if unknown:
        parser.error(f"no bench {unknown[0]}: there are {', '.join(BENCHES)}")
    reports: list[Report] = []
    for name in args.names or BENCHES:
        print(f"{name}:", flush=True)
        report = Report(name)
        more = {"count": args.count, "seed": args.seed} if name == "kills" else {}
        importlib.import_module(f"bench.{name}").run(report, args.rounds, **more)
        reports.append(report)
        save([report])
    missed = [f"{r.title}: {f.name}" for r in reports for f in r.figures if f.ok is False]
    for name in missed:
        print(f"missed: {name}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Options that several commands share, checked, and as what the engine is started with."""

from __future__ import annotations

import argparse
import math

from agenttop.errors import UserError
from agenttop.model.options import EngineOptions, causes_of
from agenttop.model.vocabulary import CAUSE_NAMES, LEVELS


def number(low: float, high: float) -> type[float]:
    """An argparse type: a finite number within the bounds."""

    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"{text} is not within {low:g} and {high:g}")
        return value

    parse.__name__ = "number"  # argparse: "invalid number value"
    return parse  # type: ignore[return-value]


def count(low: int, high: int) -> type[int]:
    """An argparse type: a whole number within the bounds."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not within {low} and {high}")
        return value

    parse.__name__ = "whole number"
    return parse  # type: ignore[return-value]


def add_agents(parser: argparse.ArgumentParser) -> None:
    """``--agent`` and ``--agents``: who is an agent."""
    group = parser.add_argument_group("agents")
    group.add_argument(
        "--agent",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only these: pid:N, comm:RE, cmd:RE, prog:RE, cgroup:PATH or user:NAME (repeatable)",
    )
    group.add_argument(
        "--agents", metavar="FILE", help="rules in YAML instead of the built-in ones"
    )


def add_policy_settings(parser: argparse.ArgumentParser) -> None:
    """``--set``: parameters of policies."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="POLICY.PARAM=VALUE",
        help="a policy's parameter, as guard.limit_us=50 (repeatable)",
    )


def add_causes(parser: argparse._ActionsContainer) -> None:
    """``--causes``: what is observed from the start."""
    parser.add_argument(
        "--causes",
        default="off",
        metavar="off|lite|full|NAME[,NAME]",
        help=f"what the stages were spent on: {', '.join(CAUSE_NAMES)} (%(default)s)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Everything that EngineOptions carry."""
    add_agents(parser)
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--level",
        choices=LEVELS,
        default="lite",
        help="full also splits return from compute, and taxes every system call (%(default)s)",
    )
    group.add_argument(
        "-d",
        "--delay",
        type=number(0.1, 3600),
        default=1.0,
        metavar="SECONDS",
        help="between samples (%(default)g)",
    )
    group.add_argument(
        "--no-bpf", action="store_true", help="without BPF: only what /proc and /sys tell"
    )
    group.add_argument(
        "--bpf-stats", action="store_true", help="measure the time in BPF programs too"
    )
    add_causes(group)
    add_policy_settings(parser)


def refuse_measuring(args: argparse.Namespace, **defaults: object) -> None:
    """For a command that reads a recording: what it measured, and how, is past.

    ``defaults``: those that the command has of its own. Raises UserError that
    names the first of ``add_engine``'s options that was given.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_engine(parser)
    for name, default in {**vars(parser.parse_args([])), **defaults}.items():
        if getattr(args, name, default) != default:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is for a measurement, not for a recording")


def add_window(parser: argparse.ArgumentParser) -> None:
    """``--window``: the time that percentiles are over."""
    parser.add_argument(
        "--window",
        type=number(1, 3600),
        default=30.0,
        metavar="SECONDS",
        help="percentiles are over the last SECONDS (%(default)g)",
    )


def add_sort(parser: argparse.ArgumentParser) -> None:
    """``-s``: the order of the agents."""
    parser.add_argument(
        "-s",
        "--sort",
        metavar="KEY",
        help="order of the agents ('help' lists the keys); --sort=-KEY reverses it",
    )


def check_bpf(args: argparse.Namespace) -> None:
    """Raises UserError for an unknown cause, and for what cannot be had with ``--no-bpf``."""
    causes = causes_of(args.causes)
    if args.no_bpf and args.level == "full":
        raise UserError("--level full needs BPF: leave out --no-bpf")
    if args.no_bpf and causes:
        raise UserError("--causes needs BPF: leave out --no-bpf")


def engine_options(args: argparse.Namespace) -> EngineOptions:
    """What ``add_engine``'s options say.

    Raises UserError for a pattern or a file of rules that cannot be right:
    here, before anything starts.
    """
    from agenttop.agents.rules import Rules
    from agenttop.policies.catalog import parse_set

    check_bpf(args)
    options = EngineOptions(
        agent_patterns=list(args.agent),
        agents_file=args.agents,
        level=args.level,
        delay_s=args.delay,
        bpf="off" if args.no_bpf else "auto",
        bpf_stats=args.bpf_stats,
        causes=args.causes,
        policies=list(getattr(args, "policy", None) or []),
        settings=parse_set(args.set),
        readonly=getattr(args, "readonly", False),
    )
    Rules.load(options.agents_file, options.agent_patterns)
    return options

"""Try policies: on and off in blocks of random order, and tell honestly whether it helped.

Each round has three blocks in random order: on, off, and a control in which
nothing differs from off. All figures of a trial are judged together: in at
most 5 % of trials of a policy that changes nothing is any of them called
better or worse. Everything is put back at the end, and however it ends.
"""

from __future__ import annotations

import argparse

from agenttop.commands import arguments
from agenttop.model.options import EngineOptions
from agenttop.stats.rounds import MIN_ROUNDS
from agenttop.trial.plan import BLOCK_S, ROUNDS, SETTLE_S, Plan


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``agenttop policy trial``."""
    add = parser.add_argument
    add("name", nargs="+", metavar="NAME", help="policies and bundles that are switched together")
    add(
        "--rounds",
        type=arguments.count(1, 1000),
        default=ROUNDS,
        metavar="N",
        help=f"rounds of three blocks; {MIN_ROUNDS} are needed for a verdict (%(default)s)",
    )
    add(
        "--block",
        type=arguments.number(0.5, 3600),
        default=BLOCK_S,
        metavar="SECONDS",
        help="length of a block (%(default)g)",
    )
    add(
        "--settle",
        type=arguments.number(0.1, 600),
        default=SETTLE_S,
        metavar="SECONDS",
        help="discarded before each block (%(default)g)",
    )
    add("--seed", type=arguments.count(0, 1 << 31), metavar="N", help="repeats an order of blocks")
    add("--json", action="store_true", help="print one JSON object")
    arguments.add_policy_settings(parser)
    arguments.add_agents(parser)


def run(args: argparse.Namespace) -> int:
    """Make the trial and tell. Exit code 0; 1 when it could not be finished."""
    from agenttop.agents.rules import Rules
    from agenttop.policies.catalog import parse_set
    from agenttop.policies.selection import expanded

    names, settings = expanded(args.name, parse_set(args.set))
    Rules.load(args.agents, args.agent)
    seed = {} if args.seed is None else {"seed": args.seed}
    plan = Plan(tuple(names), args.rounds, args.block, args.settle, **seed)
    # numpy and all that measures load only now.
    from agenttop.commands import session, trial_run

    engine = EngineOptions(
        agent_patterns=list(args.agent),
        agents_file=args.agents,
        delay_s=trial_run.delay_s(plan),
        settings=settings,
    )
    return session.quietly(lambda: trial_run.run(plan, engine, as_json=args.json))

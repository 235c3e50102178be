"""List, plan, apply and revert policies, and tell their status.

A policy holds only as long as the command that applied it lives: apply stays
in the foreground for the given time and then puts everything back, as it
does on Ctrl-C, SIGTERM and SIGHUP. If it is killed, its guardian does.
"""

from __future__ import annotations

import argparse

import msgspec

from agenttop.commands import policy_apply, policy_status, policy_trial
from agenttop.commands.agent_source import looking
from agenttop.commands.arguments import add_agents, add_policy_settings
from agenttop.errors import UserError
from agenttop.policies import bundles, catalog
from agenttop.policies.builtin.window import DURING, Window
from agenttop.policies.catalog import parse_set
from agenttop.policies.knobs import change_line
from agenttop.policies.manager import PolicyManager
from agenttop.policies.selection import states

#: Actions that write, and so not with --readonly.
WRITING = ("apply", "trial", "revert")


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--readonly", action="store_true", help=_READONLY)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    made = {
        name: actions.add_parser(name, help=text)
        for name, text in (
            ("list", "the policies and bundles, and whether they can be had here"),
            ("show", "what it is, and exactly what would be written where"),
            ("plan", "what a policy would change now"),
            ("apply", "hold policies for a time, then put everything back"),
            ("trial", "did it help? on and off in blocks of random order"),
            ("revert", "take policies back from whoever holds them"),
            ("status", "who holds which policies, and what they changed"),
        )
    }
    for name in ("show", "plan", "apply"):
        sub = made[name]
        sub.add_argument("name", nargs="+", metavar="NAME", help="'agenttop policy list' has them")
        add_policy_settings(sub)
        add_agents(sub)
    policy_apply.configure(made["apply"])
    policy_trial.configure(made["trial"])
    made["revert"].add_argument("name", nargs="?", metavar="NAME", help="only this one")
    for sub in made.values():
        # Before the action or behind it; without it there what was said before counts.
        sub.add_argument(
            "--readonly", action="store_true", default=argparse.SUPPRESS, help=_READONLY
        )


_READONLY = "write nothing: apply, trial and revert are refused"


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if something could not be restored."""
    if args.readonly and args.action in WRITING:
        raise UserError(f"policy {args.action}: refused, --readonly writes nothing")
    if args.action == "list":
        return _list()
    if args.action in ("plan", "show"):
        return _plan(args)
    if args.action == "apply":
        return policy_apply.run(args)
    if args.action == "trial":
        return policy_trial.run(args)
    if args.action == "revert":
        return policy_status.revert(args.name)
    return policy_status.status()


def _list() -> int:
    found = states(PolicyManager())
    for status in found:
        note = f"n/a: {status.detail}" if status.state == "n/a" else "available"
        print(f"{status.name:<8} {status.key}  {note:<12}  {status.title}")
    missing = {status.name for status in found if status.state == "n/a"}
    print()
    known = bundles.load_all().values()
    for bundle in known:
        names = " ".join(f"({n})" if n in missing else n for n in bundle.policies)
        print(f"{bundle.name:<14} {names:<28}  {bundle.title}")
    if any(missing & bundle.policies.keys() for bundle in known):
        print("(in brackets: cannot be had here, left out)")
    return 0


def _plan(args: argparse.Namespace) -> int:
    names, settings = bundles.expand(args.name, parse_set(args.set))
    manager = PolicyManager(settings=settings)
    known = bundles.load_all() if args.action == "show" else {}
    for name in args.name:
        if name in known:
            print(f"{name}: {known[name].title}\n  {known[name].why}\n  {known[name].file}")
    with looking(args, manager, names) as look:
        for name in names:
            changes = manager.plan(name, look.targets)
            status = next(s for s in manager.status() if s.name == name)
            print(f"{name}: {status.title}")
            if args.action == "show":
                params = catalog.params(name, settings.get(name, {}))
                for key, value in msgspec.structs.asdict(params).items():
                    print(f"  {name}.{key} = {msgspec.json.encode(value).decode()}")
            print(f"  {manager.detail(name)}")
            for change in changes:
                print(f"  {change_line(change)}{DURING if name == Window.name else ''}")
            if not changes:
                print("  nothing to change")
    return 0

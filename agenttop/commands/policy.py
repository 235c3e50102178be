"""List, plan, apply and revert policies, and tell their status.

A policy holds only as long as the command that applied it lives: apply stays
in the foreground for the given time and then puts everything back, as it
does on Ctrl-C, SIGTERM and SIGHUP. If it is killed, its guardian does.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterable

import msgspec

from agenttop import paths
from agenttop.agents import Rules
from agenttop.commands import trial
from agenttop.errors import UserError
from agenttop.model import Event
from agenttop.options import add_agents, add_policy_settings, number
from agenttop.policies import bundles, catalog, lock
from agenttop.policies.base import Targets
from agenttop.policies.catalog import parse_set
from agenttop.policies.guardian import REQUEST
from agenttop.policies.journal import Hold, JournalError, load, open_own, open_state_dir
from agenttop.policies.knobs import KNOBS
from agenttop.policies.lease import kept
from agenttop.policies.manager import PolicyManager
from agenttop.policies.targets import ProcTargets

#: Between two looks at the agents, and between two renewals of the lease, s.
LOOK_S = 1.0
TICK_S = 0.25
#: The first look, over which waits are counted: long enough for a slow loop.
FIRST_LOOK_S = 0.5
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="the policies and bundles, and whether they can be had here")
    show = actions.add_parser("show", help="what it is, and exactly what would be written where")
    plan = actions.add_parser("plan", help="what a policy would change now")
    apply = actions.add_parser("apply", help="hold policies for a time, then put everything back")
    for sub in (show, plan, apply):
        sub.add_argument("name", nargs="+", metavar="NAME", help="'agenttop policy list' has them")
        add_policy_settings(sub)
        add_agents(sub)
    how_long = apply.add_mutually_exclusive_group(required=True)
    how_long.add_argument("--for", dest="seconds", type=number(0.1, 604_800), metavar="SECONDS")
    how_long.add_argument(
        "--keep",
        action="store_true",
        help="apply once, end, and leave it applied until 'agenttop restore' (or a reboot);"
        " nobody follows the agents or looks for drift then",
    )
    trial.configure(
        actions.add_parser("trial", help="did it help? on and off in blocks of random order")
    )
    revert = actions.add_parser("revert", help="take policies back from whoever holds them")
    revert.add_argument("name", nargs="?", metavar="NAME", help="only this one")
    actions.add_parser("status", help="who holds which policies, and what they changed")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if something could not be restored."""
    if args.action == "list":
        return _list()
    if args.action in ("plan", "show"):
        return _plan(args)
    if args.action == "apply":
        return _apply(args)
    if args.action == "trial":
        return trial.run(args)
    if args.action == "revert":
        return _revert(args.name)
    return _status()


def _list() -> int:
    states = PolicyManager().status()
    for status in states:
        note = f"n/a: {status.detail}" if status.state == "n/a" else "available"
        print(f"{status.name:<8} {status.key}  {note:<12}  {status.title}")
    missing = {status.name for status in states if status.state == "n/a"}
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
    _, targets = _look(args)
    for name in _available(manager, names, len(names) > len(args.name)):
        changes = manager.plan(name, targets)
        status = next(s for s in manager.status() if s.name == name)
        print(f"{name}: {status.title}")
        if args.action == "show":
            params = catalog.params(name, settings.get(name, {}))
            for key, value in msgspec.structs.asdict(params).items():
                print(f"  {name}.{key} = {msgspec.json.encode(value).decode()}")
        print(f"  {manager.detail(name)}")
        for change in changes:
            print(f"  {change.line()}")
        if not changes:
            print("  nothing to change")
    return 0


def _available(manager: PolicyManager, names: list[str], some: bool) -> list[str]:
    """Those that can be had; the others are named, or an error unless ``some`` will do."""
    there = []
    for name in names:
        if reason := manager.reason(name):
            if not some:
                raise UserError(f"{name}: {reason}")
            print(f"agenttop: left out {name}: {reason}", file=sys.stderr)
        else:
            there.append(name)
    if not there:
        raise UserError("none of these policies can be had here")
    return there


def _apply(args: argparse.Namespace) -> int:
    names, settings = bundles.expand(args.name, parse_set(args.set))
    manager = PolicyManager(settings=settings, verbose=True)
    names = _available(manager, names, len(names) > len(args.name))
    source, targets = _look(args)
    # Blocked and waited for: a signal never tears a request to the guardian apart.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    failed = False
    try:
        for name in names:
            events = manager.set(name, True, targets)
            if error := next((e.text for e in events if e.kind == "error"), None):
                raise UserError(error)
            _show(events)
        if args.keep:
            return 1 if _show(manager.keep()) else 0
        deadline = time.monotonic() + args.seconds
        looked = time.monotonic()
        while (left := deadline - time.monotonic()) > 0:
            if signal.sigtimedwait(ENDING, min(TICK_S, left)):
                break
            if time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                targets = source.read()
            failed |= _show(manager.tick(targets))
            if manager.guardian is None:
                return 1  # Taken back by somebody else, and said so.
    finally:
        failed |= _show(manager.close())
        signal.sigtimedwait(ENDING, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    return 1 if failed else 0


def _look(args: argparse.Namespace) -> tuple[ProcTargets, Targets]:
    """The agents and where they run, after a short look at them."""
    source = ProcTargets(Rules.load(args.agents, args.agent))
    source.read()
    time.sleep(FIRST_LOOK_S)
    targets = source.read()
    if not targets.agents:
        print("agenttop: no agents found (--agent pid:N names one); waiting", file=sys.stderr)
    return source, targets


def _show(events: Iterable[Event]) -> bool:
    """Print events; whether one of them is an error."""
    failed = False
    for event in events:
        failed |= event.kind == "error"
        mark = {"info": "  ", "warning": "! ", "error": "! "}.get(event.kind, "")
        try:
            print(f"{mark}{event.text}", flush=True)
        except OSError:  # The terminal or the reader has gone; what we hold must go back anyway.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return failed


# --------------------------------------------------------------------------- others' policies


def _revert(name: str | None) -> int:
    manager = PolicyManager()
    if name is not None:
        manager.reason(name)
    try:
        owner = lock.owner(str(paths.state()))
        held = _held()
        if owner is None:
            if held and kept(str(paths.state())):
                raise UserError("it was left applied with --keep: 'agenttop restore' undoes it")
            if held:
                raise UserError("its owner is dead: 'agenttop restore' puts back what it left")
            print("no policy is applied")
            return 0
        if not owner.guardian:
            print(f"no policy is applied (agenttop with pid {owner.pid} has its guardian ended)")
            return 0
        policies = sorted({hold.policy for hold in held})
        if name is not None and name not in policies:
            print(f"{name} holds nothing")
            return 0
        _request(owner.guardian, name or "")
    except JournalError as error:
        raise UserError(str(error)) from None
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        left = [hold for hold in _held() if name in (None, hold.policy)]
        if not left:
            for hold in held:
                if name in (None, hold.policy):
                    print(f"  {KNOBS[hold.kind].label(hold.target)}: given back")
            print(f"reverted {name or ', '.join(policies) or 'all'}")
            return 0
        time.sleep(0.02)
    raise UserError(f"the guardian, pid {owner.guardian}, did not revert: end it with SIGTERM")


def _request(guardian: int, name: str) -> None:
    """Ask a guardian to give one policy back, or all (see guardian.py)."""
    dir_fd = open_state_dir(str(paths.state()))
    assert dir_fd is not None
    try:
        fd = open_own(dir_fd, REQUEST, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, name.encode())
        os.close(fd)
        os.kill(guardian, signal.SIGUSR1)
    except ProcessLookupError:
        pass  # It has just ended, and so reverted.
    finally:
        os.close(dir_fd)


def _held() -> list[Hold]:
    """What the journal says is held. Raises JournalError."""
    dir_fd = open_state_dir(str(paths.state()), create=False)
    if dir_fd is None:
        return []
    try:
        found = load(dir_fd)
    finally:
        os.close(dir_fd)
    return found.holds if found and found.this_boot else []


def _status() -> int:
    try:
        owner, held = lock.owner(str(paths.state())), _held()
        left_applied = kept(str(paths.state()))
    except JournalError as error:
        raise UserError(str(error)) from None
    if owner is None and not held:
        print("no policy is applied")
        return 0
    if owner is None and left_applied:
        print("kept: left applied on purpose (--keep); 'agenttop restore' puts it back:")
    elif owner is None:
        print("left by an agenttop that was killed; 'agenttop restore' puts it back:")
    else:
        guardian = f", guardian {owner.guardian}" if owner.guardian else ", no guardian"
        print(f"held by agenttop with pid {owner.pid or 'unknown'}{guardian}")
    for hold in held:
        label = KNOBS[hold.kind].label(hold.target)
        print(f"  {hold.policy}: {label}: {hold.original} -> {hold.ours[-1]}")
    return 0

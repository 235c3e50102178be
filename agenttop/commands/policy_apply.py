"""Hold policies for a time in the foreground, or leave them applied on purpose."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from agenttop.commands.agent_source import Look, looking
from agenttop.commands.arguments import number
from agenttop.errors import UserError
from agenttop.linux import signals
from agenttop.model.sample import Budget, Event
from agenttop.policies import bundles
from agenttop.policies.base import Targets
from agenttop.policies.builtin.guard import Guard
from agenttop.policies.builtin.window import Window
from agenttop.policies.catalog import parse_set
from agenttop.policies.manager import PolicyManager
from agenttop.policies.selection import left_out
from agenttop.text.figures import clean, duration

#: Between two renewals of the lease, s.
TICK_S: Final = 0.25
#: Agents whose budgets are told of at the end.
MOST_AGENTS: Final = 64
#: Why the window is not for --keep.
_NOT_KEPT: Final = "cannot be kept, its windows end with the command that opens them: use --for"


def configure(parser: argparse.ArgumentParser) -> None:
    """How long ``agenttop policy apply`` holds."""
    how_long = parser.add_mutually_exclusive_group(required=True)
    how_long.add_argument("--for", dest="seconds", type=number(0.1, 604_800), metavar="SECONDS")
    how_long.add_argument(
        "--keep",
        action="store_true",
        help="apply once, end, and leave it applied until 'agenttop restore' (or a reboot);"
        " nobody follows the agents or looks for drift then",
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if something could not be restored, or somebody else took it back."""
    names, settings = bundles.expand(args.name, parse_set(args.set))
    if args.keep and Window.name in names:
        if Window.name in args.name or len(names) == 1:
            raise UserError(f"{Window.name}: {_NOT_KEPT}")
        names.remove(Window.name)
        left_out(Window.name, _NOT_KEPT)
    if args.keep:
        # A limit for all CPUs at once lives only as long as its writer.
        settings[Guard.name] = {**settings.get(Guard.name, {}), "per_cpu": True}
    manager = PolicyManager(settings=settings, verbose=True)
    # Noted and waited for: a signal never tears a request to the guardian apart.
    with looking(args, manager, names) as look, signals.noted() as wait:
        budgets = Budgets()
        try:
            failed = _hold(args, manager, names, look, budgets, wait)
        finally:
            unsettled = _show(manager.close())
        _print(budgets.lines())
    return 1 if failed or unsettled else 0


def _hold(
    args: argparse.Namespace,
    manager: PolicyManager,
    names: list[str],
    look: Look,
    budgets: Budgets,
    wait: Callable[[float], bool],
) -> bool:
    """Until the time is over or a signal comes; whether something went wrong."""
    for name in names:
        events = manager.set(name, True, look.targets)
        errors = [e.text for e in events if e.kind == "error"]
        # One that is on all the same is about what an earlier agenttop had left.
        if errors and not manager.is_on(name):
            raise UserError(errors[-1])
        _show(events)
    if args.keep:
        return _show(manager.keep())
    failed = False
    budgets.take(manager, look.targets)
    deadline = time.monotonic() + args.seconds
    while (left := deadline - time.monotonic()) > 0:
        if wait(min(TICK_S, left)):
            break
        targets = look.tend()
        failed |= _show(manager.tick(targets))
        if manager.guardian is None:
            return True  # Taken back by somebody else, and said so.
        budgets.take(manager, targets)
    budgets.take(manager, look.targets)
    return failed


class Budgets:
    """What the windows of each agent cost: the last that was known of them."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Budget]] = {}

    def take(self, manager: PolicyManager, targets: Targets) -> None:
        """As of now."""
        if not manager.is_on(Window.name):
            return
        names = {str(agent.id): agent.name for agent in targets.agents}
        for status in manager.status():
            for agent, budget in status.budgets.items():
                self._known[agent] = names.get(agent, "?"), budget

    def lines(self) -> Iterator[str]:
        """One for each agent, those with the most grants first."""
        ranked = sorted(self._known.values(), key=lambda known: -known[1].grants)
        for name, budget in ranked[:MOST_AGENTS]:
            line = (
                f"  window: {clean(name, 40)}: {budget.tokens:,.0f} of {budget.capacity:,.0f}"
                f" tokens, {budget.grants:,} grants, {budget.refusals:,} refusals"
            )
            if budget.throttles:
                line += f", throttled {budget.throttles:,} times"
                line += f" for {duration(budget.degraded_ns)} together"
            yield line
        if len(ranked) > MOST_AGENTS:
            yield f"  window: and {len(ranked) - MOST_AGENTS} more agents"


def _show(events: Iterable[Event]) -> bool:
    """Print events; whether one of them is an error."""
    events = list(events)
    marks = {"info": "  ", "warning": "! ", "error": "! "}
    _print(f"{marks.get(event.kind, '')}{event.text}" for event in events)
    return any(event.kind == "error" for event in events)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        try:
            print(line, flush=True)
        except OSError:  # The terminal or the reader has gone; what we hold must go back anyway.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""What was asked for on a command line: policies and bundles, as far as they can be had here."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping

from agenttop.errors import UserError
from agenttop.linux.capabilities import why_no_bpf
from agenttop.model.sample import PolicyStatus
from agenttop.policies import bundles
from agenttop.policies.builtin.window import NO_CHAINS
from agenttop.policies.catalog import Settings
from agenttop.policies.manager import PolicyManager


def available(manager: PolicyManager, names: Iterable[str], asked: Iterable[str]) -> list[str]:
    """Of ``names`` those that can be had; what a bundle goes on without is said on stderr.

    Raises UserError where that leaves none, or one was asked for by its own name.
    """
    reasons = {name: manager.reason(name) for name in names}
    lacking = {name: reason for name, reason in reasons.items() if reason}
    for name, reason in lacking.items():
        if name in asked:
            raise UserError(f"{name}: {reason}")
    _leave_out(reasons, lacking)
    return [name for name in reasons if name not in lacking]


def expanded(asked: list[str], given: Settings) -> tuple[list[str], dict[str, dict[str, object]]]:
    """Policies and bundles as the policies to be switched together, and their settings.

    What a bundle has and this machine lacks is left out and said so; a policy that was asked
    for by its own name stays. Raises UserError.
    """
    names, settings = bundles.expand(asked, given)
    if set(names) <= set(asked):
        return names, settings
    found = states(PolicyManager(settings=settings))
    lacking = {
        status.name: status.detail
        for status in found
        if status.state == "n/a" and status.name in names and status.name not in asked
    }
    _leave_out(names, lacking)
    return [name for name in names if name not in lacking], settings


def _leave_out(names: Collection[str], lacking: Mapping[str, str]) -> None:
    """Say what a bundle goes on without. Raises UserError where nothing is left of it."""
    if lacking.keys() >= set(names):
        each = "; ".join(f"{name}: {reason}" for name, reason in lacking.items())
        raise UserError(f"none of these policies can be had here: {each}")
    for name, reason in lacking.items():
        left_out(name, reason)


def left_out(name: str, reason: str) -> None:
    """Say that a bundle goes on without this policy."""
    print(f"agenttop: left out {name}: {reason}", file=sys.stderr)


def states(manager: PolicyManager) -> list[PolicyStatus]:
    """Every policy as it can be had by a command, which loads the kernel side if need be."""
    if reason := why_no_bpf():
        manager.attach(None, reason)
    found = manager.status()
    for status in found:
        if status.detail == NO_CHAINS:
            status.state, status.detail = "off", ""
    return found

"""Which of a bundle's policies are there, and whether they are on."""

from __future__ import annotations

from agenttop.model.sample import PolicyStatus
from agenttop.policies.bundles import Bundle
from agenttop.view.state import View


def available(view: View, bundle: Bundle) -> list[PolicyStatus]:
    """Those of its policies that the machine that is shown supports."""
    return [p for p in view.policies if p.name in bundle.policies and p.state != "n/a"]


def is_on(view: View, bundle: Bundle) -> bool:
    """Whether all of them that it supports are on."""
    there = available(view, bundle)
    return bool(there) and all(p.state in ("on", "drift") for p in there)

"""What a policy's or a bundle's key does: asks the engine to switch, or says why not."""

from __future__ import annotations

from collections.abc import Callable

from agenttop.model.sample import Command, PolicyStatus
from agenttop.policies.bundles import Bundle
from agenttop.text.figures import clean
from agenttop.view.bundles import available, is_on
from agenttop.view.state import View

Send = Callable[[Command], None]


def toggle(view: View, policy: PolicyStatus, send: Send) -> tuple[str, str]:
    """Switch a policy on, or off if it is on: a line for the reader, its kind."""
    name = clean(policy.name, 24)
    if why_not := _not_now(view):
        return f"{name}: {why_not}", "warning"
    if policy.state == "n/a":
        return f"{name}: N/A, {policy.detail}", "warning"
    view.trials.switched(policy.name)
    on = policy.state in ("off", "error")
    send(Command("policy", name=policy.name, on=on))
    return _switching(name, on), "policy"


def toggle_bundle(view: View, bundle: Bundle, send: Send) -> tuple[str, str]:
    """Switch all of a bundle on, or off if all of it is on."""
    if why_not := _not_now(view):
        return f"{bundle.name}: {why_not}", "warning"
    if not available(view, bundle):
        return f"{bundle.name}: N/A, none of its policies can be had here", "warning"
    on = not is_on(view, bundle)
    for name in bundle.policies:
        view.trials.switched(name)
    send(Command("bundle", name=bundle.name, on=on))
    return _switching(bundle.name, on), "policy"


def _not_now(view: View) -> str | None:
    """Why nothing is switched now, or None."""
    if view.options.readonly:
        return "not switched, agenttop runs with --readonly"
    if view.trials.running is not None:
        return "not switched while a trial runs: e or Esc ends it"
    return None


def _switching(name: str, on: bool) -> str:
    return f"{name}: switching {'on' if on else 'off'}"

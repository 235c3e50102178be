"""What the policy commands look at: the agents."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from agenttop.agents.rules import Rules
from agenttop.linux.capabilities import why_no_bpf
from agenttop.policies.base import Targets
from agenttop.policies.builtin.window import Window
from agenttop.policies.manager import PolicyManager
from agenttop.policies.procfs_targets import ProcTargets
from agenttop.policies.selection import available

if TYPE_CHECKING:
    from agenttop.engine.bpf_targets import Measured

#: Between two looks at the agents, s.
LOOK_S: Final = 1.0
#: The first look, over which waits are counted: long enough for a slow loop.
FIRST_LOOK_S: Final = 0.5


class Look:
    """The agents from /proc or, where latency windows are wanted, as the kernel side has them."""

    def __init__(self, rules: Rules, measured: Measured | None) -> None:
        self._measured = measured
        self._source = measured or ProcTargets(rules)
        self._source.read()
        time.sleep(FIRST_LOOK_S)
        self._read()
        if not self.targets.agents:
            print("agenttop: no agents found (--agent pid:N names one); waiting", file=sys.stderr)

    def _read(self) -> None:
        self.targets: Targets = self._source.read()
        self._looked = time.monotonic()

    def tend(self) -> Targets:
        """The agents; call it some four times a second. They are read anew once a second."""
        if time.monotonic() - self._looked >= LOOK_S:
            self._read()
        elif self._measured is not None:
            self._measured.edges()
        return self.targets


@contextmanager
def looking(args: argparse.Namespace, manager: PolicyManager, names: list[str]) -> Iterator[Look]:
    """A look at the agents; where the window is among the policies, its kernel side is loaded.

    ``names`` loses the policies that cannot be had, which are named on stderr;
    UserError where that leaves none, or one was asked for by its own name.
    """
    rules = Rules.load(args.agents, args.agent)
    measured = _load(rules, manager) if Window.name in names else None
    try:
        names[:] = available(manager, names, args.name)
        yield Look(rules, measured)
    finally:
        if measured is not None:
            measured.close()


def _load(rules: Rules, manager: PolicyManager) -> Measured | None:
    """The kernel side for the manager's window; without it the manager knows why."""
    if reason := why_no_bpf():
        manager.attach(None, reason)
        return None
    # numpy and all that measures load only now.
    from agenttop.collectors.bpf.load.loader import LoadError
    from agenttop.engine.bpf_targets import Measured

    try:
        measured = Measured(rules)
    except LoadError as error:
        manager.attach(None, str(error))
        return None
    manager.attach(measured.windows)
    return measured

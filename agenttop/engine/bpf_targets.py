"""Targets with step chains but without an engine, for a command that holds latency windows."""

from __future__ import annotations

from agenttop.agents.rules import Rules
from agenttop.collectors.bpf.load.loader import Loading
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.collectors.bpf.read.windows import Windows
from agenttop.collectors.procfs.own_cpu import SelfCost
from agenttop.engine.agent_registry import Registry
from agenttop.engine.policy_targets import EngineTargets
from agenttop.engine.sampler import Sampler
from agenttop.policies.base import Targets


class Measured:
    """The kernel side, loaded, and the agents as it measures them.

    Loads at level lite, which taxes no system call. Raises LoadError with one
    line that says why it cannot be had.
    """

    def __init__(self, rules: Rules) -> None:
        loading = Loading("lite")
        try:
            self._tracer = Tracer(loading.result())
        except KeyboardInterrupt:
            loading.cancel()
            raise
        self._registry = Registry(rules)
        self._sampler = Sampler(self._registry, SelfCost())
        self._sampler.attach(self._tracer)
        self._targets = EngineTargets(self._registry)

    @property
    def windows(self) -> Windows:
        """For PolicyManager.attach."""
        return self._tracer.windows

    def edges(self) -> None:
        """Take in processes that began and ended; to be called some four times a second."""
        self._sampler.edges()

    def read(self) -> Targets:
        """The agents and CPUs now."""
        self._sampler.edges()
        if self._registry.scan_due:
            self._registry.scan()
        self._targets.update(self._sampler.sample())
        return self._targets.current()

    def close(self) -> None:
        """Take everything out of the kernel."""
        self._tracer.close()

"""The agents' control-loop threads by their names as knobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agenttop.policies.base import Agent, Key, Targets, Thread
from agenttop.policies.knobs.base import split_thread, thread_stat


def named(
    targets: Targets, kind: str, held: Mapping[Key, str]
) -> Iterator[tuple[str, Agent, Thread]]:
    """(``PID/TID/START``, agent, thread) of every thread that lives.

    The manager sees to it that a thread held under ``kind`` is still the same one.
    """
    known = {split_thread(target)[1]: target for k, target in held if k == kind}
    for agent in targets.agents:
        for thread in agent.threads:
            name = known.get(thread.tid)
            if name is None:
                stat = thread_stat(thread.pid, thread.tid)
                if stat is None:
                    continue
                name = f"{thread.pid}/{thread.tid}/{stat.start}"
            yield name, agent, thread

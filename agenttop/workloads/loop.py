"""The controlled loop: gate, compute, gate, compute, each timed by the loop itself."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from agenttop.errors import UserError
from agenttop.workloads import cause_makers, gates, run_delays, syscalls
from agenttop.workloads.exact_stats import Record, Result, evaluate

#: The longest loop: each step is kept, 24 bytes while it runs and 120 when it is evaluated.
MAX_STEPS: Final = 1_000_000


@dataclass(frozen=True)
class Settings:
    """A loop: what it waits for, how long it computes, how it is run."""

    plan: gates.Plan
    steps: int = 1000
    compute_ns: int = 0
    seconds: float | None = None
    cpu: int | None = None
    name: str = "atloop"
    opt_in: str = "none"
    wait: bool = False
    #: Made once a step (causes.MAKERS, causes.ASIDE, waits.AWAITED).
    cause: str | None = None


class _Stop(BaseException):
    """Raised by a signal handler: leaves any gate at once (PEP 475 would go on waiting)."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT, SIGTERM, SIGHUP and the alarm of ``--for`` end the block, quietly, once."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)

    def stop(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise _Stop

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    except _Stop:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def run(settings: Settings) -> Result:
    """Run the loop in this process to its end, its time or a signal. Raises UserError.

    Takes the process over: its name, its signals, its garbage collector.
    """
    gates.validate(settings.plan)
    allowed = os.sched_getaffinity(0)
    peer_cpu = settings.plan.peer_cpu
    if peer_cpu is not None and peer_cpu not in allowed:
        known = ", ".join(map(str, sorted(allowed)))
        raise UserError(f"the peer cannot run on CPU {peer_cpu}: this process may use {known}")
    # The peer starts in here, before the name that agenttop may go by.
    try:
        step = gates.build(settings.plan)
    except OSError as error:
        raise UserError(f"cannot set up the loop: {error}") from None
    maker: cause_makers.Maker | None = None
    awaited: run_delays.Awaited | None = None
    try:
        made = cause_makers.MAKERS | cause_makers.ASIDE
        if settings.cause in made:
            maker = made[settings.cause](settings.plan.file)
        syscalls.pin(settings.cpu)
        if settings.cause in run_delays.AWAITED:
            awaited = run_delays.AWAITED[settings.cause](settings.plan.interval_ns)
        syscalls.set_name(settings.name)
        syscalls.set_timer_slack(settings.plan.slack_ns)
        if settings.opt_in == "sched_setattr":
            syscalls.opt_in_sched_setattr()
        record = Record(settings.steps, settings.cause is not None)
        gc.collect()
        gc.disable()
        with _stoppable():
            if settings.wait:
                _wait_for_line()
            if settings.seconds is not None:
                signal.setitimer(signal.ITIMER_REAL, settings.seconds)
            mark = settings.opt_in == "marker"
            _steps(step, record, settings.compute_ns, mark, maker, awaited)
        plan = settings.plan
        return evaluate(record, os.getpid(), threading.get_native_id(), plan.gate, plan.source)
    except OSError as error:
        # Out of processes, descriptors or permission half way.
        raise UserError(f"the loop broke: {error}") from None
    finally:
        step.close()
        for one in (maker, awaited):
            if one is not None:
                one.close()


def _wait_for_line() -> None:
    print(f"READY pid={os.getpid()}", flush=True)
    # Past Python's buffers: nothing else of stdin is ours.
    if not os.read(sys.stdin.fileno(), 1):
        raise UserError("--wait: stdin ended before a line came")


def _steps(
    step: gates.Step,
    record: Record,
    compute_ns: int,
    mark: bool,
    maker: cause_makers.Maker | None,
    awaited: run_delays.Awaited | None,
) -> None:
    """The loop itself: no allocation that lasts, the clock read right beside each gate."""
    enter, leave, origin, slept = record.enter, record.leave, record.origin, record.slept
    arm, wait, finish = step.arm, step.wait, step.finish
    now = time.monotonic_ns
    marker = syscalls.mark_step
    sleeps = syscalls.Sleeps().count
    step.source.start()
    for index in range(len(enter)):
        arm()
        if mark:
            marker(index)
        before = sleeps()
        enter[index] = now()
        wait()
        left = now()
        slept[index] = sleeps() != before
        leave[index] = left
        record.gates = index + 1
        origin[index] = finish()
        if maker is not None:
            record.caused[index] = maker.make()
        elif awaited is not None:
            record.caused[index] = awaited.make(origin[index], left)
        if compute_ns:
            end = left + compute_ns
            while now() < end:
                pass

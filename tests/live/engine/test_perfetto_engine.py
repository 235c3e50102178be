"""Traces as Perfetto's own trace processor reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenttop.flight.perfetto_trace import trace
from agenttop.flight.recorder import Flight, Who
from agenttop.model.vocabulary import STAGES
from tests.support.engines import needs_bpf
from tests.support.loops import loop
from tests.support.perfetto_processor import TraceProcessor, engine_folder
from tests.support.synth import Synth
from tests.unit.flight.test_perfetto_trace import agenttop, flown, of_steps, one


@pytest.fixture(autouse=True)
def there() -> None:
    engine_folder()


def check(found: TraceProcessor, steps: int) -> None:
    """It takes all of it, and in it the stages of each step fill the step, to the nanosecond."""
    assert found.errors() == []
    filled = found.query(
        "select step.dur, sum(stage.dur), min(stage.ts) - step.ts"
        " from slice step join slice stage on stage.parent_id = step.id"
        " where step.category = 'step' group by step.id"
    )
    assert len(filled) == steps
    assert all(whole == parts and not late for whole, parts, late in filled)


def test_a_step_its_stages_and_its_thread() -> None:
    with TraceProcessor(trace(of_steps(one()))) as found:
        check(found, 1)
        assert found.query(
            "select s.name, s.ts, s.dur, t.tid, p.pid, p.name from slice s"
            " join thread_track k on s.track_id = k.id join thread t using (utid)"
            " join process p using (upid) where s.category = 'step'"
        ) == [("step epoll_wait", 1_000_000, 1_000_000, 11, 10, "coder")]
        took = zip(STAGES, one().stages_ns, strict=True)
        assert found.query(
            "select name, dur from slice where parent_id is not null order by ts"
        ) == [(stage, ns) for stage, ns in took if ns]
        assert found.query(
            "select extract_arg(arg_set_id, 'debug.source'),"
            " extract_arg(arg_set_id, 'debug.slowpath_ns') from slice where category = 'step'"
        ) == [("ipc", 300_000)]


def test_the_waker_leads_to_the_wake_up() -> None:
    with TraceProcessor(trace(of_steps(one()))) as found:
        assert found.query(
            "select a.name, b.name, a.ts from flow"
            " join slice a on flow.slice_out = a.id join slice b on flow.slice_in = b.id"
        ) == [("wakes coder", "ipi", 1_170_000)]


def test_a_whole_run() -> None:
    synth = Synth()
    samples = synth.samples(20)
    synth.toggle("guard")
    flight = flown(samples + synth.samples(10))
    with TraceProcessor(trace(flight)) as found:
        check(found, len(flight.steps))
        tails = found.query(
            "select c.ts, c.value from counter c join track t on c.track_id = t.id"
            " where t.name = 'coder slowpath p99' order by c.ts"
        )
        assert tails == [(t.from_ns, t.p99_ns) for t in flight.tails if t.agent == 1]
        assert found.query("select name from slice where category = 'policy'") == [("guard on",)]


def test_hostile_names() -> None:
    flight: Flight = of_steps(one(waker="\x1b[2J\udcff [77]", gate="epoll\nwait"))
    flight.agents[1] = Who("\x1b]0;x\x07" + "a" * 5000, "r", 10)
    with TraceProcessor(trace(flight)) as found:
        check(found, 1)
        assert all(str(name).isprintable() for (name,) in found.query("select name from slice"))


@pytest.mark.bpf
@pytest.mark.long
def test_a_live_trace(tmp_path: Path) -> None:
    needs_bpf()
    file = tmp_path / "a.perfetto-trace"
    with loop("--name", "traced", "--source", "ipc", "--interval-us", 500, "--for", 60) as mine:
        mine.go()
        done = agenttop(
            *("trace", "-o", file, "--for", 3, "--agent", "comm:^traced$", "-d", 0.5),
            AGENTTOP_STATE=str(tmp_path / "state"),
        )
    assert done.returncode == 0, done.stderr
    with TraceProcessor(file.read_bytes()) as found:
        ((steps,),) = found.query("select count(*) from slice where category = 'step'")
        check(found, steps)
        assert steps
        assert found.query(
            "select distinct t.tid from slice s join thread_track k on s.track_id = k.id"
            " join thread t using (utid) where s.category = 'step'"
        ) == [(mine.pid,)]

"""Steps told by io_uring's user_data, on the live kernel, with real requests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop import step as module
from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.step import CLASSES
from tests.live.bpf.test_steps import at, by_name, watch, watch_command
from tests.support.tracing import LEVELS, load, measured

pytestmark = pytest.mark.bpf

PACKAGE = Path(module.__file__).parent


@pytest.fixture(scope="module", params=LEVELS)
def tracer(request: pytest.FixtureRequest) -> Iterator[Tracer]:
    tracer = load(request.param)
    tracer.causes.follow_contexts(True)
    tracer.causes.finish()
    yield tracer
    tracer.close()


#: wait(what, ns, own): one request, a timeout, that counts as a step of ``what``.
RING = (
    "from agenttop.workloads import uring\n"
    "from agenttop.workloads.syscalls import Timespec, address\n"
    "ring, span = uring.Uring(), Timespec()\n"
    "def request(ns, data):\n"
    "    span.sec, span.nsec = divmod(ns, 10**9)\n"
    "    ring.queue(uring.OP_TIMEOUT, -1, address(span), 1, 0, user_data=data)\n"
    "    ring.wait(); ring.reap()\n"
    "def wait(what, ns, own=0): request(ns, uring_user_data(what, own))\n"
)


def met(tracer: Tracer, slot: int) -> dict[str, tuple[int, int]]:
    """Class -> contexts that met their deadline, and that missed it."""
    marks = tracer.steps.marks(slot)
    return {
        name: (marks.met[i], marks.missed[i])
        for i, name in enumerate(CLASSES)
        if marks.met[i] or marks.missed[i]
    }


@pytest.mark.measures
def test_a_completion_is_a_step_of_what_its_user_data_names(tracer: Tracer, slot: int) -> None:
    markers = watch(
        tracer,
        slot,
        RING + "import agenttop.step as s\n"
        "sent, real = [], s._prctl\n"
        "s._prctl = lambda *a: (sent.append(a), real(*a))\n"
        "quick = step('quick', latency='interactive', within_ns=10**9)\n"
        "late = step('late', latency='batch', within_ns=1)\n"
        "plain = step('plain')\n"
        "for i in range(150):\n"
        "    wait(quick, 1_000_000, i); wait(late, 3_000_000, 2**32 - 1); wait(plain, 1_000_000)\n"
        "    request(500_000, i)\n"
        "print(json.dumps(len(sent)))\n",
    )
    named = by_name(tracer, slot)
    assert set(named) == {"quick", "late", "plain"}
    for one in named.values():
        assert one.steps == pytest.approx(150, abs=4)
    assert 1.0e6 < at(named["quick"], "step", 0.5) < 2.5e6
    assert 3.0e6 < at(named["late"], "step", 0.5) < 4.5e6
    # A deadline is one of each request: what has none is not judged.
    assert met(tracer, slot) == {"interactive": (150, 0), "batch": (0, 150)}
    marks = tracer.steps.marks(slot)
    assert (marks.contexts, marks.kept) == (450, 3)
    assert (marks.forgotten, marks.strays, marks.invalid) == (0, 0, 0)
    # Beside the requests there are a few calls, and not one for each.
    assert 3 <= markers <= 15
    assert measured(tracer, slot).steps >= 580


@pytest.mark.measures
def test_a_worker_or_another_thread_may_complete_it(tracer: Tracer, slot: int) -> None:
    watch(
        tracer,
        slot,
        RING + "from agenttop.workloads.blockfile import BLOCK, BlockFile\n"
        "file, read = BlockFile(None, 1 << 20, direct=False), step('read')\n"
        "for i in range(300):\n"
        "    at = i % file.blocks * BLOCK\n"
        "    file.forget(at)\n"
        "    ring.queue(uring.OP_READ, file.fd, file.address, BLOCK, at, 0, uring.SQE_ASYNC,\n"
        "               uring_user_data(read))\n"
        "    ring.wait(); ring.reap()\n",
    )
    assert tracer.steps.marks(slot).contexts == 300
    # A disk may be done before the thread waits: then there is no step.
    sources = measured(tracer, slot).sources
    woken = min(sources["io_uring"] + sources["block"], 300)
    assert woken >= 30
    assert by_name(tracer, slot)["read"].steps == pytest.approx(woken, abs=8)


def test_a_name_that_holds_goes_before(tracer: Tracer, slot: int) -> None:
    watch(
        tracer,
        slot,
        RING + "inner = step('inner')\n"
        "for _ in range(50):\n"
        "    with step('outer'): wait(inner, 500_000)\n",
    )
    assert set(by_name(tracer, slot)) == {"inner", "outer"}
    assert by_name(tracer, slot)["outer"].steps >= 45
    assert by_name(tracer, slot)["inner"].steps == 0


def test_numbers_are_a_process_s_own(tracer: Tracer, slot: int) -> None:
    """Parent and child, one agent, give the same number to different things."""
    watch(
        tracer,
        slot,
        "mine = step('parent')\n"
        "child = os.fork()\n"
        "if not child: mine = step('child')\n" + RING + "for _ in range(60): wait(mine, 500_000)\n"
        "if child: os.waitpid(child, 0)\n"
        "else: os._exit(0)\n",
    )
    steps = {name: one.steps for name, one in by_name(tracer, slot).items()}
    assert steps == {name: pytest.approx(60, abs=3) for name in ("parent", "child")}


def test_more_contexts_than_there_is_room_for(tracer: Tracer, slot: int) -> None:
    watch(
        tracer,
        slot,
        RING + "many = [step(f'{i}', within_ns=10**9) for i in range(200)]\n"
        "for one in many: wait(one, 200_000)\n"
        "request(200_000, 0x4147 << 48 | 60000 << 32)\n",
    )
    marks = tracer.steps.marks(slot)
    room = layout.KEPT_SETS * layout.KEPT_WAYS
    assert marks.kept == 200
    assert marks.forgotten >= 200 - room
    # Each was told right before it was used.
    assert met(tracer, slot) == {"none": (200, 0)}
    assert marks.strays == 1
    assert len(by_name(tracer, slot)) <= layout.NAMES_EACH + 1
    tracer.clear(slot)
    assert not tracer.steps.marks(slot).kept
    tracer.release(slot)


def test_user_data_without_a_context_is_nothing(tracer: Tracer, slot: int) -> None:
    """Who has told of nothing may put what it likes there."""
    watch(
        tracer,
        slot,
        RING + "for i in range(50): request(200_000, 0x4147 << 48 | i << 32)\n",
    )
    marks = tracer.steps.marks(slot)
    assert (marks.contexts, marks.strays, marks.kept) == (0, 0, 0)
    assert by_name(tracer, slot) == {}


def test_what_a_request_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bits"):
        module.uring_user_data(module.step("x"), 1 << 32)
    for wrong in ("deadline_ns", "budget_ns"):
        with pytest.raises(ValueError, match="within_ns"):
            module.uring_user_data(module.step("x", **{wrong: 5}))  # type: ignore[arg-type]


C_PROGRAM = r"""
#include <stdio.h>
#include "agenttop_step.h"

int main(void)
{
	static const struct agenttop_step_context named = AGENTTOP_STEP_CONTEXT("from C");

	puts("ready");
	fflush(stdout);
	getchar();
	agenttop_step(7, AGENTTOP_CLASS_BATCH | AGENTTOP_STEP_URING, 1000, &named);
	agenttop_step(0, AGENTTOP_STEP_URING, 0, &named);
	agenttop_step(1 << 16, AGENTTOP_STEP_URING, 0, &named);
	unsigned long long data = agenttop_uring_user_data(7, 0xffffffff);

	printf("[%d, %llu]", AGENTTOP_STEP_URING, data);
	return 0;
}
"""


def test_the_c_header_says_the_same(tracer: Tracer, slot: int, tmp_path: Path) -> None:
    source = tmp_path / "told.c"
    source.write_text(C_PROGRAM)
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-I", str(PACKAGE), str(source)]
    subprocess.run([*command, "-o", str(tmp_path / "told")], check=True)
    told = watch_command(tracer, slot, [str(tmp_path / "told")])
    assert told == [module.URING, module.URING_MAGIC << 48 | 7 << 32 | 0xFFFFFFFF]
    marks = tracer.steps.marks(slot)
    assert (marks.kept, marks.invalid, marks.contexts) == (1, 2, 0)


def test_python_tells_a_number_once_and_again_in_a_child() -> None:
    text = (
        "import os, agenttop.step as s\n"
        "sent = []\n"
        "s._prctl = lambda *a: sent.append(a)\n"
        "one = s.step('a', latency='normal', within_ns=5)\n"
        "first = s.uring_user_data(one, 3)\n"
        "assert first == s.URING_MAGIC << 48 | 1 << 32 | 3\n"
        "assert s.uring_user_data(one, 4) == first + 1 and len(sent) == 1\n"
        "assert sent[0][:4] == (s.MARKER, 1, s.CLASSES.index('normal') | s.URING, 5)\n"
        "if os.fork():\n"
        "    assert os.wait()[1] == 0\n"
        "else:\n"
        "    s.uring_user_data(one)\n"
        "    os._exit(len(sent) - 2)\n"
    )
    subprocess.run([sys.executable, "-c", text], check=True)

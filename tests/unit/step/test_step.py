"""agenttop.step by itself: what it tells the kernel, and what it leaves alone."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agenttop import step as module
from agenttop.step import CLASSES, PAUSE, RESUME, step

Call = tuple[int, int, int, str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """The markers sent, each (step id from 1, class and flags, deadline, name)."""
    told: list[Call] = []
    first: list[int] = []

    def prctl(marker: int, number: int, how: int, deadline: Any, context: Any) -> None:
        assert marker == module.MARKER
        name = ""
        deadline = getattr(deadline, "value", deadline)
        if context:
            found = context._obj
            assert found.size == module.CONTEXT_BYTES
            name = found.name.decode()
        if number:
            first.append(number)
        told.append((number and number - first[0] + 1, how, deadline, name))

    monkeypatch.setattr(module, "_prctl", prctl)
    yield told
    assert module._here.entry is None


def test_a_step_begins_and_ends(calls: list[Call]) -> None:
    with step("tool:git", latency="batch", deadline_ns=77):
        assert calls == [(1, CLASSES.index("batch"), 77, "tool:git")]
    assert calls[1:] == [(0, 0, 0, "")]


def test_an_inner_step_sets_the_outer_one_aside(calls: list[Call]) -> None:
    with step("a", latency="normal"):
        with step("b"):
            pass
        with pytest.raises(KeyError), step("c"):
            raise KeyError
    normal = CLASSES.index("normal")
    assert calls == [
        (1, normal, 0, "a"),
        (2, PAUSE, 0, "b"),
        (1, normal | RESUME, 0, "a"),
        (3, PAUSE, 0, "c"),
        (1, normal | RESUME, 0, "a"),
        (0, 0, 0, ""),
    ]


def test_a_decorated_function_keeps_its_face(calls: list[Call]) -> None:
    @step("f")
    def doubled(x: int) -> int:
        """Twice as much."""
        return 2 * x

    assert [doubled(1), doubled(2)] == [2, 4]
    assert doubled.__doc__ == "Twice as much."
    assert [name for _, _, _, name in calls] == ["f", "", "f", ""]


def test_coroutines_take_turns(calls: list[Call]) -> None:
    @step("inner")
    async def inner(turn: asyncio.Event, other: asyncio.Event) -> str:
        other.set()
        await turn.wait()
        return "done"

    @step("outer")
    async def outer(turn: asyncio.Event, other: asyncio.Event) -> str:
        return await inner(turn, other)

    async def main() -> list[str]:
        a, b = asyncio.Event(), asyncio.Event()
        a.set()
        return list(await asyncio.gather(outer(b, a), outer(a, b)))

    assert asyncio.run(main()) == ["done", "done"]
    # The first gives way to the second, which does not; then the first is resumed where it was.
    assert calls == [
        (1, 0, 0, "outer"),
        (2, PAUSE, 0, "inner"),
        (0, PAUSE, 0, ""),
        (3, 0, 0, "outer"),
        (4, PAUSE, 0, "inner"),
        (3, RESUME, 0, "outer"),
        (0, 0, 0, ""),
        (2, RESUME, 0, "inner"),
        (1, RESUME, 0, "outer"),
        (0, 0, 0, ""),
    ]


def test_errors_and_cancellation_end_the_step(calls: list[Call]) -> None:
    @step("x")
    async def waits() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert calls == [(1, 0, 0, "x"), (0, PAUSE, 0, ""), (1, RESUME, 0, "x"), (0, 0, 0, "")]


def test_with_blocks_in_tasks_of_the_task_factory(calls: list[Call]) -> None:
    async def works(name: str) -> None:
        with step(name):
            await asyncio.sleep(0)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(module.task_factory)
        await asyncio.gather(works("a"), works("b"))

    asyncio.run(main())
    assert calls == [
        (1, 0, 0, "a"),
        (0, PAUSE, 0, ""),
        (2, 0, 0, "b"),
        (0, PAUSE, 0, ""),
        (1, RESUME, 0, "a"),
        (0, 0, 0, ""),
        (2, RESUME, 0, "b"),
        (0, 0, 0, ""),
    ]


def test_threads_have_steps_of_their_own(calls: list[Call]) -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with step("other"):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(60)
    with step("mine"):
        pass
    leave.set()
    thread.join()
    assert [how for _, how, _, _ in calls] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["x" * 100, "é" * 40, "a\0b", "\udcff", "日本語" * 10])
def test_any_name_fits(calls: list[Call], name: str) -> None:
    with step(name):
        pass
    told = calls[0][3]
    assert len(told.encode()) < module.NAME_BYTES
    assert name.encode(errors="replace").startswith(told.encode())


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="none, interactive, normal, batch"):
        step("x", latency="urgent")
    for wrong in ("within_ns", "deadline_ns", "budget_ns"):
        with pytest.raises(ValueError, match=wrong):
            step("x", **{wrong: -1})  # type: ignore[arg-type]

    def numbers() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        step("x")(numbers)


#: Alone, as a copied file, where there is no Linux.
ELSEWHERE = """
import sys
sys.platform = "darwin"
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import step, asyncio
assert step._prctl is None
assert not any(name.startswith("agenttop") for name in sys.modules)
step.mark(1)

@step.step("x")
async def seven():
    await asyncio.sleep(0)
    with step.step("y", budget_ns=1): return 7

assert asyncio.run(seven()) == 7
"""


def test_the_file_works_alone_and_without_linux(tmp_path: Path) -> None:
    # Not from the package's folder: its modules would hide the standard library's.
    shutil.copy(Path(module.__file__), tmp_path)
    subprocess.run([sys.executable, "-I", "-c", ELSEWHERE, str(tmp_path)], check=True)

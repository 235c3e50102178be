"""Say where a step begins and ends, so that agenttop can tell steps apart by name.

    from agenttop.step import step

    with step("retrieve", latency="interactive", within_ns=200_000_000):
        rows = database.query(...)

    @step("tool:git")
    def git(*args): ...

    @step("llm", latency="normal")
    async def ask(prompt): ...

A step is a context of its thread, told to the kernel by one system call that
fails on purpose and that agenttop sees (agenttop_step.h describes it); without
agenttop nothing sees it. Contexts nest: leaving the inner one resumes the
outer. A decorated coroutine keeps its step over its awaits: it is set aside
while other tasks run, and so are the contexts that are entered inside it. A
``with`` in a task that is not driven by a decorated coroutine (or made by
``task_factory``) must not hold an await: other tasks would run in its context.

Needs nothing but the standard library; this file works alone. Where there is
no Linux it does nothing.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar, cast

#: The first argument of prctl: "AGST". There is no such prctl; it answers EINVAL.
MARKER: Final = 0x41475354
#: The latency classes; a class's place is its number.
CLASSES: Final = ("none", "interactive", "normal", "batch")
#: What the third argument of prctl holds: the class, and flags.
CLASS_MASK: Final = 0xFF
#: The context before is set aside: it will be resumed, so it is not judged now.
PAUSE: Final = 0x100
#: This context was begun earlier and set aside.
RESUME: Final = 0x200
#: Bytes of a name, with the NUL at its end; longer ones are cut.
NAME_BYTES: Final = 32
#: Bytes of ``struct agenttop_step_context``.
CONTEXT_BYTES: Final = 16 + NAME_BYTES
#: Names whose contexts are kept ready.
_KEPT: Final = 512

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Context(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint64),
        ("budget_ns", ctypes.c_uint64),
        ("name", ctypes.c_char * NAME_BYTES),
    )


def _made(name: str, budget_ns: int) -> _Context:
    cut = name.encode(errors="replace")[: NAME_BYTES - 1]
    return _Context(CONTEXT_BYTES, budget_ns, cut.decode(errors="ignore").encode())


_context = functools.lru_cache(_KEPT)(_made)

_prctl: Any = None
if sys.platform.startswith("linux"):
    # Keeps the interpreter's lock: the call takes less time than giving it away would.
    _prctl = ctypes.PyDLL(None).prctl
    # Numbers as wide as a register, converted in half of the time that c_ulong takes.
    _prctl.argtypes = (ctypes.c_void_p,) * 5
    _prctl.restype = None


def mark(step_id: int, how: int = 0, deadline_ns: int = 0, context: int = 0) -> None:
    """The marker itself: this thread is in step ``step_id`` from now on; 0: in none.

    ``how`` is a class's number with PAUSE and RESUME, ``deadline_ns`` an
    absolute time of CLOCK_MONOTONIC (0: none), ``context`` the address of a
    ``struct agenttop_step_context`` (0: none).
    """
    if _prctl is not None:
        _prctl(MARKER, step_id, how, deadline_ns, context)


class _Entry:
    """A step that was entered: what its marker says."""

    __slots__ = ("address", "context", "deadline_ns", "id", "latency", "left_ns", "outer", "since")

    def __init__(
        self, latency: int, deadline_ns: int, context: _Context | None, address: int
    ) -> None:
        self.id = next(_ids)
        self.latency = latency
        self.deadline_ns = deadline_ns
        #: Its memory stays as long as the marker may be sent again.
        self.context = context
        self.address = address
        self.outer: _Entry | None = None
        #: Of the budget; 0: there is none.
        self.left_ns = 0
        self.since = 0


class _Here(threading.local):
    """This thread's innermost step, and the task that is being driven."""

    entry: _Entry | None = None
    task: object = None


_here = _Here()
_ids = itertools.count(1)


def _switch(old: _Entry | None, new: _Entry | None, how: int) -> None:
    """From one context to another; ``how`` says what becomes of the old one, what the new is."""
    if _prctl is None:
        return
    if old is not None and old.left_ns and how & PAUSE:
        # The kernel knows the time since the last marker only; here the pieces are added up.
        old.left_ns = max(old.left_ns - (time.thread_time_ns() - old.since), 1)
    if new is None:
        _prctl(MARKER, 0, how, 0, 0)
        return
    if new.left_ns:
        assert new.context is not None
        new.context.budget_ns = new.left_ns
        new.since = time.thread_time_ns()
    _prctl(MARKER, new.id, new.latency | how, new.deadline_ns, new.address)


class step:  # noqa: N801 (read as a verb, like contextlib.suppress)
    """A step: a context manager for ``with``, and a decorator of functions and coroutines.

    ``latency`` is one of CLASSES. The deadline is ``within_ns`` after the
    entry, or the absolute ``deadline_ns`` (CLOCK_MONOTONIC, as
    time.monotonic_ns() tells it). ``budget_ns`` is the time on a CPU that it
    may take. One object may be entered many times, and by many threads.
    Raises ValueError for an unknown class or a negative time.
    """

    __slots__ = (
        "_address",
        "_budget_ns",
        "_context",
        "_deadline_ns",
        "_latency",
        "_name",
        "_within_ns",
    )

    def __init__(
        self,
        name: str = "",
        *,
        latency: str = "none",
        within_ns: int = 0,
        deadline_ns: int = 0,
        budget_ns: int = 0,
    ) -> None:
        if latency not in CLASSES:
            raise ValueError(f"no latency class {latency!r}: there are {', '.join(CLASSES)}")
        if min(within_ns, deadline_ns, budget_ns) < 0:
            raise ValueError("within_ns, deadline_ns and budget_ns are times from 0 on")
        self._name = name
        self._latency = CLASSES.index(latency)
        self._within_ns = within_ns
        self._deadline_ns = deadline_ns
        self._budget_ns = budget_ns
        self._context = _context(name, 0) if name else None
        self._address = ctypes.addressof(self._context) if self._context is not None else 0

    def _entry(self) -> _Entry:
        deadline_ns = self._deadline_ns
        if self._within_ns:
            deadline_ns = time.monotonic_ns() + self._within_ns
        if not self._budget_ns:
            return _Entry(self._latency, deadline_ns, self._context, self._address)
        # The budget that is left differs from entry to entry.
        context = _made(self._name, self._budget_ns)
        entry = _Entry(self._latency, deadline_ns, context, ctypes.addressof(context))
        entry.left_ns = self._budget_ns
        return entry

    def __enter__(self) -> step:
        if _prctl is not None:
            entry = self._entry()
            here = _here
            outer = entry.outer = here.entry
            here.entry = entry
            if outer is None and not entry.left_ns:  # as _switch does, in less time
                _prctl(MARKER, entry.id, entry.latency, entry.deadline_ns, entry.address)
            else:
                _switch(outer, entry, PAUSE if outer is not None else 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        here = _here
        entry = here.entry
        if entry is not None:
            outer = here.entry = entry.outer
            if outer is None:
                _prctl(MARKER, 0, 0, 0, 0)
            else:
                _switch(entry, outer, RESUME)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Decorate: each call is a step. Raises TypeError for generators."""
        import inspect

        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("a generator has no one step: enter the step around its use")
        if inspect.iscoroutinefunction(function):

            async def stepped(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                coroutine = function(*args, **kwargs)
                if _here.task is not None and _here.task is _current_task():
                    with self:
                        return await coroutine
                return await _Driven(coroutine, self)

            return cast("Callable[_P, _R]", functools.update_wrapper(stepped, function))

        @functools.wraps(function)
        def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self:
                return function(*args, **kwargs)

        return wrapped


class _Driven:
    """Awaits a coroutine; the contexts in it are set aside whenever it gives way to others."""

    __slots__ = ("_coroutine", "_step")

    def __init__(self, coroutine: Coroutine[Any, Any, _R], own: step | None) -> None:
        self._coroutine = coroutine
        self._step = own

    def __await__(self) -> Generator[Any, Any, Any]:
        if _prctl is None:
            return (yield from self._coroutine.__await__())
        coroutine, here = self._coroutine, _here
        entry = self._step._entry() if self._step is not None else None
        how, task = 0, _current_task()
        go: Callable[[Any], Any] = coroutine.send
        argument: Any = None
        while True:
            outer, before = here.entry, here.task
            here.entry, here.task = entry, task
            if entry is not None:
                _switch(outer, entry, how | (PAUSE if outer is not None else 0))
            over = True
            try:
                given = go(argument)
                over = False
            except StopIteration as end:
                return end.value
            finally:
                entry = here.entry
                here.entry, here.task = outer, before
                if entry is not None:
                    resumed = RESUME if outer is not None else 0
                    _switch(entry, outer, resumed | (0 if over else PAUSE))
            how = RESUME
            try:
                argument = yield given
                go = coroutine.send
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                go, argument = coroutine.throw, error


def _current_task() -> object:
    asyncio = sys.modules.get("asyncio")
    try:
        return asyncio.current_task() if asyncio is not None else None
    except RuntimeError:  # there is no loop: something else drives
        return None


def task_factory(loop: Any, coroutine: Coroutine[Any, Any, Any], **options: Any) -> Any:
    """For ``loop.set_task_factory``: the steps of each task are set aside over its awaits."""
    import asyncio

    async def driven() -> Any:
        return await _Driven(coroutine, None)

    return asyncio.Task(driven(), loop=loop, **options)

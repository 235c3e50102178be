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
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar, cast

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
#: The marker tells what io_uring requests are whose user_data has the step id, a number of 16
#: bits; of its thread it says nothing. The deadline is a span, from submission to completion.
URING: Final = 0x400
#: The uppermost 16 bits of such a user_data ("AG"); then come the number, and 32 bits for the
#: caller.
URING_MAGIC: Final = 0x4147
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
    # Keeps the interpreter's lock: the call takes less time than giving it away would. Without
    # argument types ctypes passes a number as a C int and byref() as it is, at once; types, or a
    # number that is wider, take a third of the whole call's time.
    _prctl = ctypes.PyDLL(None).prctl
    _prctl.restype = None
_INT_MAX: Final = (1 << 31) - 1
#: What requests are is told anew after this long: agenttop may have come since.
_TELL_AGAIN_NS: Final = 1_000_000_000


def _word(number: int) -> Any:
    """A number as an argument of _prctl."""
    return number if 0 <= number <= _INT_MAX else ctypes.c_uint64(number)


def mark(step_id: int, how: int = 0, deadline_ns: int = 0, context: int = 0) -> None:
    """The marker itself: this thread is in step ``step_id`` from now on; 0: in none.

    ``how`` is a class's number with PAUSE and RESUME, ``deadline_ns`` an
    absolute time of CLOCK_MONOTONIC (0: none), ``context`` the address of a
    ``struct agenttop_step_context`` (0: none).
    """
    if _prctl is not None:
        _prctl(MARKER, _word(step_id), how, _word(deadline_ns), _word(context))


class _Budget:
    """What is left of the time on a CPU that a step may take."""

    __slots__ = ("context", "left_ns", "since")

    def __init__(self, context: _Context) -> None:
        self.context = context
        self.left_ns = int(context.budget_ns)
        self.since = 0


#: A step that was entered, as its marker says it: id, class, deadline, context (by reference, so
#: that its memory stays as long as the marker may be sent again); then the step around it, and
#: its budget. A tuple, as a class of our own would take longer to make than the marker does.
_Entry: TypeAlias = "tuple[int, int, Any, Any, _Entry | None, _Budget | None]"


class _Here(threading.local):
    """This thread's innermost step, and the task that is being driven."""

    entry: _Entry | None = None
    task: object = None


_here = _Here()
#: Never 0, and never wider than a C int.
_ids = itertools.chain.from_iterable(itertools.repeat(range(1, _INT_MAX)))


def _switch(old: _Entry | None, new: _Entry | None, how: int) -> None:
    """From one context to another; ``how`` says what becomes of the old one, what the new is."""
    if _prctl is None:
        return
    if how & PAUSE and old is not None and (budget := old[5]) is not None:
        # The kernel knows the time since the last marker only; here the pieces are added up.
        budget.left_ns = max(budget.left_ns - (time.thread_time_ns() - budget.since), 1)
    if new is None:
        _prctl(MARKER, 0, how, 0, 0)
        return
    if (budget := new[5]) is not None:
        budget.context.budget_ns = budget.left_ns
        budget.since = time.thread_time_ns()
    _prctl(MARKER, new[0], new[1] | how, new[2], new[3])


class step:  # noqa: N801 (read as a verb, like contextlib.suppress)
    """A step: a context manager for ``with``, and a decorator of functions and coroutines.

    ``latency`` is one of CLASSES. The deadline is ``within_ns`` after the
    entry, or the absolute ``deadline_ns`` (CLOCK_MONOTONIC, as
    time.monotonic_ns() tells it). ``budget_ns`` is the time on a CPU that it
    may take. One object may be entered many times, and by many threads.
    Raises ValueError for an unknown class or a negative time.
    """

    __slots__ = (
        "_budget_ns",
        "_context",
        "_deadline_ns",
        "_latency",
        "_name",
        "_number",
        "_plain",
        "_told_in",
        "_told_ns",
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
        #: Neither its deadline nor its budget differs from entry to entry.
        self._plain = not (within_ns or deadline_ns or budget_ns)
        self._context: Any = ctypes.byref(_context(name, 0)) if name else 0
        #: For user_data: its number, and when and by which process it was told last.
        self._number = 0
        self._told_ns = 0
        self._told_in = 0

    def _entry(self, outer: _Entry | None) -> _Entry:
        deadline_ns = self._deadline_ns
        if self._within_ns:
            deadline_ns = time.monotonic_ns() + self._within_ns
        context, budget = self._context, None
        if self._budget_ns:
            budget = _Budget(_made(self._name, self._budget_ns))
            context = ctypes.byref(budget.context)
        return next(_ids), self._latency, _word(deadline_ns), context, outer, budget

    def __enter__(self) -> step:
        if _prctl is not None:
            here = _here
            outer = here.entry
            if outer is None and self._plain:  # as below, in less time
                number, latency, context = next(_ids), self._latency, self._context
                here.entry = (number, latency, 0, context, None, None)
                _prctl(MARKER, number, latency, 0, context)
            else:
                entry = here.entry = self._entry(outer)
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
            outer = here.entry = entry[4]
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


_numbers = itertools.chain.from_iterable(itertools.repeat(range(1, 1 << 16)))


def uring_user_data(what: step, own: int = 0) -> int:
    """The user_data of an io_uring request whose completion is a step of this name and class.

    Without a further system call, but for one a second: each request is a
    context of its own, from its submission to its completion, which must come
    within ``within_ns`` of the step, if that is given. ``own`` are the lower 32
    bits, for the caller. Raises ValueError for a wider ``own``, and for a step
    with an absolute deadline or a budget, which a request cannot have.
    """
    if not 0 <= own < 1 << 32:
        raise ValueError("own has 32 bits")
    if what._deadline_ns or what._budget_ns:
        raise ValueError("a request has neither an absolute deadline nor a budget: use within_ns")
    if not what._number:
        what._number = next(_numbers)
    if _prctl is not None:
        now, process = time.monotonic_ns(), os.getpid()
        if process != what._told_in or now - what._told_ns > _TELL_AGAIN_NS:
            what._told_in, what._told_ns = process, now
            how = what._latency | URING
            _prctl(MARKER, what._number, how, _word(what._within_ns), what._context)
    return URING_MAGIC << 48 | what._number << 32 | own


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
        entry = self._step._entry(None) if self._step is not None else None
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

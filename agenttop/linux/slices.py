"""Long work in slices, so that nothing else waits for it.

A job is a generator that yields after each small piece (one process read). The
engine runs its jobs between everything else, a slice at a time; who has all
the time in the world exhausts the generator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

#: What one slice may take, s, and one piece more: together below 20 ms.
SLICE_S: Final = 0.01

Job = Generator[None, None, Any]
Result = TypeVar("Result")


def whole(job: Generator[None, None, Result]) -> Result:
    """Run a job to its end at once; what it returns."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            result: Result = end.value
            return result


def _raise(name: str, error: Exception) -> None:
    raise error


class Jobs:
    """Jobs by name; each is run to its end, in turns, whatever another one raises."""

    def __init__(self, failed: Callable[[str, Exception], None] = _raise) -> None:
        """``failed``: called with what a job, or what follows its end, raises; that job is over."""
        self._failed = failed
        self._jobs: dict[str, tuple[Job, Callable[[], None]]] = {}
        #: Whether a later slice than a job's first is being run.
        self.running = False

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __contains__(self, name: str) -> bool:
        return name in self._jobs

    def begin(self, name: str, job: Job, then: Callable[[], None]) -> None:
        """Begin a job with one slice; ``then`` is called at its end. An older one is dropped."""
        self.drop(name)
        self._jobs[name] = (job, then)
        self._slice(name)

    def drop(self, name: str) -> None:
        """Forget a job; its ``then`` is not called."""
        if (dropped := self._jobs.pop(name, None)) is not None:
            dropped[0].close()

    def run(self) -> None:
        """One slice of the job that has waited longest."""
        if self._jobs:
            self.running = True
            try:
                self._slice(next(iter(self._jobs)))
            finally:
                self.running = False

    def _slice(self, name: str) -> None:
        job, then = self._jobs.pop(name)
        until = time.monotonic() + SLICE_S
        try:
            for _ in job:
                if time.monotonic() >= until:
                    self._jobs[name] = (job, then)
                    return
            then()
        except Exception as error:
            self._failed(name, error)

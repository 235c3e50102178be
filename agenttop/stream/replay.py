"""Recordings as a source of Samples: at their own pace for the screen, at once for the rest."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from agenttop.errors import UserError
from agenttop.model.sample import Command, Event, Message, Sample
from agenttop.stream.memory_limit import Budget
from agenttop.stream.recording import Recording

#: Samples that may wait for the screen, and what they may take in memory together, bytes (one of
#: any size may): a slow screen delays the replay, it never fills the memory.
_WAITING: Final = 16
_WEIGHT: Final = 8 << 20


class Replay:
    """A recording as the screen's Source: Samples come when they came, ``speed`` times as fast."""

    def __init__(self, path: Path | str, speed: float = 1.0) -> None:
        """Raises UserError for what is no recording."""
        self._recording = Recording(path)
        self._speed = speed
        #: What is due, and how much each takes.
        self._ready: deque[tuple[Sample | UserError, int]] = deque()
        self._weight = 0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._shown_ns = 0
        self._budget: Budget | None = None
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    @property
    def delay_s(self) -> float:
        """Seconds between its Samples as they are shown."""
        return self._recording.header.delay_s / self._speed

    def clock(self) -> int:
        """The recording's CLOCK_MONOTONIC: that of the Sample shown last."""
        return self._shown_ns

    def fileno(self) -> int:
        return self._wake

    def read(self) -> list[Message]:
        """What is due.

        Raises UserError where the file is damaged, after all that was good, and where what it
        makes takes more memory than memory_limit.py allows.
        """
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass
        # The screen is there by now: what it takes is not the recording's.
        self._budget = self._budget or Budget(self._recording.name)
        self._budget.check()
        messages: list[Message] = []
        while self._ready:
            item, weight = self._ready[0]
            if isinstance(item, UserError):
                if messages:
                    os.eventfd_write(self._wake, 1)  # it is told at the next call
                    break
                raise item
            with self._changed:
                self._ready.popleft()
                self._weight -= weight
                self._changed.notify()
            self._shown_ns = item.t_ns
            messages.append(item)
        return messages

    def send(self, command: Command) -> None:
        """What was recorded cannot be changed."""

    def close(self) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()
        with self._recording:
            os.close(self._wake)

    # ------------------------------------------------------------------ the thread

    def _play(self) -> None:
        try:
            self._paced()
        except UserError as error:
            self._put(error)

    def _paced(self) -> None:
        """Each Sample at its time; the last one says that it is the last."""
        samples = iter(self._recording)
        sample, start, first, before = next(samples), time.monotonic(), 0, 0
        weight = self._recording.weight
        while True:
            if sample.t_ns <= before or not before:
                # The first one, or the engine was started anew: its time begins here.
                start, first = time.monotonic(), sample.t_ns
            before = sample.t_ns
            due = start + (sample.t_ns - first) / 1e9 / self._speed
            # A file may say that its next Sample came after centuries.
            if self._stop.wait(min(max(due - time.monotonic(), 0), threading.TIMEOUT_MAX)):
                return
            try:
                following = next(samples, None)
            except UserError:
                self._give(sample, weight)
                raise
            if following is None:
                text = "the recording ends here"
                if self._recording.cut:
                    text += " (cut: whoever wrote it was killed)"
                events = [*sample.events, Event(sample.t_ns, "info", text)]
                self._give(msgspec.structs.replace(sample, events=events), weight)
                return
            if not self._give(sample, weight):
                return
            sample, weight = following, self._recording.weight

    def _give(self, sample: Sample, weight: int) -> bool:
        with self._changed:
            while not self._stop.is_set() and not self._room(weight):
                self._changed.wait()
            if self._stop.is_set():
                return False
            self._put(sample, weight)
        return True

    def _room(self, weight: int) -> bool:
        if not self._ready:
            return True
        return len(self._ready) < _WAITING and self._weight + weight <= _WEIGHT

    def _put(self, item: Sample | UserError, weight: int = 0) -> None:
        self._ready.append((item, weight))
        self._weight += weight
        os.eventfd_write(self._wake, 1)

"""Running the engine without a screen: Samples into a Store until enough time has passed."""

from __future__ import annotations

import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, Protocol

from agenttop.errors import UserError
from agenttop.flight.breach_watch import Breach, Watcher
from agenttop.linux.readiness import readable
from agenttop.model.options import EngineOptions
from agenttop.model.sample import CAUSES_LOADING, Command, Failure, Message, Sample
from agenttop.store.store import Store

#: An engine that says nothing for so long (beyond its delay) hangs.
SILENCE_S: Final = 60.0
#: After which time a signal whose exception was dropped comes again.
AGAIN_S: Final = 0.01


class Client(Protocol):
    """The engine's other end (client.EngineClient)."""

    def fileno(self) -> int:
        """To wait on."""

    def read(self) -> list[Message]:
        """What has arrived; does not block."""

    def send(self, command: Command) -> None:
        """Tell the engine something."""

    def close(self) -> None:
        """Stop the engine; returns when it has put everything back."""


class Stopped(BaseException):
    """SIGTERM or SIGHUP came: unwinds so that the engine is stopped, then ends quietly."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def start(options: EngineOptions) -> Client:
    """Start an engine."""
    from agenttop.stream.engine_client import EngineClient

    return EngineClient(options)


@contextmanager
def signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Stopped inside; the handlers before it come back after it.

    An exception is dropped where Python can pass it to no caller, as in the callback that ends an
    import's lock: then the signal comes again a moment later.
    """
    stopping = (signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in stopping:
            signal.signal(each, signal.SIG_IGN)  # the way out is not interrupted again
        raise Stopped(number)

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(stopped := unraisable.exc_value, Stopped):
            number = stopped.number
            signal.signal(signal.SIGALRM, lambda _, frame: stop(number, frame))
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        else:
            hook(unraisable)

    before = {each: signal.signal(each, stop) for each in stopping}
    before[signal.SIGALRM] = signal.getsignal(signal.SIGALRM)
    hook, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for each, handler in before.items():
            signal.signal(each, handler)


def quietly(work: Callable[[], int]) -> int:
    """Run ``work``; a signal that stops it gives the shell's exit code for it, and no text."""
    try:
        with signals():
            return work()
    except Stopped as stopped:
        return 128 + stopped.number


class Session:
    """An engine and a Store that it fills; use it as a context.

    ``breach``: what is watched meanwhile; what comes of it is told on stderr.
    """

    def __init__(self, options: EngineOptions, store: Store, breach: Breach | None = None) -> None:
        self.options = options
        self.store = store
        self._watcher = None if breach is None else Watcher(breach, options.delay_s)
        self._client: Client | None = None

    def __enter__(self) -> Session:
        self._client = start(self.options)
        return self

    def __exit__(self, *exc: object) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def send(self, command: Command) -> None:
        """Tell the engine something; nothing happens when the session is not open."""
        if self._client is not None:
            self._client.send(command)

    def samples(self) -> Iterator[Sample]:
        """Each Sample as it comes, already in the Store.

        Raises UserError when the engine fails, or says nothing for long.
        """
        client = self._client
        if client is None:
            raise ValueError("the session is not open")
        silence = SILENCE_S + 2 * self.options.delay_s
        deadline = time.monotonic() + silence
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise UserError(f"the engine said nothing for {silence:.0f} s")
            for message in client.read() if readable(client.fileno(), left) else ():
                if isinstance(message, Failure):
                    raise UserError(message.text)
                if isinstance(message, Sample):
                    deadline = time.monotonic() + silence
                    self.store.set_view_cpu(own_cpu_ns())
                    self.store.feed(message)
                    if self._watcher is not None:
                        for event in self._watcher.take(message, self.store, self.send):
                            print(f"agenttop: {event.text}", file=sys.stderr, flush=True)
                    yield message

    def ready(self, samples: Iterator[Sample]) -> Sample:
        """Wait until chains and causes are measured, or it is known that they cannot be."""
        for sample in samples:
            loading = any(cause.reason == CAUSES_LOADING for cause in sample.causes)
            if self.store.settled and not loading:
                return sample
        raise UserError("the engine ended before it measured anything")


def own_cpu_ns() -> int:
    """CPU time of this process so far, ns (its children are the engine's to count)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return int((used.ru_utime + used.ru_stime) * 1e9)


def speaks_unicode() -> bool:
    """Can stdout carry every character?"""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def write_out(body: bytes) -> None:
    """Write to stdout at once, so that a closed pipe is noticed here."""
    sys.stdout.flush()
    sys.stdout.buffer.write(body)
    sys.stdout.buffer.flush()

"""Whoever reads Samples of others: each takes those that pass, and shows what they came to."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Final, Protocol

import msgspec

from agenttop.flight import perfetto_trace
from agenttop.flight.breach_watch import Ring
from agenttop.flight.recorder import Flight
from agenttop.model.sample import Command, Message, Sample
from agenttop.render.snapshot_json import encode
from agenttop.render.snapshot_text import Layout
from agenttop.render.snapshot_text import report as as_text
from agenttop.report.builder import build
from agenttop.report.formats import html, markdown, text
from agenttop.report.time_blocks import Blocks
from agenttop.screens.app import AgentTop
from agenttop.store.replayed import still
from agenttop.store.store import Store
from agenttop.store.toggles import attach
from agenttop.stream.admission import Checker
from agenttop.stream.framing import Decoder, StreamError
from agenttop.stream.recording import MAX_DECODED, MAX_SAMPLE
from agenttop.stream.size_estimate import MalformedError, Scale, TooHeavyError
from agenttop.view.options import ViewOptions

_SCALE: Final = Scale(Sample)
#: Samples between two looks at what they came to.
EVERY: Final = 5


class Door:
    """Lets in what a recording lets in, frame by frame (recording.Recording).

    There only frames that may be heavy are weighed; here some of these small ones are.
    """

    _WEIGHED: Final = 8

    def __init__(self) -> None:
        self._check = Checker()
        self._decoder = Decoder(MAX_SAMPLE, self._weigh)
        self._frames = 0

    def _weigh(self, frame: bytes) -> None:
        self._frames += 1
        if self._frames % self._WEIGHED:
            return
        try:
            _SCALE.weigh(frame, MAX_DECODED)
        except (MalformedError, TooHeavyError) as error:
            raise StreamError(str(error)) from None

    def sample(self, body: bytes) -> Sample:
        """Raises StreamError, ImplausibleError."""
        (message,) = self._decoder.feed(struct.pack("<I", len(body)) + body)
        if not isinstance(message, Sample):
            raise StreamError("no sample")
        self._check.sample(message)
        return message


class Reader(Protocol):
    """Takes Samples in order, and ends once."""

    def take(self, sample: Sample) -> None: ...
    def end(self) -> None: ...


class Text:
    """``snapshot --from``: the table, in several widths."""

    def __init__(self) -> None:
        self._store = Store(clock=still)
        self._layouts = cycle((Layout(), Layout(width=40, ascii=True), Layout(width=300)))
        self._taken = 0

    def take(self, sample: Sample) -> None:
        self._store.feed(sample)
        self._taken += 1
        if self._taken % EVERY == 0:
            self._show(self._taken % 2 == 0)

    def _show(self, since: bool) -> None:
        shot = self._store.snapshot(since_ns=0 if since else None)
        if shot is not None:
            as_text(shot, next(self._layouts)).encode("utf-8", "replace")

    def end(self) -> None:
        self._show(True)


class Json:
    """``snapshot --from FILE --format json``, and once with whole distributions."""

    def __init__(self) -> None:
        self._store = Store(clock=still)
        self._taken = 0

    def take(self, sample: Sample) -> None:
        self._store.feed(sample)
        self._taken += 1
        if self._taken % EVERY == 0:
            self._show(hdr=False)

    def _show(self, hdr: bool) -> None:
        shot = self._store.snapshot(hdr=hdr)
        if shot is not None:
            msgspec.json.decode(encode(attach(shot, self._store.history.effect)))

    def end(self) -> None:
        self._show(hdr=True)


class Trace:
    """``trace --from``, and the flight recorder's ring."""

    def __init__(self) -> None:
        self._store = Store(clock=still)
        self._flight = Flight()
        self._ring = Ring(10)

    def take(self, sample: Sample) -> None:
        self._store.feed(sample)
        self._flight.feed(sample, self._store)
        self._ring.add(sample)

    def end(self) -> None:
        perfetto_trace.trace(self._flight)
        self._ring.samples()


class Reported:
    """``report FILE``, in every format."""

    def __init__(self) -> None:
        self._blocks = Blocks(still)
        self._blocks.begin()

    def take(self, sample: Sample) -> None:
        self._blocks.feed(sample)

    def end(self) -> None:
        if self._blocks.host is None:
            return
        report = build(self._blocks, "fuzz")
        msgspec.json.decode(msgspec.json.encode(report))
        for page in (html.render, markdown.render):
            page(report).encode("utf-8", "replace")
        for width in (40, 120):
            text.render(report, width).encode("utf-8", "replace")


class _Handed:
    """A Source that gives what it was given."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.samples: list[Message] = []

    def fileno(self) -> int:
        return self._fd

    def read(self) -> Sequence[Message]:
        out, self.samples = self.samples, []
        return out

    def send(self, command: Command) -> None:
        """Nobody listens."""

    def close(self) -> None:
        os.close(self._fd)


class View:
    """``replay``: the screen, drawn every some Samples, with keys pressed between."""

    _KEYS: Final = ("down", "enter", "escape", "s", "w", "h", "e", "tab", "i", "question_mark")
    _DRAWN_EVERY: Final = 50

    def __init__(self) -> None:
        self._samples: list[Sample] = []

    def take(self, sample: Sample) -> None:
        self._samples.append(sample)

    def end(self) -> None:
        asyncio.run(self._shown())

    async def _shown(self) -> None:
        source = _Handed()
        app = AgentTop(Store(clock=still), source, ViewOptions(), clock=still, driver_class=None)
        keys = cycle(self._KEYS)
        try:
            async with app.run_test(size=(100, 30)) as pilot:
                for sample in self._samples:
                    source.samples.append(sample)
                    if len(source.samples) >= self._DRAWN_EVERY:
                        app._readable()
                        await pilot.press(next(keys))
                app._readable()
                await pilot.pause()
        finally:
            source.close()


READERS: Final[dict[str, Callable[[], Reader]]] = {
    "text": Text,
    "json": Json,
    "trace": Trace,
    "report": Reported,
    "view": View,
}

"""The engine's frames: what a reader that does not read leaves waiting."""

from __future__ import annotations

import socket
import time

import pytest

from agenttop.model.options import EngineOptions
from agenttop.model.sample import Command, Sample
from agenttop.stream.engine_client import EngineClient
from agenttop.stream.framing import Decoder
from agenttop.stream.outbox import Outbox
from tests.support.synth import Synth


def _pair() -> tuple[Outbox, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return Outbox(ours), theirs


def test_it_is_taken_when_the_reader_has_read_all_of_it() -> None:
    outbox, reader = _pair()
    assert outbox.taken
    outbox.put(Command(kind="stop"))
    assert outbox.flushed
    assert not outbox.taken  # the kernel has it, nobody else
    received = reader.recv(3)
    assert not outbox.taken
    received += reader.recv(1 << 16)
    assert outbox.taken
    assert list(Decoder().feed(received)) == [Command(kind="stop")]


def test_what_does_not_fit_goes_on_when_there_is_room() -> None:
    outbox, reader = _pair()
    sample = Synth(agents=100).sample()
    put = 0
    while outbox.flushed:
        outbox.put(sample)
        put += 1
    assert not outbox.taken
    reader.setblocking(False)
    decoder, got = Decoder(), 0
    while not outbox.taken:
        try:
            got += len(list(decoder.feed(reader.recv(1 << 16))))
        except BlockingIOError:
            outbox.flush()
    assert decoder.pending == 0
    assert got == put


@pytest.mark.live
def test_a_reader_that_was_away_finds_one_old_sample_and_then_a_new_one() -> None:
    client = EngineClient(EngineOptions(bpf="off", delay_s=0.1))
    try:
        _until(client, 3)
        time.sleep(3)  # some thirty samples long
        back = time.monotonic_ns()
        waited = [one for one in client.read() if isinstance(one, Sample)]
        assert len(waited) == 1
        assert waited[0].t_ns < back - 2_000_000_000
        assert _until(client, 1)[0].t_ns > back
    finally:
        client.close()


def _until(client: EngineClient, count: int) -> list[Sample]:
    found: list[Sample] = []
    end = time.monotonic() + 60
    while len(found) < count and time.monotonic() < end:
        found += client.samples(end)
    assert len(found) >= count
    return found

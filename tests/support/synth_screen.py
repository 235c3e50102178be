"""Starts the live screen on made-up Samples.

python -m tests.support.synth_screen [--agents N] ...
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

from agenttop.model.sample import Command, Message
from agenttop.store.store import Store
from tests.support.synth import Synth


class SynthSource:
    """A Source that makes a Sample whenever ``tick`` is called."""

    def __init__(self, synth: Synth) -> None:
        self.synth = synth
        self.commands: list[Command] = []
        self.closed = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self._samples: list[Message] = []
        self._lock = threading.Lock()

    def tick(self, times: int = 1) -> None:
        """Make Samples and say so."""
        with self._lock:
            for _ in range(times):
                self._samples.append(self.synth.sample())
            os.write(self._write, b"x")

    def put(self, message: Message) -> None:
        """Say something else."""
        with self._lock:
            self._samples.append(message)
            os.write(self._write, b"x")

    @property
    def waiting(self) -> int:
        """Messages that nobody has read yet."""
        return len(self._samples)

    def fileno(self) -> int:
        return self._read

    def read(self) -> Sequence[Message]:
        with self._lock:
            os.read(self._read, 4096)
            out, self._samples = self._samples, []
            return out

    def send(self, command: Command) -> None:
        self.commands.append(command)
        if command.kind == "policy":
            with self._lock:
                states = {policy.name: policy.state for policy in self.synth.policies}
                # As the engine: nothing happens when it is so already.
                if (states[command.name] == "on") != command.on:
                    self.synth.toggle(command.name, command.trial)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._read)
            os.close(self._write)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--theme")
    parser.add_argument("--ascii", action="store_true")
    parser.add_argument("--readonly", action="store_true")
    parser.add_argument("--procfs", action="store_true")
    parser.add_argument("--level", choices=("lite", "full"), default="lite")
    parser.add_argument("--history", type=int, default=120, help="samples before the first picture")
    parser.add_argument("--toggle", action="append", default=[], help="NAME:SAMPLE")
    parser.add_argument("--svg", metavar="FILE")
    parser.add_argument("--size", default="200x50")
    args = parser.parse_args()
    synth = Synth(
        agents=args.agents,
        cpus=args.cpus,
        level=args.level,
        mode="procfs" if args.procfs else "tp_btf",
    )
    clock = [0]
    now: list[Callable[[], int]] = [lambda: clock[0]]
    store = Store(clock=lambda: now[0]())
    source = SynthSource(synth)
    toggles = {int(at): name for name, _, at in (t.partition(":") for t in args.toggle)}

    from agenttop.screens.app import AgentTop
    from agenttop.view.options import ViewOptions

    options = ViewOptions(theme=args.theme, ascii_only=args.ascii, readonly=args.readonly)
    app = AgentTop(store, source, options)
    for number in range(args.history):
        if number in toggles:
            synth.toggle(toggles[number])
        sample = synth.sample()
        clock[0] = sample.t_ns
        store.feed(sample)
        app._heat.feed(sample)
    if args.svg:
        from agenttop.screens.picture import render_svg

        width, height = map(int, args.size.split("x"))
        text = render_svg(store, store.snapshot(), (width, height), args.theme or "dark")
        with open(args.svg, "w") as file:
            file.write(text)
        return
    start = time.monotonic_ns() - clock[0]
    now[0] = lambda: time.monotonic_ns() - start
    done = threading.Event()

    def run() -> None:
        while not done.wait(1.0):
            source.tick()

    thread = threading.Thread(target=run, daemon=True, name="synth")
    source.tick()
    thread.start()
    try:
        app.run()
    finally:
        done.set()
        thread.join()
        source.close()
    sys.exit(app.exit_code)


if __name__ == "__main__":
    main()

"""Renews a lease while the engine is busy with something that takes long.

The engine's loop renews it 4 times a second; a read of /proc that the kernel
answers late must not end it. A stopped engine renews nothing, since all its
threads are stopped, and one whose loop hangs only for a while.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Final

#: The lease is renewed this often beside the loop, s: three times in guardian.LEASE_S.
BEAT_S: Final = 0.5
#: And for so long after the loop came by last, s: longer, and it hangs.
BUSY_S: Final = 10.0


class Heart:
    """A thread that calls ``beat`` while ``came_by`` is called now and then."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._came = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self._thread.start()

    def came_by(self) -> None:
        """The loop runs."""
        self._came = time.monotonic()

    def stop(self) -> None:
        """No beat after this."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        # Signals are the loop's: they end its wait.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._stopped.wait(BEAT_S):
            if time.monotonic() - self._came < BUSY_S:
                self._beat()

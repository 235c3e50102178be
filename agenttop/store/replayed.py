"""Recordings read at once into a Store, for what is reported of them as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from agenttop.errors import UserError
from agenttop.model.sample import Sample
from agenttop.store.store import Store
from agenttop.stream.recording import Recording

#: A window that nobody asks for.
SHORT_NS: Final = 1_000_000_000


def measured(recording: Recording, store: Store) -> Iterator[Sample]:
    """Its Samples, each already in the Store, from the first that measures what there is.

    ``store`` must have a clock that does not go on by itself (``Still``).
    Raises UserError where the file is damaged.
    """
    begun = False
    for sample in recording:
        store.feed(sample)
        begun = begun or store.settled
        if begun:
            yield sample
    if not begun:
        raise UserError(f"{recording.name}: ends before anything is measured")


def still() -> int:
    """A Store's clock that does not move: nothing in a recording grows older."""
    return 0


def whole() -> Store:
    """A Store for what is told of a recording as a whole: no rolling window, no long trends."""
    return Store(window_ns=SHORT_NS, history_s=SHORT_NS / 1e9, clock=still)

"""The guardian's part in the latency windows: knobs that follow the kernel's cells.

The kernel says in a cell until when a CPU, or an agent wherever it runs, is
held by windows (collectors/bpf/window.bpf.c). Through a ring it tells of each
cell that is newly held: then the cell's knobs get their armed value at once.
From then on nothing is told; the cell is looked at when its time should be
over, and when it is, the knobs get the value back that they were found with.
That makes one look in some 8 ms at most while something is held, whatever
the number of wake-ups, and no look at all while nothing is.

Part of the guardian: imports little.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable

from agenttop.collectors.bpf.read.ring_buffer import Ring
from agenttop.policies.guardian.outcome import words
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import RESUME_LATENCY, Change, KnobError, reason

Key = tuple[str, str]

#: A held cell is looked at this long after its time: saves looks at one that is moved on and on.
SLACK_NS = 5_000_000
#: Edges taken in at one go.
BATCH = 512


class _OpenResumeLatency:
    """The file of knobs.ResumeLatency kept open: opening it takes longer than all the rest."""

    def __init__(self, target: str) -> None:
        """Raises KnobError."""
        try:
            self._fd = os.open(RESUME_LATENCY.path(target), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KnobError(reason(error)) from None

    def read(self) -> str:
        """The value that holds now. Raises KnobError."""
        try:
            return os.pread(self._fd, 64, 0).decode("ascii", "replace").strip()
        except OSError as error:
            raise KnobError(reason(error)) from None

    def write(self, value: str) -> None:
        """Set it. Raises KnobError with the kernel's reason."""
        try:
            os.ftruncate(self._fd, 0)  # sysfs does not mind; a fixture tree's file needs it
            os.pwrite(self._fd, value.encode(), 0)
        except OSError as error:
            raise KnobError(reason(error)) from None

    def close(self) -> None:
        os.close(self._fd)


class _Watched:
    """A knob that follows its cells."""

    __slots__ = (
        "armed",
        "cells",
        "cpu",
        "file",
        "foreign",
        "idle",
        "in_force",
        "key",
        "knob",
        "target",
    )

    def __init__(self, key: Key, idle: str, armed: str, cells: list[int]) -> None:
        self.key = key
        self.knob = KNOBS[key[0]]
        self.target = key[1]
        self.file = _OpenResumeLatency(key[1]) if key[0] == "pm_qos" else None
        #: The CPU that it is a knob of, or None.
        self.cpu = int(key[1].removeprefix("cpu")) if self.file else None
        self.idle = idle
        self.armed = armed
        self.cells = cells
        self.in_force = False
        #: Somebody else has set it: left alone from then on.
        self.foreign = False

    def read(self) -> str | None:
        return self.file.read() if self.file else self.knob.read(self.target)

    def write(self, value: str) -> None:
        if self.file:
            self.file.write(value)
        else:
            self.knob.write(self.target, value)

    def theirs(self) -> str | None:
        """The value that somebody else has set, be it the armed one; None if nobody has."""
        if self.in_force:
            return None
        try:
            current = self.read()
        except Exception:  # Whatever it is, the restore meets it too and names it.
            return None
        return None if current is None or self.knob.same(current, self.idle) else current

    def close(self) -> None:
        if self.file:
            self.file.close()


class Delays:
    """Times from an edge in the kernel to the knob in force; 8 buckets per power of two."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.longest = 0

    def add(self, ns: int) -> None:
        ns = max(0, ns)
        e = max(ns.bit_length() - 4, 0)
        bucket = (ns >> e) + (e << 3)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1
        self.longest = max(self.longest, ns)

    def at(self, ratio: float) -> int:
        """A percentile, ns: the upper end of its bucket, at most the longest."""
        wanted = ratio * self.count
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                e = max((bucket >> 3) - 1, 0)
                return min(self.longest, (bucket - (e << 3) + 1 << e) - 1)
        return 0

    def told(self) -> list[int]:
        """Count, p50, p99, longest."""
        return [self.count, self.at(0.5), self.at(0.99), self.longest]


class Watch:
    """Follows the cells of one kernel side, until ``close``. Owns the two descriptors."""

    def __init__(self, ring: int, cells: int, pages: int, size: int) -> None:
        self._fds = (ring, cells)
        self._ring = Ring(ring, pages)
        page = mmap.PAGESIZE
        length = (16 * size + page - 1) // page * page
        self._memory = mmap.mmap(cells, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        #: until, told, until, told, ...
        self._cells = memoryview(self._memory).cast("Q")
        self._size = size
        self._knobs: dict[Key, _Watched] = {}
        self._by_cell: dict[int, list[_Watched]] = {}
        #: Cells whose knobs are in force.
        self._held: set[int] = set()
        #: CPUs whose knobs came into force since it was asked.
        self._opened: list[int] = []
        self._refused: list[list[str]] = []
        self._armed = self._let_go = self._looks = 0
        self._delays: dict[int, Delays] = {}
        self._all = Delays()
        for _ in self._ring.records(1 << 20):
            pass  # from before our time
        for cell in range(size):
            self._cells[2 * cell + 1] = 0

    def fileno(self) -> int:
        """Readable when a cell is newly held."""
        return self._fds[0]

    # ----------------------------------------------------------------- which knobs

    def __len__(self) -> int:
        return len(self._knobs)

    def __contains__(self, key: Key) -> bool:
        return key in self._knobs

    def add(self, change: Change, cells: Iterable[int]) -> None:
        """Have a knob follow; it has the value ``before`` now, and will again. Raises KnobError."""
        mine = [cell for cell in dict.fromkeys(cells) if 0 <= cell < self._size]
        watched = _Watched(change.key, change.before, change.after, mine)
        self.forget([change.key])
        self._knobs[change.key] = watched
        for cell in mine:
            self._by_cell.setdefault(cell, []).append(watched)
            # One that is held already is told of again with the next wake-up.
            self._cells[2 * cell + 1] = 0

    def forget(self, keys: Iterable[Key]) -> dict[Key, str]:
        """These knobs are not followed any more; those that somebody else has set, and the value.

        They stay as they are: undo the others. The journal alone cannot tell an
        armed value of ours from the same one of somebody else.
        """
        theirs = {}
        for key in keys:
            watched = self._knobs.pop(key, None)
            if watched is None:
                continue
            if (now := watched.theirs()) is not None:
                theirs[key] = now
            watched.close()
            for cell in watched.cells:
                others = [one for one in self._by_cell[cell] if one is not watched]
                self._by_cell[cell] = others
                if not others:
                    del self._by_cell[cell]
                    self._held.discard(cell)
        return theirs

    # ----------------------------------------------------------------- following

    def edges(self) -> None:
        """Take in the cells that are newly held."""
        for record in self._ring.records(BATCH):
            t = int.from_bytes(record[0:8], "little")
            cell = int.from_bytes(record[8:16], "little")
            slot = int.from_bytes(record[16:24], "little")
            knobs = self._by_cell.get(cell)
            if not knobs:
                continue  # It stays told: no more edges of it until it has a knob.
            self._held.add(cell)
            for watched in knobs:
                if not watched.in_force and self._arm(watched):
                    delay = time.monotonic_ns() - t
                    if watched.cpu is not None:
                        self._opened.append(watched.cpu)
                    self._all.add(delay)
                    self._delays.setdefault(slot, Delays()).add(delay)

    def take_opened(self) -> list[int]:
        """The CPUs whose knobs came into force since the last call, once for each time."""
        opened, self._opened = self._opened, []
        return opened

    def due(self) -> float | None:
        """When ``look`` is to be called next, CLOCK_MONOTONIC in s; None: not before an edge."""
        if not self._held:
            return None
        return (min(self._cells[2 * cell] for cell in self._held) + SLACK_NS) / 1e9

    def look(self) -> None:
        """Let go of what no window holds any more."""
        self._looks += 1
        now = time.monotonic_ns()
        over = [cell for cell in self._held if self._cells[2 * cell] <= now]
        for cell in over:
            # From here on the kernel tells again. What it has moved on before it
            # knew is seen by the second look; what after, it tells.
            self._cells[2 * cell + 1] = 0
            if self._cells[2 * cell] > now:
                self._cells[2 * cell + 1] = 1
                continue
            self._held.discard(cell)
            for watched in self._by_cell.get(cell, ()):
                if watched.in_force and self._held.isdisjoint(watched.cells):
                    self._release(watched)

    def _arm(self, watched: _Watched) -> bool:
        try:
            if watched.foreign or (current := watched.read()) is None:
                return False
            if not watched.knob.same(current, watched.idle):
                watched.foreign = True  # as strict already, or something else: not ours
                return False
            watched.write(watched.armed)
        except Exception as error:  # One knob's: the others go on.
            self._refuse(watched, words(error))
            return False
        watched.in_force = True
        self._armed += 1
        return True

    def _release(self, watched: _Watched) -> None:
        try:
            current = watched.read()
            if current is None:
                pass
            elif not watched.knob.ours(current, watched.armed):
                watched.foreign = True
            else:
                watched.write(watched.idle)
                self._let_go += 1
        except Exception as error:  # One knob's: the others go on.
            self._refuse(watched, words(error))
            return  # Still in force.
        watched.in_force = False

    def _refuse(self, watched: _Watched, text: str) -> None:
        self._refused.append([*watched.key, text])
        del self._refused[:-20]
        watched.foreign = True

    # ----------------------------------------------------------------- figures

    def figures(self) -> dict[str, object]:
        """For the engine: what was done, how long it took, and what was refused."""
        return {
            "armed": self._armed,
            "released": self._let_go,
            "looks": self._looks,
            "delays": self._all.told(),
            "slots": {str(slot): delays.told() for slot, delays in self._delays.items()},
            "refused": self._refused,
            "foreign": [w.key for w in self._knobs.values() if w.foreign and not w.in_force],
        }

    def close(self) -> dict[Key, str]:
        """Follow nothing any more; as ``forget`` of all."""
        theirs = self.forget(list(self._knobs))
        self._ring.close()
        self._cells.release()
        self._memory.close()
        for fd in self._fds:
            os.close(fd)
        return theirs

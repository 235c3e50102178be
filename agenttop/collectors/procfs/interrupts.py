"""/proc/interrupts: how often each interrupt line and vector has fired on each CPU.

Counts only: the kernel keeps no times here (those need BPF).
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agenttop.linux import paths
from agenttop.linux.files import KeptFile
from agenttop.linux.process import printable, text
from agenttop.model.sample import Activity

#: Labels of arch/x86/kernel/irq.c -> words.VECTORS. CAL counts both kinds of function call.
_LABELS: Final = {
    b"LOC": "local_timer",
    b"RES": "reschedule",
    b"CAL": "call_function",
    b"IWI": "irq_work",
    b"TRM": "thermal_apic",
    b"SPU": "spurious_apic",
    b"THR": "threshold_apic",
    b"DFR": "deferred_error_apic",
    b"PLT": "x86_platform_ipi",
}
#: Descriptions of arch/arm64/kernel/smp.c and others, whose labels are IPI0, IPI1, ...
_DESCRIPTIONS: Final = {
    b"Rescheduling interrupts": "reschedule",
    b"Function call interrupts": "call_function",
    b"IRQ work interrupts": "irq_work",
}
#: "IO-APIC   5-edge      ACPI:Ged", "GICv3  27 Level     arch_timer": chip, number, trigger, name.
_TAIL: Final = re.compile(rb"\s*\S+\s+(?:\d+|(?=-))(?:-\S+)?\s*(?:(?:Level|Edge)\b\s*)?(.*)", re.S)


#: A count as the kernel prints it, " %10u" (show_interrupts); more digits make it longer.
_COLUMN: Final = 11
_SPACE: Final = ord(" ")


class _Line:
    """One line as it was last seen: most counts do not change between two reads."""

    __slots__ = ("columns", "counts", "name", "raw", "target")

    def __init__(self) -> None:
        self.raw = b""
        self.counts: list[int] = []
        self.name = ""
        #: Where its counts go, and under which name; None: nowhere.
        self.target: tuple[dict[int, dict[str, Activity]], str] | None = None
        #: Its counts as they were printed, a row each; None: not in columns.
        self.columns: NDArray[np.uint8] | None = None


class Interrupts:
    """Activity per CPU, by line number and by vector."""

    def __init__(self) -> None:
        self._file = KeptFile(f"{paths.proc()}/interrupts")
        self._header = b""
        self._cpus: list[int] = []
        self._lines: dict[bytes, _Line] = {}
        self._irqs: dict[int, dict[str, Activity]] = {}
        self._vectors: dict[int, dict[str, Activity]] = {}

    def read(self) -> tuple[dict[int, dict[str, Activity]], dict[int, dict[str, Activity]]]:
        """Lines and vectors: CPU -> number or words.VECTORS name -> activity; zeros left out.

        CPUs that are offline keep what they had. Both are empty without the file.
        """
        raw = self._file.read_all()
        if raw:
            self._parse(raw)
        # Entries are replaced, never changed: who keeps an earlier result keeps its figures.
        return (
            {cpu: entries.copy() for cpu, entries in self._irqs.items()},
            {cpu: entries.copy() for cpu, entries in self._vectors.items()},
        )

    def names(self) -> dict[str, str]:
        """Line number -> the devices' name as of the last read, fit to show."""
        return {text(key): line.name for key, line in self._lines.items() if key.isdigit()}

    def _parse(self, raw: bytes) -> None:
        lines = raw.splitlines()
        if not lines or not lines[0].lstrip().startswith(b"CPU"):
            return
        if lines[0] != self._header:
            # A CPU went or came: the columns mean others now.
            self._header = lines[0]
            try:
                self._cpus = [int(word[3:]) for word in lines[0].split()]
            except ValueError:
                self._cpus, self._header = [], b""
                return
            for cpu in self._cpus:
                self._irqs.setdefault(cpu, {})
                self._vectors.setdefault(cpu, {})
            self._lines.clear()
        gone = set(self._lines)
        for row in lines[1:]:
            label, colon, rest = row.partition(b":")
            if not colon:
                continue
            key = label.strip()
            gone.discard(key)
            line = self._lines.get(key)
            if line is None:
                line = self._lines[key] = _Line()
            elif line.raw == row:
                continue
            line.raw = row
            columns = _columns(rest, len(self._cpus))
            if columns is not None and line.columns is not None and line.target:
                self._renew(line, columns)
            else:
                self._update(key, line, rest)
            line.columns = columns
        for key in gone:
            del self._lines[key]

    def _renew(self, line: _Line, columns: NDArray[np.uint8]) -> None:
        """Take in the counts that are printed otherwise than before."""
        assert line.target is not None
        target, name = line.target
        for i in (columns != line.columns).any(axis=1).nonzero()[0].tolist():
            try:
                count = line.counts[i] = int(columns[i].tobytes())
            except ValueError:
                continue
            if count:
                target[self._cpus[i]][name] = Activity(count)

    def _update(self, key: bytes, line: _Line, rest: bytes) -> None:
        width = len(self._cpus)
        words = rest.split(None, width)
        try:
            counts = [int(word) for word in words[:width]]
        except ValueError:
            # ERR and MIS: one figure for the whole machine.
            return
        if len(counts) < width:
            return
        tail = words[width] if len(words) > width else b""
        if key.isdigit():
            target, name = self._irqs, text(key)
            match = _TAIL.fullmatch(tail)
            line.name = printable(text(match[1] if match else tail).strip())
        else:
            vector = _LABELS.get(key) or _DESCRIPTIONS.get(tail.strip())
            if vector is None:
                return
            target, name = self._vectors, vector
        line.target = target, name
        old = line.counts
        for i, count in enumerate(counts):
            if count and (not old or old[i] != count):
                target[self._cpus[i]][name] = Activity(count)
        line.counts = counts


def _columns(rest: bytes, width: int) -> NDArray[np.uint8] | None:
    """The counts of a line as they are printed, shape (CPUs, _COLUMN).

    None if one has more digits than its column: then the next begins with a digit.
    """
    size = width * _COLUMN
    if len(rest) < size or rest[size : size + 1].isdigit():
        return None
    columns = np.frombuffer(rest, dtype=np.uint8, count=size).reshape(width, _COLUMN)
    return columns if (columns[:, 0] == _SPACE).all() else None

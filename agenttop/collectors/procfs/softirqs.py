"""/proc/softirqs: how often each softirq vector has run on each CPU (counts only)."""

from __future__ import annotations

from agenttop.linux import paths
from agenttop.linux.files import KeptFile
from agenttop.model.sample import Activity
from agenttop.model.vocabulary import SOFTIRQS


class Softirqs:
    """Activity per CPU, by words.SOFTIRQS."""

    def __init__(self) -> None:
        self._file = KeptFile(f"{paths.proc()}/softirqs")
        self._kept: dict[int, dict[str, Activity]] = {}

    def read(self) -> dict[int, dict[str, Activity]]:
        """CPU -> vector -> activity; zeros left out, offline CPUs keep what they had.

        The file has a column for each possible CPU, so some may not exist.
        Empty without the file.
        """
        raw = self._file.read_all()
        lines = raw.splitlines() if raw else []
        if not lines:
            return dict(self._kept)
        try:
            cpus = [int(word[3:]) for word in lines[0].split()]
        except ValueError:
            return dict(self._kept)
        fresh: dict[int, dict[str, Activity]] = {cpu: {} for cpu in cpus}
        for row in lines[1:]:
            label, _, rest = row.partition(b":")
            name = label.strip().decode("ascii", "replace")
            if name not in SOFTIRQS:
                continue
            try:
                for cpu, word in zip(cpus, rest.split(), strict=False):
                    if word != b"0":
                        fresh[cpu][name] = Activity(int(word))
            except ValueError:
                continue
        self._kept.update(fresh)
        return dict(self._kept)

"""The screen and the snapshot, as text and JSON, on machines of 2 to 512 CPUs with gaps."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from agenttop.collectors.procfs.cpus import ProcfsCpus
from agenttop.collectors.procfs.host import host
from agenttop.engine.sampler import CPUS_A_SECOND
from agenttop.model.sample import Host, Sample
from agenttop.render.snapshot_json import encode
from agenttop.render.snapshot_text import report
from agenttop.store.store import Store
from tests.support.screen_rig import rig
from tests.support.synth import Synth
from tests.support.trees import Tree
from tests.support.trees.machine import Machine

#: The trees of the larger ones take half a minute to write on a slow disk.
SIZES = [2, 64, *(pytest.param(cpus, marks=pytest.mark.long) for cpus in (256, 512))]


class Large(Synth):
    """Made-up agents on the CPUs of a fixture tree, which very many Samples leave out."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(agents=20)
        self.machine = machine
        self._read = ProcfsCpus()
        self.turns = -(-machine.cpus // CPUS_A_SECOND)

    def sample(self) -> Sample:
        sample = super().sample()
        self.machine.advance(idle=False)
        due = sample.full or sample.seq % self.turns == 0
        sample.cpus = self._read.read() if due else []
        return sample

    def _host(self) -> Host:
        every_s = float(self.turns) if self.turns > 1 else 0.0
        return host(self._read, mode="tp_btf", cpus_every_s=every_s)


@pytest.fixture(params=SIZES)
def large(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Large:
    cpus = request.param
    return Large(
        Machine(
            Tree(tmp_path).use(monkeypatch),
            cpus=cpus,
            offline={1},
            gaps=frozenset({0} if cpus == 2 else {9, 10}),
            possible=cpus,
            nodes=2,
            irqs=4,
        ).write()
    )


def test_the_snapshot_has_a_row_for_each_cpu(large: Large) -> None:
    store = Store(clock=lambda: large.t_ns)
    for sample in large.samples(2 * large.turns + 1):
        store.feed(sample)
    snapshot = store.snapshot()
    assert snapshot is not None
    machine = large.machine
    assert [cpu.cpu for cpu in snapshot.cpus] == machine.present
    assert [cpu.cpu for cpu in snapshot.cpus if not cpu.online] == sorted(machine.offline)
    for cpu in snapshot.cpus:
        if cpu.online:
            assert cpu.irqs["local_timer"].per_s == pytest.approx(1000, rel=0.01)
    text = report(snapshot)
    rows = [line.split() for line in text.splitlines()]
    shown = [int(row[0]) for row in rows if row and row[0].isdigit() and len(row) > 1]
    assert set(machine.present) <= set(shown)
    assert ("CPUs are read every" in text) == (large.turns > 1)
    told = json.loads(encode(snapshot))
    assert [cpu["cpu"] for cpu in told["cpus"]] == machine.present
    assert told["host"]["cpus_every_s"] == (large.turns if large.turns > 1 else 0)


@pytest.mark.parametrize("size", [(200, 50), (80, 24)], ids=["200x50", "80x24"])
def test_the_screen_shows_each_cpu_when_it_is_scrolled_to(
    large: Large, size: tuple[int, int]
) -> None:
    async def run() -> None:
        async with rig(size=size, samples=large.turns + 1, synth=large) as screen:
            assert [cpu.cpu for cpu in screen.view.cpus] == large.machine.present
            await screen.press("3", "end")
            assert f"CPUs {large.machine.cpus}" in screen.text()
            last = f"{large.machine.present[-1]}"
            # Beside the selected row's mark, where the number has three digits.
            assert any(last in line.replace("▸", " ").split() for line in screen.lines())

    asyncio.run(run())

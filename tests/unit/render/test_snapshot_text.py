"""The text output: fits, tells the whole, and lets nothing hostile through."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenttop.errors import UserError
from agenttop.model.snapshot import Snapshot
from agenttop.render.columns import COLUMNS, chosen, needed, ordered, sort_key
from agenttop.render.snapshot_text import Layout, report
from agenttop.store.store import Store
from agenttop.text.figures import cells
from tests.support.synth import PROFILES, Synth
from tests.unit.text.test_figures import HOSTILE


def made(synth: Synth, ticks: int = 6, toggles: bool = False) -> Snapshot:
    store = Store(clock=lambda: synth.t_ns)
    for i in range(ticks):
        if toggles and i == 2:
            synth.toggle("guard")
            synth.toggle("home")
        store.feed(synth.sample())
    snapshot = store.snapshot()
    assert snapshot is not None
    return snapshot


SNAPSHOTS = {
    "lite": lambda: made(Synth(level="lite")),
    "full": lambda: made(Synth(level="full"), toggles=True),
    "procfs": lambda: made(Synth(mode="procfs")),
    "nobody": lambda: made(Synth(agents=0)),
    "first": lambda: made(Synth(), ticks=1),
    "crowd": lambda: made(Synth(agents=60, cpus=16), ticks=3),
}


@pytest.mark.parametrize("kind", SNAPSHOTS)
@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_no_line_is_wider_than_asked_for(kind: str, width: int) -> None:
    snapshot = SNAPSHOTS[kind]()
    for ascii_ in (False, True):
        text = report(snapshot, Layout(width=width, ascii=ascii_))
        assert max(map(cells, text.splitlines())) <= width
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        assert text.isascii() or not ascii_


def test_agents_chains_cpus_policies_and_trust_are_all_told() -> None:
    text = report(made(Synth(level="full"), toggles=True), Layout(width=120))
    for word in ("build-7", "6.18", "level full", "lost", "unattributed", "coverage", "self"):
        assert word in text
    for profile in PROFILES:
        assert profile.name in text
        assert str(profile.pid) in text
    for stage in ("wait", "idle_exit", "queue", "return", "compute", "slowpath", "over"):
        assert stage in text
    assert "virtio0-input.0" in text
    assert "cpu0 pm_qos_resume_latency_us: 0 -> n/a" in text
    assert "no cpufreq driver" in text
    assert text.count("CHAIN ") == 3


def test_an_unmeasured_stage_says_so() -> None:
    (line,) = {
        line.strip()
        for line in report(made(Synth(level="lite"))).splitlines()
        if line.startswith("  return")
    }
    assert line == "return          N/A  (not measured at level lite)"


def test_few_samples_beyond_a_percentile_are_marked_and_none_is_na() -> None:
    synth = Synth(agents=0)
    synth.add(replace(PROFILES[2], steps_per_s=60))
    lines = report(made(synth, ticks=4)).splitlines()
    row = next(line for line in lines if line.strip().startswith("slowpath"))
    p50, p99, p999, _ = row.split()[1:]
    assert not p50.startswith("~")
    assert p99.startswith("~")
    assert p999 == "N/A"


def test_without_bpf_the_reason_stands_there() -> None:
    text = report(made(Synth(mode="procfs")))
    assert "run as root to see step chains" in text
    assert "N/A chains: BPF needs root" in text
    assert "CHAIN" not in text
    row = next(line for line in text.splitlines() if line.startswith("coder"))
    assert "N/A" in row


# No stream can carry a lone surrogate.
@pytest.mark.parametrize("name", [name for name in HOSTILE if "\ud800" not in name])
def test_hostile_names_stay_text(name: str) -> None:
    synth = Synth(agents=1)
    synth.add(replace(PROFILES[0], name=name))
    synth.agents[-1].counters.rule = name
    synth.policies[0].detail = name
    synth.policies[0].changes = [name]
    snapshot = made(synth)
    snapshot.host.name = snapshot.host.kernel = snapshot.host.banner = name  # type: ignore[assignment]
    snapshot.host.missing = {name: name}
    for exemplar in snapshot.exemplars:
        exemplar.waker = name
    for agent in snapshot.agents:
        agent.policies = {"home": name}
    for cpu in snapshot.cpus:
        cpu.irqs = dict.fromkeys([name], cpu.irq)
    for width in (80, 200):
        text = report(snapshot, Layout(width=width))
        assert all(char.isprintable() or char == "\n" for char in text)
        assert max(map(cells, text.split("\n"))) <= width


@settings(max_examples=30, deadline=None)
@given(st.integers(10, 300), st.booleans())
def test_columns_fit_and_the_most_important_stay(width: int, chains: bool) -> None:
    columns = chosen(width, chains)
    keys = [column.key for column in columns]
    assert keys[0] == "name"
    assert needed(columns) <= width or len(columns) == 1
    if width >= 40:
        assert {"steps", "slow_p99"} <= set(keys)
    assert keys == [key for key in COLUMNS if key in keys]


@pytest.mark.parametrize("key", COLUMNS)
@pytest.mark.parametrize("mode", ["tp_btf", "procfs"])
def test_every_column_sorts_both_ways_and_has_a_cell(key: str, mode: str) -> None:
    synth = Synth(agents=8, mode=mode)  # type: ignore[arg-type]
    agents = made(synth).agents
    agents[3].home_cpu = None
    column = COLUMNS[key]
    order = column.order or column.get
    up, down = ordered(agents, key), ordered(agents, key, inverted=True)
    assert {a.id for a in up} == {a.id for a in down} == {a.id for a in agents}
    for found, falling in ((up, column.descending), (down, not column.descending)):
        values = [order(agent) for agent in found]
        known = [value for value in values if value is not None]
        assert values == known + [None] * (len(values) - len(known))
        assert known == sorted(known, reverse=falling)
    assert all(column.text(agent) for agent in agents)


def test_sort_keys_are_checked() -> None:
    assert sort_key(None) == ("slow_p99", False)
    assert sort_key("-pid") == ("pid", True)
    with pytest.raises(UserError, match=r"--sort \ufffd\[31mpid: no such key"):
        sort_key("\x1b[31mpid")


def test_who_else_holds_the_policies_is_named() -> None:
    synth = Synth()
    store = Store(clock=lambda: synth.t_ns)
    for holder, title in ((None, "POLICIES\n"), (77, "POLICIES (held by agenttop with pid 77)\n")):
        synth.held_by = holder
        store.feed(synth.sample())
        store.feed(synth.sample())
        shot = store.snapshot()
        assert shot is not None
        assert title in report(shot)

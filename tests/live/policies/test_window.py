"""window: who gets one, what it closes, and the guardian's watch, on fixture trees."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec
import pytest

from agenttop.collectors.bpf.read.windows import Opened
from agenttop.errors import UserError
from agenttop.policies import catalog
from agenttop.policies.base import Agent, Cpu, Exit, Targets, Thread
from agenttop.policies.builtin.window import Params, Window
from agenttop.policies.guardian.journal import Hold, open_state_dir
from agenttop.policies.guardian.journal import load as journals_load
from agenttop.policies.guardian.window_watch import SLACK_NS, Delays, Watch
from agenttop.policies.knobs.base import Change
from agenttop.policies.manager import PolicyManager
from agenttop.policies.parts.held_power import LostPower
from agenttop.policies.parts.idle_limits import Closed, State
from agenttop.stats.token_bucket import Bucket, Rates, Terms
from tests.live.policies.test_guard import GUEST, XEON, qos, tree
from tests.support.loops import loop
from tests.support.policy_rig import needs_root
from tests.support.tracing import load

MS = 1_000_000


class Kernel:
    """What the policy tells the kernel side, and buckets to read."""

    def __init__(self) -> None:
        self.open_slots: dict[int, tuple[int, Rates, bool]] = {}
        self.buckets: dict[int, Bucket] = {}

    def cell_of(self, slot: int) -> int:
        return 100 + slot

    def open(self, slot: int, window_ns: int, rates: Rates, floor: bool) -> None:
        self.open_slots[slot] = (window_ns, rates, floor)
        self.buckets.setdefault(slot, Bucket(rates))

    def shut(self, slot: int) -> None:
        del self.open_slots[slot]

    def read(self, slot: int, rates: Rates) -> Opened:
        return Opened(self.buckets[slot], 5 * MS)

    def held_cpus(self, now_ns: int) -> list[int]:
        return [1]


@pytest.fixture
def sys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTTOP_SYS", str(tmp_path))
    return tmp_path


def made(**params: Any) -> tuple[Window, Kernel]:
    window = Window(cast("Params", catalog.params("window", params)))
    kernel = Kernel()
    window.attach(cast("Any", kernel))
    return window, kernel


def targets(*agents: Agent, cpus: int = 4, exits: dict[int, Exit] | None = None) -> Targets:
    return Targets(0, agents, tuple(Cpu(n, exits=exits or {}) for n in range(cpus)))


CODER = Agent(1, "coder", (10,), (Thread(10, 10, 0),), {0: 100}, slot=7)
SCAN = Agent(2, "scanner", (20,), (Thread(20, 20, 1),), {1: 100}, slot=8, background=True)


#: What window and floor both set.
FLOORS = ("floor", "performance floors")


def domain(sys: Path, number: int, cpus: str) -> None:
    """A frequency domain, 0.8 to 3 GHz."""
    folder = sys / f"devices/system/cpu/cpufreq/policy{number}"
    folder.mkdir(parents=True)
    (folder / "cpuinfo_max_freq").write_text("3000000\n")
    (folder / "scaling_min_freq").write_text("800000\n")
    (folder / "affected_cpus").write_text(f"{cpus}\n")


class TestWho:
    def test_every_agent_but_the_background_ones(self, sys: Path) -> None:
        tree(sys, XEON)
        window, kernel = made()
        window.wanted(targets(CODER, SCAN), {})
        assert kernel.open_slots == {}  # a plan opens nothing
        window.start()
        assert kernel.open_slots.keys() == {7}
        window_ns, rates, floor = kernel.open_slots[7]
        assert (window_ns, rates, floor) == (2 * MS, Rates.of(Terms()), False)

    def test_selected_by_name(self, sys: Path) -> None:
        tree(sys, XEON)
        window, kernel = made(agents=["scan*"])
        window.wanted(targets(CODER, SCAN), {})
        window.start()
        assert kernel.open_slots.keys() == {8}

    def test_those_that_go_are_shut_and_so_are_all_at_the_end(self, sys: Path) -> None:
        tree(sys, XEON)
        window, kernel = made(agents=["*"])
        window.wanted(targets(CODER, SCAN), {})
        window.start()
        window.wanted(targets(SCAN), {})
        window.start()
        assert kernel.open_slots.keys() == {8}
        window.stop()
        assert kernel.open_slots == {}
        assert window.budgets(0) == {}

    def test_a_slots_next_agent_gets_its_own_settings(self, sys: Path) -> None:
        tree(sys, XEON)
        window, kernel = made(per_agent=[{"match": "next", "window_us": 500}])
        window.wanted(targets(CODER), {})
        window.start()
        window.wanted(targets(Agent(3, "next", slot=7)), {})
        window.start()
        assert kernel.open_slots[7][0] == 500_000

    def test_settings_of_one_agent(self, sys: Path) -> None:
        tree(sys, XEON)
        own = {"match": "cod*", "limit_us": 1, "budget": {"capacity": 5, "refill_per_s": 10}}
        window, kernel = made(per_agent=[own], agents=["*"])
        wanted = window.wanted(targets(CODER, SCAN), {})
        window.start()
        assert kernel.open_slots[7][1] == Rates.of(Terms(capacity=5, refill_per_s=10))
        assert kernel.open_slots[8][1] == Rates.of(Terms())
        # A CPU has one limit: the strictest.
        assert wanted == qos(cpu0="1", cpu1="1", cpu2="1", cpu3="1")

    def test_without_the_kernel_side_it_says_why(self, sys: Path) -> None:
        tree(sys, XEON)
        window = Window()
        assert "step chains" in str(window.probe())
        window.attach(None, "BCC is missing")
        assert window.probe() in ("needs step chains: BCC is missing", "needs root")


class TestWhat:
    def test_slow_idle_states_of_every_cpu(self, sys: Path) -> None:
        tree(sys, XEON)
        window, _ = made()
        assert window.wanted(targets(CODER), {}) == qos(**{f"cpu{n}": "50" for n in range(4)})
        assert window.cells(("pm_qos", "cpu3")) == (3,)
        assert "closes C6 (190us promised)" in window.detail()

    def test_50_us_closes_nothing_on_a_guest_and_it_says_so(self, sys: Path) -> None:
        tree(sys, GUEST, driver="haltpoll")
        window, _ = made()
        assert window.wanted(targets(CODER), {}) == {}
        assert "no idle state of cpu0-3 takes longer" in window.detail()
        window, _ = made(limit_us=5)
        assert window.wanted(targets(CODER), {}) == qos(**{f"cpu{n}": "n/a" for n in range(4)})

    def test_measured_exits_count(self, sys: Path) -> None:
        tree(sys, XEON)
        slow = {2: Exit(70_000, 100)}
        window, _ = made()
        assert window.wanted(targets(CODER, exits=slow), {})["pm_qos", "cpu0"] == "9"

    def test_a_stricter_value_is_kept(self, sys: Path) -> None:
        base = tree(sys, XEON)
        (base / "cpu1/power/pm_qos_resume_latency_us").write_text("20\n")
        window, _ = made()
        assert ("pm_qos", "cpu1") not in window.wanted(targets(CODER), {})
        assert "already as strict: cpu1=20" in window.detail()

    def test_the_floor_is_the_frequency_where_there_are_no_clamps(
        self, sys: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        tree(sys, XEON)
        monkeypatch.setenv("AGENTTOP_PROC", str(tmp_path / "proc"))
        domain(sys, 0, "0 1")
        domain(sys, 2, "2 3")
        window, kernel = made(limit_us=500)
        assert window.wanted(targets(CODER), {}) == {
            ("cpufreq", "policy0/scaling_min_freq"): "1500000",
            ("cpufreq", "policy2/scaling_min_freq"): "1500000",
        }
        assert window.cells(("cpufreq", "policy2/scaling_min_freq")) == (2, 3)
        window.start()
        assert kernel.open_slots[7][2] is False
        window, _ = made(limit_us=500, floor=False)
        assert window.wanted(targets(CODER), {}) == {}

    def test_the_floor_is_the_threads_clamp_where_there_are_clamps(
        self, sys: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        tree(sys, XEON)
        clamp = tmp_path / "proc/sys/kernel/sched_util_clamp_min"
        clamp.parent.mkdir(parents=True)
        clamp.write_text("1024\n")
        monkeypatch.setenv("AGENTTOP_PROC", str(tmp_path / "proc"))
        me = os.getpid()
        agent = Agent(1, "coder", (me,), (Thread(me, me, 0),), {0: 100}, slot=7)
        window, kernel = made(limit_us=500, min_util_ratio=0.25)
        ((kind, target), value) = next(iter(window.wanted(targets(agent), {}).items()))
        assert (kind, target.split("/")[:2], value) == ("uclamp_min", [str(me)] * 2, "256")
        # It follows the agent, on whatever CPU its window is open.
        assert window.cells((kind, target)) == (kernel.cell_of(7),)
        window.start()
        assert kernel.open_slots[7][2] is True


class TestBudgetOnScreen:
    def test_words_and_figures(self, sys: Path) -> None:
        tree(sys, XEON)
        terms = {"capacity": 10, "refill_per_s": 0.1, "recovery": 0.5}
        window, kernel = made(budget=terms)
        window.wanted(targets(CODER), {})
        window.start()
        bucket = kernel.buckets[7]
        now = time.monotonic_ns()
        bucket.zero = now - bucket.rates.cap_ns
        assert window.agents() == {1: "100%"}
        assert window.news(now) == []
        while bucket.pay(bucket.rates.cost_ns, now):
            pass
        assert window.agents() == {1: "thr"}
        (event,) = window.news(now)
        assert "coder is throttled" in event.text
        assert "until it is 50% full" in event.text
        assert window.news(now + 1) == []  # told once in a while
        window.figures = {"slots": {"7": [3, 1000, 2000, 3000]}}
        budget = window.budgets(now)["1"]
        assert (budget.tokens, budget.capacity) == (0, 10)
        assert (budget.grants, budget.refusals, budget.throttled) == (10, 1, True)
        assert budget.spent == 10
        assert (budget.edges, budget.edge_p99_ns, budget.held_ns) == (3, 2000, 5 * MS)

    def test_an_agents_name_cannot_write_to_the_terminal(self, sys: Path) -> None:
        tree(sys, XEON)
        window, kernel = made()
        window.wanted(targets(Agent(1, "\x1b[2Jbad", slot=7)), {})
        window.start()
        kernel.buckets[7].throttled = kernel.buckets[7].zero = time.monotonic_ns()
        assert "\x1b" not in window.news(time.monotonic_ns())[0].text


def rapl(sys: Path, microjoules: int) -> None:
    zone = sys / "class/powercap/intel-rapl:0"
    zone.mkdir(parents=True, exist_ok=True)
    for file, text in {
        "name": "package-0",
        "max_energy_range_uj": 10**9,
        "energy_uj": microjoules,
    }.items():
        (zone / file).write_text(f"{text}\n")


def powers(base: Path, milliwatts: dict[int, int], cpus: int = 4) -> None:
    for cpu in range(cpus):
        for state, power in milliwatts.items():
            (base / f"cpu{cpu}/cpuidle/state{state}/power").write_text(f"{power}\n")


class TestPriceInJoules:
    TERMS: ClassVar = {"capacity": 10_000, "refill_per_s": 10_000, "price": "joules"}

    def opened(self, **params: Any) -> tuple[Window, Kernel]:
        window, kernel = made(budget=self.TERMS, **params)
        window.wanted(targets(CODER), {})
        window.start()
        return window, kernel

    def test_what_the_idle_states_tell(self, sys: Path) -> None:
        base = tree(sys, XEON)
        powers(base, {0: 4294967295, 1: 1500, 2: 1000, 3: 200})
        window, kernel = self.opened()  # closes C6, C1E stays
        assert kernel.open_slots[7][1] == Rates.of(Terms(**self.TERMS), watts=0.8)
        assert "0.8 tokens (uJ) per us: 0.8W lost, told by the idle states" in window.detail()
        bucket = kernel.buckets[7]
        assert bucket.pay(bucket.rates.price_of(2 * MS), time.monotonic_ns())
        # 5 ms were held (Kernel.read), as the window followed its thread.
        assert window.budgets(0)["1"].spent == pytest.approx(2000 * 0.8)

    def test_beside_poll_it_is_at_least_as_much(self, sys: Path) -> None:
        base = tree(sys, XEON)
        powers(base, {0: 0, 1: 1500, 2: 1000, 3: 200})
        window, kernel = self.opened(limit_us=1)
        assert kernel.open_slots[7][1] == Rates.of(Terms(**self.TERMS), watts=1.3)
        assert "1.3W lost, at least, told by the idle states" in window.detail()

    def test_a_budget_that_holds_no_whole_window_says_so(self, sys: Path) -> None:
        base = tree(sys, XEON)
        powers(base, {1: 9000, 2: 9000, 3: 200})
        window, _ = self.opened()
        assert "costs 17600 tokens, its budget holds only 10000" in window.detail()

    def test_rapl_over_the_time_out_of_the_deepest_state(self, sys: Path) -> None:
        base = tree(sys, XEON)
        rapl(sys, 10**9 - 1_000_000)  # about to wrap
        for cpu in range(4):
            (base / f"cpu{cpu}/cpuidle/state3/time").write_text("500\n")
        lost = LostPower()
        lost.look(0)
        closed = {0: [Closed(State(3, "C6", 190), 190_000, "promised")]}
        assert lost.lost(closed) == (None, "RAPL is still being looked at")
        # In 4 s four CPUs were asleep for 15 of 16 s, and the package took 6 J.
        rapl(sys, 5_000_000 - 1)
        for cpu in range(4):
            (base / f"cpu{cpu}/cpuidle/state3/time").write_text("3750500\n")
        lost.look(4_000_000_000)
        watts, how = lost.lost(closed)
        assert watts == pytest.approx(6.0)
        assert how == "at most, measured by RAPL"
        # The price does not move any more.
        rapl(sys, 900_000_000)
        lost.look(9_000_000_000)
        assert lost.lost(closed).watts == watts

    def test_until_it_is_known_there_is_no_window_and_then_there_is(
        self, sys: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = tree(sys, XEON)
        rapl(sys, 0)
        window, kernel = self.opened(agents=["*"], per_agent=[{"match": "scan*", "budget": {}}])
        window.wanted(targets(CODER, SCAN), {})
        window.start()
        assert kernel.open_slots.keys() == {8}  # the other one's budget is not in joules
        assert "no window for coder: the power that is lost is N/A (RAPL is" in window.detail()
        rapl(sys, 8_000_000)
        for cpu in range(4):
            (base / f"cpu{cpu}/cpuidle/state3/time").write_text("0\n")
        later = time.monotonic_ns() + 2_000_000_000
        monkeypatch.setattr("agenttop.policies.builtin.window.time.monotonic_ns", lambda: later)
        window.wanted(targets(CODER, SCAN), {})
        window.start()
        assert kernel.open_slots.keys() == {7, 8}

    @needs_root
    def test_without_a_source_it_cannot_be_had_and_says_why(self, sys: Path) -> None:
        tree(sys, XEON)
        window, _ = made(budget=self.TERMS)
        assert window.probe() == (
            "a budget in joules needs the power that is lost: no RAPL package in"
            " /sys/class/powercap, and no idle state tells its power (cpuidle/state*/power)"
        )

    def test_where_nothing_is_closed_nothing_can_be_priced(self, sys: Path) -> None:
        base = tree(sys, XEON)
        powers(base, {1: 1500, 2: 1000, 3: 200})
        window, kernel = self.opened(limit_us=500)
        assert kernel.open_slots == {}
        assert "N/A (no idle state is closed)" in window.detail()


class TestParams:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"window_us": 10}, "window_us"),
            ({"window_us": 10_000_000}, "window_us"),
            ({"min_util_ratio": 2}, "min_util_ratio"),
            ({"budget": {"capacity": 0}}, "capacity"),
            ({"budget": {"cost": 9, "capacity": 3}}, "costs 9 tokens"),
            ({"budget": {"tokens": 9}}, "tokens"),
            ({"per_agent": [{"window_us": 100}]}, "match"),
        ],
    )
    def test_what_cannot_be_is_refused(self, given: dict[str, object], said: str) -> None:
        with pytest.raises(UserError, match=said):
            catalog.params("window", given)

    def test_they_can_be_given_on_the_command_line(self) -> None:
        settings = catalog.parse_set(
            ["window.window_us=500", "window.budget={capacity: 10, price: time}"]
        )
        given = cast("Params", catalog.params("window", settings["window"]))
        assert (given.window_us, given.budget) == (500, Terms(capacity=10, price="time"))
        assert msgspec.to_builtins(given)["limit_us"] == 50


@pytest.mark.bpf
class TestWatch:
    """The guardian's part on a real kernel's wake-ups, its knobs in a fixture tree."""

    @pytest.fixture
    def watch(self, sys: Path) -> Iterator[Watch]:
        tree(sys, XEON, cpus=os.cpu_count() or 1)
        self.cpus = os.cpu_count() or 1
        self.tracer = load("lite")
        wiring = self.tracer.windows.wiring
        watch = Watch(os.dup(wiring.ring), os.dup(wiring.cells), wiring.pages, wiring.size)
        self.tracer.clear(9)
        self.tracer.windows.open(9, 2 * MS, Rates.of(Terms(capacity=1e6)), False)
        yield watch
        watch.close()
        self.tracer.close()

    def follow(self, watch: Watch, idle: str = "0") -> None:
        for cpu in range(self.cpus):
            watch.add(Change("window", "pm_qos", f"cpu{cpu}", idle, "50"), [cpu])

    def values(self, sys: Path) -> list[str]:
        base = sys / "devices/system/cpu"
        return [
            (base / f"cpu{cpu}/power/pm_qos_resume_latency_us").read_text().strip()
            for cpu in range(self.cpus)
        ]

    def serve(self, watch: Watch) -> None:
        watch.edges()
        due = watch.due()
        if due is not None and time.monotonic() >= due:
            watch.look()

    def served(self, watch: Watch, check: Any) -> bool:
        def once() -> bool:
            self.serve(watch)
            return bool(check())

        deadline = time.monotonic() + 20
        while not once():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def test_in_force_while_woken_and_given_back_after(self, watch: Watch, sys: Path) -> None:
        self.follow(watch)
        assert watch.due() is None
        with loop("--interval-us", 500, "--steps", 400) as one:
            self.tracer.assign({one.pid: 9}, {})
            one.go()
            assert self.served(watch, lambda: "50" in self.values(sys))
            one.result()
        last = time.monotonic_ns()
        assert self.served(watch, lambda: watch.due() is None)
        assert self.values(sys) == ["0"] * self.cpus
        figures = watch.figures()
        assert figures["armed"] == figures["released"]
        assert cast("list[int]", figures["delays"])[0] == figures["armed"]
        # Steps come four times as often as a window lasts: far fewer acts than steps.
        assert cast("int", figures["armed"]) < 100
        assert cast("int", figures["looks"]) < 400 * 0.5 * MS / SLACK_NS + 60
        assert time.monotonic_ns() >= last

    def test_a_domains_floor_holds_while_any_of_its_cpus_does(
        self, watch: Watch, sys: Path
    ) -> None:
        domain = sys / "devices/system/cpu/cpufreq/policy0"
        domain.mkdir(parents=True)
        floor = domain / "scaling_min_freq"
        floor.write_text("800000\n")
        key = ("cpufreq", "policy0/scaling_min_freq")
        watch.add(Change("window", *key, "800000", "1500000"), range(self.cpus))
        with loop("--interval-us", 500, "--for", 30) as one:
            self.tracer.assign({one.pid: 9}, {})
            one.go()
            assert self.served(watch, lambda: floor.read_text() == "1500000")
            for cpu in range(self.cpus):  # moved from CPU to CPU: never without it for long
                os.sched_setaffinity(one.pid, {cpu})
                assert self.served(watch, lambda: floor.read_text() == "1500000")
        assert self.served(watch, lambda: watch.due() is None)
        assert floor.read_text() == "800000"

    def test_what_somebody_else_sets_is_left_alone(self, watch: Watch, sys: Path) -> None:
        self.follow(watch)
        with loop("--interval-us", 500, "--for", 30) as one:
            self.tracer.assign({one.pid: 9}, {})
            one.go()
            assert self.served(watch, lambda: "50" in self.values(sys))
            cpu = self.values(sys).index("50")
            theirs = sys / f"devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us"
            theirs.write_text("7\n")
            one.process.kill()
        assert self.served(watch, lambda: watch.due() is None)
        assert self.values(sys)[cpu] == "7"

    def test_a_stricter_value_is_not_replaced(self, watch: Watch, sys: Path) -> None:
        self.follow(watch)
        for cpu in range(self.cpus):
            path = sys / f"devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us"
            path.write_text("n/a\n")
        with loop("--interval-us", 500, "--steps", 100) as one:
            self.tracer.assign({one.pid: 9}, {})
            one.run()
        assert self.served(watch, lambda: watch.due() is None)
        assert self.values(sys) == ["n/a"] * self.cpus

    def test_forgotten_knobs_are_not_touched_and_new_ones_are(
        self, watch: Watch, sys: Path
    ) -> None:
        with loop("--interval-us", 500, "--for", 30) as one:
            self.tracer.assign({one.pid: 9}, {})
            one.go()
            time.sleep(0.05)
            self.serve(watch)  # edges of cells that have no knob
            self.follow(watch)
            assert self.served(watch, lambda: "50" in self.values(sys))
            watch.forget([("pm_qos", f"cpu{cpu}") for cpu in range(self.cpus)])
            assert watch.due() is None
            for cpu in range(self.cpus):
                path = sys / f"devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us"
                path.write_text("0\n")
            time.sleep(0.02)
            self.serve(watch)
        assert self.values(sys) == ["0"] * self.cpus


@pytest.mark.bpf
@needs_root
class TestManaged:
    """With the manager and a real guardian, on a fixture tree."""

    @pytest.fixture
    def manager(self, sys: Path) -> Iterator[PolicyManager]:
        tree(sys, XEON, cpus=2)
        self.tracer = load("lite")
        self.tracer.clear(CODER.slot)
        manager = PolicyManager(sys / "state")
        manager.attach(self.tracer.windows)
        yield manager
        manager.close()
        self.tracer.close()

    def lines(self, manager: PolicyManager) -> list[str]:
        status = next(s for s in manager.status() if s.name == "window")
        assert status.state == "on", status.detail
        return status.changes

    def test_a_value_that_changes_begins_anew(self, manager: PolicyManager, sys: Path) -> None:
        path = "devices/system/cpu/cpu{}/power/pm_qos_resume_latency_us"
        manager.set("window", True, targets(CODER, cpus=2))
        assert self.lines(manager) == [
            f"{sys / path.format(cpu)}: 0 -> 50 while a window is open" for cpu in (0, 1)
        ]
        slow = {2: Exit(70_000, 100)}
        deadline = time.monotonic() + 20
        while "-> 9 " not in self.lines(manager)[0]:
            assert time.monotonic() < deadline, self.lines(manager)
            manager.tick(targets(CODER, cpus=2, exits=slow))
            time.sleep(0.1)
        found = journal(sys / "state")
        assert {(h.original, tuple(h.ours)) for h in found} == {("0", ("9",))}
        assert [(sys / path.format(cpu)).read_text().strip() for cpu in (0, 1)] == ["0", "0"]
        manager.set("window", False, targets(CODER, cpus=2))
        assert not (sys / "state/journal").exists()

    def test_an_armed_value_of_somebody_elses_stays(
        self, manager: PolicyManager, sys: Path
    ) -> None:
        path = sys / "devices/system/cpu/cpu0/power/pm_qos_resume_latency_us"
        manager.set("window", True, targets(CODER, cpus=2))
        path.write_text("50\n")  # what a window would write, but none is open
        events = manager.set("window", False, targets(CODER, cpus=2))
        assert [e.text for e in events if e.kind == "warning"] == [
            f"{path}: changed by another process since (now 50): left as it is"
        ]
        assert path.read_text() == "50\n"
        assert not (sys / "state/journal").exists()

    def test_an_armed_value_of_somebody_elses_is_told_and_ours_is_given_back(
        self, manager: PolicyManager, sys: Path
    ) -> None:
        paths = sorted(sys.glob("devices/system/cpu/cpu?/power/pm_qos_resume_latency_us"))
        manager.set("window", True, targets(CODER, cpus=2))
        paths[0].write_text("50\n")
        with loop("--interval-us", 500, "--for", 60) as one:
            os.sched_setaffinity(one.pid, {0, 1})
            self.tracer.assign({one.pid: CODER.slot}, {})
            one.go()
            drifted: list[str] = []
            deadline = time.monotonic() + 20
            for cpu in cycle((0, 1)):
                os.sched_setaffinity(one.pid, {cpu})
                drifted += [e.text for e in manager.tick(targets(CODER, cpus=2))]
                time.sleep(0.05)
                if drifted and paths[1].read_text() == "50":
                    break
                assert time.monotonic() < deadline
            # The loop keeps the window on cpu1 open meanwhile.
            events = manager.set("window", False, targets(CODER, cpus=2))
        assert drifted == [
            f"window drifted: {paths[0]}: now 50, set by somebody else (50 was ours)"
        ]
        left = [e.text for e in events if e.kind == "warning"]
        assert left == [f"{paths[0]}: now 50, set by somebody else (50 was ours): left as it is"]
        assert [path.read_text().strip() for path in paths] == ["50", "0"]

    @pytest.mark.parametrize(("other", "what"), [("guard", "CPUs' idle limits"), FLOORS])
    @pytest.mark.parametrize("first", [True, False])
    def test_what_another_policy_sets_is_refused_in_either_order(
        self, manager: PolicyManager, sys: Path, other: str, what: str, first: bool
    ) -> None:
        domain(sys, 0, "0 1")
        agent = replace(CODER, cpu_steps={0: 100})
        one, two = ("window", other) if first else (other, "window")
        assert {e.kind for e in manager.set(one, True, targets(agent, cpus=2))} == {"policy"}
        (event,) = manager.set(two, True, targets(agent, cpus=2))
        assert (event.kind, event.text) == (
            "error",
            f"{two}: {one} and {two} both set {what}: switch {one} off first",
        )
        assert [s.name for s in manager.status() if s.state == "on"] == [one]
        manager.set(one, False, targets(agent, cpus=2))
        assert {e.kind for e in manager.set(two, True, targets(agent, cpus=2))} == {"policy"}

    def test_a_window_without_a_floor_is_on_beside_one(
        self, manager: PolicyManager, sys: Path
    ) -> None:
        domain(sys, 0, "0 1")
        manager.configure("window", {"floor": False})
        for name in ("floor", "window"):
            assert {e.kind for e in manager.set(name, True, targets(CODER, cpus=2))} == {"policy"}
        manager.set("window", False, targets(CODER, cpus=2))
        manager.configure("window", {"floor": False, "per_agent": [{"match": "x", "floor": True}]})
        (event,) = manager.set("window", True, targets(CODER, cpus=2))
        assert event.kind == "error"

    def test_a_stall_of_the_engine_leaves_nothing_open(
        self, manager: PolicyManager, sys: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A loop that is merely busy keeps its lease for some seconds; one that hangs does not.
        monkeypatch.setattr("agenttop.policies.guardian.heartbeat.BUSY_S", 0.0)
        manager.set("window", True, targets(CODER, cpus=2))
        time.sleep(2.0)  # no renewal
        deadline = time.monotonic() + 20
        while manager.guardian is not None:
            assert time.monotonic() < deadline
            manager.tick(targets(CODER, cpus=2))
            time.sleep(0.05)
        status = next(s for s in manager.status() if s.name == "window")
        assert (status.state, status.budgets, status.armed) == ("off", {}, [])


def journal(state: Path) -> list[Hold]:
    fd = open_state_dir(str(state), create=False)
    assert fd is not None
    try:
        found = journals_load(fd)
    finally:
        os.close(fd)
    assert found is not None
    return found.holds


def test_delays_are_told_within_an_eighth() -> None:
    delays = Delays()
    for us in range(1, 1001):
        delays.add(us * 1000)
    count, p50, p99, longest = delays.told()
    assert (count, longest) == (1000, 1_000_000)
    assert 500_000 <= p50 <= 500_000 * 1.125
    assert 990_000 <= p99 <= 1_000_000
    assert Delays().told() == [0, 0, 0, 0]


def test_a_crowd_of_one_user_shares_its_budgets_and_others_keep_theirs(sys: Path) -> None:
    window, kernel = made()
    crowd = [Agent(n, "claude", slot=n, user=666) for n in range(1, 65)]
    hers = Agent(100, "coder", slot=100, user=1000)
    named = [Agent(n, "chosen", slot=n, user=666, chosen=True) for n in range(110, 130)]
    window.wanted(targets(*crowd, hers, *named), {})
    window.start()
    whole = Rates.of(Terms())
    rates = {slot: opened[1] for slot, opened in kernel.open_slots.items()}
    # 64 agents with 16 budgets: an arming costs four times as much of the time that refills.
    assert {rates[n].cost_ns for n in range(1, 65)} == {4 * whole.cost_ns}
    assert rates[100] == whole
    assert {rates[n] for n in range(110, 130)} == {whole}
    now = time.monotonic_ns()
    assert window.budgets(now)["1"].capacity == Terms().capacity / 4
    assert window.budgets(now)["100"].capacity == Terms().capacity

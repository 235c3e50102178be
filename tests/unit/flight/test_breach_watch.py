"""``--on-breach``: the grammar, what lies ready, what is written when, and where it stops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.errors import UserError
from agenttop.flight import breach_watch
from agenttop.flight.breach_condition import FIGURES, MEASURES, MOST_NS, Condition, limit, parse
from agenttop.flight.breach_watch import APART_NS, MOST_DUMPS, Breach, Ring, Watcher
from agenttop.flight.perfetto_trace import trace
from agenttop.model.sample import Command, Event, Sample
from agenttop.model.snapshot import Agent
from agenttop.store.replayed import measured, still
from agenttop.store.store import Store
from agenttop.stream.recording import Recording
from tests.support.engines import needs_bpf
from tests.support.loops import loop
from tests.support.screen_rig import rig
from tests.support.synth import Synth

SECOND = 1_000_000_000

# --------------------------------------------------------------------------- the grammar

conditions = st.builds(
    Condition,
    # What rpartition and strip leave of a name: nothing at its ends.
    agent=st.none() | st.text(min_size=1).map(str.strip).filter(bool),
    measure=st.sampled_from(MEASURES),
    figure=st.sampled_from(sorted(FIGURES)),
    limit_ns=st.integers(1, MOST_NS),
)


@given(conditions)
def test_what_is_told_of_a_condition_says_it_again(condition: Condition) -> None:
    assert parse(str(condition)) == condition


@given(st.integers(1, MOST_NS))
def test_limits_are_exact(ns: int) -> None:
    assert parse(f"p99>{limit(ns)}").limit_ns == ns
    assert parse(f"p99 > {ns / 1e9:.9f}s").limit_ns == ns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p99>2ms", Condition(None, "slowpath", "p99", 2_000_000)),
        ("coder:p999>800us", Condition("coder", "slowpath", "p999", 800_000)),
        ("coder: step p50 > 1.5s", Condition("coder", "step", "p50", 1_500_000_000)),
        ("a:b:slowpath p99.9>7µs", Condition("a:b", "slowpath", "p999", 7_000)),
        ("  p50>1ns ", Condition(None, "slowpath", "p50", 1)),
    ],
)
def test_conditions_are_understood(text: str, expected: Condition) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has the form"),
        ("p99", "has the form"),
        ("p99<2ms", "has the form"),
        ("p99>-2ms", "has the form"),
        ("p98>2ms", "'p98' is none of p50, p99, p999"),
        ("wait p99>2ms", "'wait' is neither step nor slowpath"),
        ("p99>2", "needs a unit"),
        ("p99>2min", "'min' is none of them"),
        ("p99>0ms", "not within 1ns and 60s"),
        ("p99>61s", "not within 1ns and 60s"),
        ("p99>" + "9" * 5000 + "s", "not within 1ns and 60s"),
        (":p99>2ms", "no agent's name"),
        ("p99>2ms:", "has the form"),
        ("p99>٢ms", "has the form"),
    ],
)
def test_mistakes_are_told_in_one_line(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@given(st.text() | st.from_regex(r"[a-z:]{0,3}(step |x )?p\d{1,3}>[\d.]{1,4}(ms|s|x)?"))
def test_any_text_is_a_condition_or_one_line(text: str) -> None:
    told = ""
    try:
        assert 1 <= parse(text).limit_ns <= MOST_NS
    except UserError as error:
        told = str(error)
    assert told.isprintable()
    assert not told or told.startswith("--on-breach '")


# --------------------------------------------------------------------------- what lies ready


class Rig:
    """Made-up Samples, a Store and a Watcher, as a headless run has them."""

    def __init__(self, directory: Path, *texts: str, keep_s: float = 5.0) -> None:
        self.synth = Synth()
        self.store = Store()
        self.commands: list[Command] = []
        given_ = Breach(tuple(map(parse, texts)), keep_s, directory)
        self.watcher = Watcher(given_, 1.0)
        self.directory = directory

    def tick(self, times: int = 1) -> list[Event]:
        """Seconds go by; what was told in them."""
        told = []
        for _ in range(times):
            sample = self.synth.sample()
            self.store.feed(sample)
            told += self.watcher.take(sample, self.store, self._send)
        return told

    def _send(self, command: Command) -> None:
        self.commands.append(command)
        assert command.kind == "full"
        self.synth.request_full()

    def limit(self, limit_ns: int) -> None:
        """From now on another limit: a breach begins or ends with the next Sample."""
        old = self.watcher._breach
        changed = tuple(Condition(c.agent, c.measure, c.figure, limit_ns) for c in old.conditions)
        self.watcher._breach = Breach(changed, old.keep_s, old.directory)

    def files(self) -> list[Path]:
        return sorted(self.directory.iterdir())


def samples_in(path: Path) -> list[Sample]:
    with Recording(path) as recording:
        found = list(recording)
        assert not recording.cut
    return found


def test_what_lies_ready_begins_with_a_full_sample_and_is_long_enough(tmp_path: Path) -> None:
    made = Rig(tmp_path, "p50>59s", keep_s=5)
    for second in range(40):
        made.tick()
        ready = made.watcher._ring.samples()
        assert ready[0].full
        assert ready[0].host is not None
        assert [s.seq for s in ready] == list(range(ready[0].seq, made.synth.seq))
        covered = (ready[-1].t_ns - ready[0].t_ns) // SECOND
        assert min(second, 5) <= covered <= 11
    assert len(made.commands) < 10


def test_what_lies_ready_has_a_bound_in_bytes() -> None:
    synth, ring = Synth(), Ring(keep_s=3600, most_bytes=300_000)
    for _ in range(60):
        sample = synth.sample()
        if ring.add(sample):
            synth.request_full()
        assert ring.size <= 300_000
    ready = ring.samples()
    assert not ready or ready[0].full


def test_a_new_run_of_the_engine_does_not_follow_the_old_one() -> None:
    synth, ring = Synth(), Ring(keep_s=30)
    for sample in synth.samples(5):
        ring.add(sample)
    synth.restart()
    for sample in synth.samples(2):
        ring.add(sample)
    assert [sample.seq for sample in ring.samples()] == [0, 1]


# --------------------------------------------------------------------------- what is written


def test_a_breach_is_written_and_told_once(tmp_path: Path) -> None:
    made = Rig(tmp_path, "coder:slowpath p99>59s")
    assert made.tick(20) == []
    assert made.files() == []
    made.limit(1_000)
    (told,) = made.tick()
    (file,) = made.files()
    assert told.kind == "warning"
    assert told.text.startswith("coder: slowpath p99 ")
    assert told.text.endswith(f"> 1.00µs: {file}")
    assert made.tick(30) == []  # it lasts; it did not begin again
    assert made.files() == [file]
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_file_holds_the_last_seconds_with_their_steps(tmp_path: Path) -> None:
    made = Rig(tmp_path, "p99>59s", keep_s=5)
    fed: list[Sample] = []
    original = made.store.feed

    def feed(sample: Sample) -> None:
        fed.append(sample)
        original(sample)

    made.store.feed = feed  # type: ignore[method-assign]
    made.tick(20)
    made.limit(1_000)
    assert len(made.tick()) == 5  # each agent's
    (file,) = made.files()
    found = samples_in(file)
    assert found[-1].t_ns == fed[-1].t_ns
    assert found[0].t_ns <= fed[-1].t_ns - 5 * SECOND
    assert found[0].full
    steps = [e for s in found for e in s.exemplars]
    assert steps == [e for s in fed[-len(found) :] for e in s.exemplars]
    assert steps
    # Whoever reads it sees the same figures as who was there.
    store = Store(clock=still)
    with Recording(file) as recording:
        list(measured(recording, store))
    mine, theirs = store.snapshot(), made.store.snapshot(window_ns=(len(found) - 1) * SECOND)
    assert mine is not None
    assert theirs is not None
    assert [a.slowpath for a in mine.agents] == [a.slowpath for a in theirs.agents]


def test_breaches_one_after_the_other_are_told_and_not_all_written(tmp_path: Path) -> None:
    made = Rig(tmp_path, "coder:p99>59s")
    made.tick(20)
    apart_s = APART_NS // SECOND
    for _ in range(2 * apart_s):
        made.limit(1_000)
        (told,) = made.tick()
        assert ": not written" in told.text or str(made.files()[-1]) in told.text
        made.limit(59 * SECOND)
        assert made.tick() == []
    assert len(made.files()) == 4  # one in ten seconds of forty


def test_a_full_directory_is_told_and_nothing_is_overwritten(tmp_path: Path) -> None:
    for number in range(MOST_DUMPS - 1):
        (tmp_path / f"breach-{number}.rec").write_text("mine")
    made = Rig(tmp_path, "coder:p99>59s")
    made.tick(5)
    made.limit(1_000)
    made.tick()
    assert len(made.files()) == MOST_DUMPS
    made.limit(59 * SECOND)
    made.tick(20)
    made.limit(1_000)
    (told,) = made.tick()
    assert f"has {MOST_DUMPS} of them: remove some" in told.text
    assert len(made.files()) == MOST_DUMPS
    kept = [path for path in made.files() if path.stat().st_size == 4]
    assert len(kept) == MOST_DUMPS - 1


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        made = Rig(tmp_path, "coder:p99>1us")  # the same seconds each time
        made.tick(5)
        names = [path.name for path in made.files()]
    assert len(names) == 3
    assert {name.rpartition("coder")[2] for name in names} == {".rec", "-2.rec", "-3.rec"}


def test_hostile_names_stay_in_the_directory(tmp_path: Path) -> None:
    made = Rig(tmp_path / "here", "p99>1us")
    (tmp_path / "here").mkdir()
    for agent in made.synth.agents:
        agent.counters.name = "../../\x1b[2J" + "a" * 300
    told = made.tick(5)
    assert len(made.files()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert all(event.text.isprintable() for event in told)


def test_a_directory_that_has_gone_is_told(tmp_path: Path) -> None:
    made = Rig(tmp_path / "gone", "coder:p99>1us")
    told = made.tick(5)
    assert any("not written" in event.text and "No such file" in event.text for event in told)


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, sample: Sample) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(breach_watch.Writer, "add", full)
    made = Rig(tmp_path, "coder:p99>1us")
    told = made.tick(5)
    assert any("No space left on device" in event.text for event in told)
    assert made.files() == []


def test_a_figure_of_too_few_steps_breaches_nothing() -> None:
    store = Store()
    for sample in Synth().samples(5):
        store.feed(sample)
    snapshot = store.snapshot()
    assert snapshot is not None
    condition = parse("p999>1ns")
    values = {a.name: (a.slowpath.count, condition.value_ns(a)) for a in snapshot.agents}
    assert any(count < 1000 for count, _ in values.values())
    assert all((value is None) == (count < 1000) for count, value in values.values())


# --------------------------------------------------------------------------- where it is asked for


def agenttop(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agenttop", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize("command", [["-b", "-n", "1"], ["snapshot"], ["record"]])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--on-breach", "p99>2"], "needs a unit"),
        (["--on-breach", "p99>2ms", "--breach-dir", ""], "--breach-dir"),
        (["--on-breach", "p99>2ms", "--breach-dir", "/proc/x"], "/proc/x"),
        (["--on-breach", "p99>2ms", "--breach-keep", "0"], "--breach-keep"),
    ],
)
def test_mistakes_on_the_command_line(
    command: list[str], options: list[str], words: str, tmp_path: Path
) -> None:
    done = agenttop(*command, *options, AGENTTOP_STATE=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not done.stdout


async def test_on_the_screen_a_breach_is_told_and_written(tmp_path: Path) -> None:
    given_ = Breach((parse("coder:p99>1us"),), 5.0, tmp_path)
    async with rig(samples=4, breach=given_) as made:
        (file,) = tmp_path.iterdir()
        assert any(str(file) in event.text for event in made.store.events)
        assert "coder: slowpath p99" in made.lines()[-1]
    assert samples_in(file)


async def test_x_writes_the_slow_steps_as_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.perfetto_reader import read

    monkeypatch.chdir(tmp_path)
    async with rig(samples=5) as made:
        await made.press("x")
        assert "json, svg, perfetto-trace" in made.lines()[-1]
        expected = trace(made.app._flight)
    (file,) = tmp_path.glob("*.perfetto-trace")
    assert file.read_bytes() == expected
    assert read(expected).steps()


@pytest.mark.bpf
def test_live_breach_of_a_loop(tmp_path: Path) -> None:
    needs_bpf()
    state = str(tmp_path / "state")
    with loop("--name", "breached", "--interval-us", 500, "--for", 60) as mine:
        mine.go()
        done = agenttop(
            "-b", "-n", 8, "-d", 0.5, "--agent", "comm:^breached$", "--on-breach",
            "breached:step p50>100us", "--on-breach", "step p50>50s",
            AGENTTOP_STATE=state, XDG_STATE_HOME=str(tmp_path / "xdg"),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "xdg/agenttop/breaches").iterdir()
    (line,) = done.stderr.splitlines()
    assert line.startswith("agenttop: breached: step p50 ")
    assert line.endswith(f"> 100µs: {file}")
    steps = [e for s in samples_in(file) for e in s.exemplars]
    assert steps
    assert {step.pid for step in steps} == {mine.pid}
    out = tmp_path / "t.perfetto-trace"
    done = agenttop("trace", "--from", file, "-o", out)
    assert done.returncode == 0, done.stderr


def test_a_user_who_breaches_on_purpose_leaves_files_to_others(tmp_path: Path) -> None:
    made = Rig(tmp_path, "p99>1ns")
    made.tick(3)
    snapshot = made.store.snapshot()
    assert snapshot is not None
    coder = snapshot.agents[0]
    mallory = msgspec.structs.replace(coder, id=7, name="claude", user=666)
    alice = msgspec.structs.replace(coder, id=8, name="coder", user=1000)
    for path in made.files():
        path.unlink()

    def breaches(*agents: Agent, at: int) -> list[str]:
        made.watcher._above = set()
        now = msgspec.structs.replace(snapshot, t_ns=at, agents=list(agents))
        return [event.text for event in made.watcher.judge(now)]

    at = snapshot.t_ns
    for _ in range(2 * MOST_DUMPS):
        at += APART_NS
        (told,) = breaches(mallory, at=at)
    assert len(made.files()) == MOST_DUMPS // 2
    assert "of user 666's agents: remove some" in told
    # Both at once, mallory first; then alice alone, right after a file of mallory's.
    both = breaches(mallory, alice, at=at + APART_NS)
    assert all("-u1000-coder" in text for text in both)
    made.files()[0].unlink()
    made.files()[1].unlink()
    breaches(mallory, at=at + 2 * APART_NS)
    (told,) = breaches(alice, at=at + 2 * APART_NS + 1)
    assert "-u1000-coder" in told
    # Whose a file is, no name can say.
    for path in made.files():
        path.unlink()
    posing = msgspec.structs.replace(mallory, name="x-u1000-y")
    for _ in range(MOST_DUMPS):
        at += 4 * APART_NS
        breaches(posing, at=at)
    assert len(made.files()) == MOST_DUMPS // 2
    (told,) = breaches(alice, at=at + 1)
    assert "-u1000-coder" in told
    # What root chose may have the rest.
    named = msgspec.structs.replace(mallory, chosen=True)
    for _ in range(MOST_DUMPS):
        at += 4 * APART_NS
        breaches(named, at=at)
    assert len(made.files()) == MOST_DUMPS

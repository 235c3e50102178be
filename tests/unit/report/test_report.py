"""Reports: figures against known truth, every format, and names that mean harm."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenttop import cli
from agenttop.model.histogram_layout import LAST_NS
from agenttop.model.sample import Budget, Command, Sample
from agenttop.model.vocabulary import STAGES
from agenttop.render.json_schema import schema
from agenttop.report import time_blocks as cutting
from agenttop.report.builder import build
from agenttop.report.estimate import percentile, quotient, ratio_of_sums
from agenttop.report.figure_text import said
from agenttop.report.formats import html, markdown, plots, text
from agenttop.report.model import Answer, Point, Report
from agenttop.report.questions import QUESTIONS
from agenttop.report.schema import REPORT
from agenttop.report.time_blocks import Blocks
from agenttop.stats.histogram import BUCKETS, bucket_of
from agenttop.store.replayed import still
from agenttop.store.snapshot_builder import Named
from tests.support.synth import PROFILES, Synth, replace
from tests.unit.stream.test_recording import framed, written

HOSTILE = (
    "<script>alert(1)</script>",
    "\x1b[31mred\x1b]0;x\x07",
    "a|b|c",
    "[x](http://evil.example)",
    "`code` **bold** <img src=x>",
    '"><svg onload=x>',
    "www.evil.example & www",
    "\u202egnp.exe",
)


def cut(samples: Sequence[Sample]) -> Blocks:
    made = Blocks(still)
    for number, sample in enumerate(samples):
        made.feed(sample)
        if not number:
            made.begin()
    return made


def switched(
    count: int = 40, policy: str = "guard", every: int = 5, agents: int = 5
) -> list[Sample]:
    """A policy on for ``every`` seconds, off as long, and so on."""
    synth, out = Synth(agents=agents), []
    for number in range(count):
        if number and number % every == 0:
            synth.toggle(policy)
        out.append(synth.sample())
    return out


def answers(report: Report) -> dict[str, Answer]:
    return {answer.key: answer for answer in report.answers}


@pytest.fixture(scope="module")
def report() -> Report:
    return build(cut(switched()), "a.rec")


# --------------------------------------------------------------------------- blocks


def test_blocks_lose_nothing_and_stay_few() -> None:
    samples = Synth(agents=2).samples(500)
    made = cut(samples)
    assert len(made.blocks) <= cutting.MOST
    steps = sum(Named.of(row).steps for block in made.blocks for row in block.agents.values())
    gained = [
        last.steps - first.steps
        for first, last in zip(samples[0].agents, samples[-1].agents, strict=True)
    ]
    assert steps == sum(gained)
    assert sum(block.length_ns for block in made.blocks) == samples[-1].t_ns - samples[0].t_ns
    lengths = {block.length_ns for block in made.blocks[:-1]}
    assert max(lengths) <= 2 * min(lengths)


def test_switches_keep_blocks_apart_and_the_settling_belongs_to_neither() -> None:
    made = cut(switched())
    assert {block.on for block in made.blocks} == {frozenset(), frozenset({"guard"}), None}
    for block in made.blocks:
        if block.on is not None:
            assert block.length_ns <= 5 * 10**9
    many = cut(switched(2 * cutting.MOST_APART, every=2, agents=1))
    assert len(many.blocks) <= cutting.MOST_APART * 3 // 2 + 1


def test_a_block_has_every_step_in_every_histogram() -> None:
    made = cut(Synth().samples(3))
    for block in made.blocks:
        totals = [block.counts.row(row).sum() for row in range(len(cutting.MEASURES))]
        for stage in ("irq", "ipi", "idle_exit", "queue", "slowpath"):
            assert totals[cutting.MEASURES.index(stage)] == totals[cutting.MEASURES.index("step")]


def test_a_budget_of_an_agent_that_never_was_is_in_no_block() -> None:
    samples = Synth(agents=1).samples(4)
    for sample in samples:
        agents = {"1": Budget(1.0, 2.0, grants=5), "77": Budget(1.0, 2.0, grants=5)}
        sample.policies[0].budgets = agents
    made = cut(samples)
    assert {agent for block in made.blocks for agent in block.budgets} <= made.known.keys()
    build(made, "made up")


def test_an_engine_that_began_anew_is_another_run() -> None:
    synth = Synth(agents=1)
    first = synth.samples(5)
    synth.restart()
    made = cut([*first, *synth.samples(5)])
    assert len(made.known) == 2
    assert all(Named.of(row).steps >= 0 for b in made.blocks for row in b.agents.values())


# --------------------------------------------------------------------------- figures


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=40))
def test_a_share_lies_in_its_interval(parts: list[tuple[int, int]]) -> None:
    tops, whole = [a for a, _ in parts], [a + b for a, b in parts]
    figure = quotient("x", "x", tops, whole, n=sum(whole))
    if not sum(whole):
        assert figure.value is None
        assert figure.missing
        return
    assert figure.value == pytest.approx(sum(tops) / sum(whole))
    if figure.low is not None and figure.high is not None:
        assert 0 <= figure.low <= figure.value <= figure.high <= 1


def test_an_interval_of_independent_blocks_holds_the_truth_in_about_95_percent() -> None:
    random = np.random.default_rng(7)
    inside = 0
    for _ in range(400):
        bottoms = random.poisson(500, 25)
        # What the steps of a block have in common moves them together.
        shares = np.clip(random.normal(0.3, 0.08, 25), 0, 1)
        found = ratio_of_sums(random.binomial(bottoms, shares), bottoms)
        assert found is not None
        assert found.half is not None
        inside += abs(found.value - 0.3) <= found.half
    assert 0.91 <= inside / 400 <= 0.985


@pytest.mark.xfail(
    strict=True,
    reason="intervals take blocks as independent: load that lasts over blocks needs wider ones",
)
def test_an_interval_of_dependent_blocks_holds_the_truth_in_about_95_percent() -> None:
    random = np.random.default_rng(8)
    inside = 0
    for _ in range(400):
        bottoms = random.poisson(500, 25)
        share, shares = random.normal(0, 0.08), []
        for _ in bottoms:
            share = 0.9 * share + random.normal(0, 0.08 * (1 - 0.9**2) ** 0.5)
            shares.append(0.3 + share)
        found = ratio_of_sums(random.binomial(bottoms, np.clip(shares, 0, 1)), bottoms)
        assert found is not None
        assert found.half is not None
        inside += abs(found.value - 0.3) <= found.half
    assert inside / 400 >= 0.91, f"{inside / 400:.0%}"


def test_a_percentile_lies_in_its_interval_and_few_samples_are_marked() -> None:
    made = cut(Synth(agents=1).samples(30))
    counts = np.array(
        [block.counts.row(cutting.MEASURES.index("slowpath")) for block in made.blocks]
    )
    figure = percentile("p", "p", counts, "p99")
    assert figure.value is not None
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low <= figure.value <= figure.high
    few = np.zeros_like(counts)
    few[:, 300] = 10
    assert percentile("p", "p", few, "p99").estimated
    assert percentile("p", "p", 0 * few, "p99").missing == "no steps"


@pytest.mark.parametrize("median", [1_051_000, 1_078_000, 20_500, 993])
def test_a_percentiles_interval_holds_the_truth_where_all_steps_share_a_bucket(median: int) -> None:
    counts = np.zeros((30, BUCKETS), dtype=np.int64)
    counts[:, bucket_of(median)] = 1_000
    for which in ("p50", "p99"):
        figure = percentile("p", "p", counts, which)
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= median <= figure.high


def test_a_percentile_beyond_all_buckets_is_a_lower_bound() -> None:
    counts = np.zeros((30, BUCKETS), dtype=np.int64)
    counts[:, -1] = 1_000
    figure = percentile("p", "p", counts, "p99")
    assert (figure.value, figure.over_range, figure.high) == (LAST_NS, True, None)
    assert said(figure) == ">67.6s"


def test_a_stage_that_took_no_time_is_told_as_0() -> None:
    counts = np.zeros((30, BUCKETS), dtype=np.int64)
    counts[:, 0] = 1_000
    figure = percentile("p", "p", counts, "p99")
    assert (figure.value, figure.low, figure.high) == (0, 0, 0)
    # With blocks drawn anew it is more here and there.
    counts[::2, bucket_of(5_000)] = 15
    figure = percentile("p", "p", counts, "p99")
    assert (figure.value, figure.low) == (0, 0)
    assert figure.high is not None
    assert figure.high > 1


# --------------------------------------------------------------------------- answers


def test_a_report_tells_of_the_same_losses_as_a_snapshot() -> None:
    samples = Synth().samples(20)
    for number, sample in enumerate(samples):
        sample.trust.drops = {"ring_full": 3 * number}
        sample.trust.recursion_misses = 100 * number
        sample.trust.slots_full = 7 if number == 5 else 0
    made = cut(samples)
    shot = made.snapshot(since_ns=0)
    assert shot is not None
    found = build(made, "live")
    assert found.trust.lost == shot.trust.lost == 19 * 103
    assert found.trust.slots_full == 7
    head = " ".join(text.head(found))
    assert "lost 1,957" in head
    assert "7 agents found no slot" in head


def test_json_is_what_its_schema_says(report: Report) -> None:
    rules = schema(REPORT)
    jsonschema.Draft202012Validator.check_schema(rules)
    validator = jsonschema.Draft202012Validator(rules)
    data = json.loads(msgspec.json.encode(report))
    validator.validate(data)
    data["answers"][0].pop("state")
    assert not validator.is_valid(data)


def test_every_question_is_answered_or_says_why_not(report: Report) -> None:
    assert [answer.key for answer in report.answers] == [
        "placement", "idle_exit", "deferred", "frequency", "faults", "metadata", "window", "budget",
    ]  # fmt: skip
    for answer in report.answers:
        assert answer.answer.endswith(".")
        if answer.state == "not measured":
            assert answer.missing
            assert answer.instead
        else:
            assert answer.figures
            assert answer.how
        for figure in answer.figures:
            assert (figure.value is None) == (figure.missing is not None), figure
    assert answers(report)["frequency"].missing == (
        "no cpufreq driver, so this machine's frequencies cannot be seen"
    )


def test_placement_is_the_share_of_the_sums(report: Report) -> None:
    samples = switched()
    gained = np.zeros(len(STAGES), dtype=np.int64)
    for first, last in zip(samples[0].agents, samples[-1].agents, strict=True):
        if not last.background:
            gained += np.array([x or 0 for x in last.stage_sum_ns])
            gained -= np.array([x or 0 for x in first.stage_sum_ns])
    ns = dict(zip(STAGES, gained.tolist(), strict=True))
    figure = answers(report)["placement"].figures[0]
    expected = (ns["ipi"] + ns["queue"]) / (ns["ipi"] + ns["queue"] + ns["idle_exit"])
    assert figure.value == pytest.approx(expected)
    assert "1 in the background left out" in answers(report)["placement"].how


def test_what_a_policy_brings_and_costs_is_found(report: Report) -> None:
    """In the made-up Samples guard takes 60 % off idle_exit and all deeper idle."""
    found = answers(report)["window"]
    (table,) = found.tables
    rows = {row.label: row.figures for row in table.rows}
    change = rows["slowpath p50"][2]
    assert change.high is not None
    assert change.high < 1
    off, on, points = rows["deeper idle"]
    assert (off.value, on.value) == (pytest.approx(0.4, abs=0.01), pytest.approx(0.0, abs=0.01))
    assert points.value == pytest.approx(-0.4, abs=0.01)
    assert points.unit == "points"
    assert rows["power"][2].value is None
    assert found.state == "partly measured"


def test_nothing_is_claimed_of_a_policy_that_was_always_on() -> None:
    synth = Synth()
    synth.toggle("guard")
    found = answers(build(cut(synth.samples(10)), "live"))["window"]
    assert found.state == "not measured"
    assert "nothing to compare" in found.answer


def test_energy_by_rapl_is_watts_with_an_interval() -> None:
    samples = switched()
    watts, total = {True: 9.0, False: 6.0}, 0
    for sample in samples:
        on = any(p.name == "guard" and p.state == "on" for p in sample.policies)
        total += int(watts[on] * 1e6)
        sample.energy_uj = {"package-0": total}
    found = answers(build(cut(samples), "live"))["window"]
    off, on, difference = found.tables[0].rows[-1].figures
    assert (off.value, on.value) == (pytest.approx(6.0), pytest.approx(9.0))
    assert difference.value == pytest.approx(3.0)
    assert found.state == "measured"


def budgeted() -> list[Sample]:
    """Agent 1 is well-behaved, agent 2 throttled for half of the time; off from 10 s to 20 s."""
    samples = Synth(agents=2).samples(31)
    for second, sample in enumerate(samples):
        on = not 10 <= second < 20
        status = msgspec.structs.replace(sample.policies[0], name="window", state="off")
        if on:
            status.state = "on"
            status.budgets = {
                "1": Budget(9.0, 10.0, grants=100 * second, spent=100.0 * second),
                "2": Budget(
                    0.0, 10.0, grants=10 * second, refusals=90 * second, throttles=second,
                    degraded_ns=second * 10**9 // 2, spent=10.0 * second,
                ),
            }  # fmt: skip
        sample.policies = [status]
    return samples


def test_any_number_of_tokens_can_be_reckoned_with() -> None:
    samples = budgeted()
    samples[5].policies[0].budgets["1"].spent = -1e17
    assert answers(build(cut(samples), "live"))["budget"].state == "measured"


def test_the_budget_tells_an_abuser_from_a_well_behaved_agent() -> None:
    found = answers(build(cut(budgeted()), "live"))["budget"]
    figures = {figure.key: figure.value for figure in found.figures}
    assert (figures["agents"], figures["throttled"]) == (2, 1)
    assert figures["well_tokens_per_s"] == pytest.approx(100, rel=0.01)
    assert figures["well_refused_ratio"] == 0
    assert figures["abuser_refused_ratio"] == pytest.approx(0.9)
    # What the counters did while the window was off is nobody's.
    assert figures["abuser_degraded_ratio"] == pytest.approx(0.5, rel=0.01)
    assert found.state == "measured"


def test_without_step_chains_each_question_says_so() -> None:
    made = build(cut(Synth(mode="procfs").samples(5)), "live")
    for answer in made.answers:
        assert answer.state == "not measured"
    assert "needs root" in answers(made)["placement"].answer
    for page in (text.render(made), markdown.render(made), html.render(made)):
        assert "BPF needs root" in page


# --------------------------------------------------------------------------- formats


def test_text_has_every_question_and_no_line_is_too_wide(report: Report) -> None:
    for width in (40, 80, 100, 200):
        page = text.render(report, width)
        assert max(map(len, page.splitlines())) <= width
    assert re.findall(r"^(\d)\. ", text.render(report), re.MULTILINE) == list("12345678")
    assert "40.0 s" in text.render(build(cut(Synth().samples(41)), "live"))


def rows_of(page: str) -> list[list[str]]:
    """Cells of the Markdown's table rows, as GitHub parts them."""
    return [
        re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("|")
    ]


def whole_tables(page: str) -> list[int]:
    """The columns of each table, all of whose rows have as many."""
    rows = rows_of(page)
    heads = [at for at, row in enumerate(rows) if set(row) == {" --- "}]
    for at, end in zip(heads, [*(head - 1 for head in heads[1:]), len(rows)], strict=True):
        assert {len(row) for row in rows[at - 1 : end]} == {len(rows[at])}
    return [len(rows[at]) for at in heads]


def test_markdown_has_whole_tables(report: Report) -> None:
    page = markdown.render(report)
    assert page.startswith("# agenttop report\n")
    assert len(re.findall(r"^## ", page, re.MULTILINE)) == len(QUESTIONS)
    assert len(whole_tables(page)) > len(QUESTIONS)


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps what is in the page."""

    VOID = ("meta",)

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_trend_within_one_moment_is_not_drawn() -> None:
    def points(length_s: float) -> list[Point]:
        return [Point(n * length_s, length_s, 5, 10, 20, []) for n in range(2)]

    assert plots.trend(points(1.0)).startswith("<svg")
    assert plots.trend(points(0.0)) == plots.trend(points(1e-9)) == plots.trend([]) == ""


def test_html_is_one_file_with_plots_for_light_and_dark(report: Report) -> None:
    page = html.render(report)
    seen = Page(page)
    names = [tag for tag, _ in seen.tags]
    assert names.count("section") == len(QUESTIONS) + 1
    assert names.count("polyline") == 2
    assert "rect" in names
    assert "script" not in names
    assert "prefers-color-scheme: dark" in page
    assert "default-src 'none'" in page
    ids = {attrs["id"] for _, attrs in seen.tags if "id" in attrs}
    for tag, attrs in seen.tags:
        assert not any(name.startswith("on") for name in attrs)
        assert {"src", "srcset", "style"}.isdisjoint(attrs)
        if "href" in attrs:
            assert tag == "a"
            assert (attrs["href"] or "")[1:] in ids
    assert "url(" not in page
    assert "@import" not in page
    for _, attrs in seen.tags:
        for name in ("x", "y", "width", "height", "points", "cx", "x1"):
            assert "nan" not in (attrs.get(name) or "")


def test_json_names_its_schema_and_is_the_report(report: Report) -> None:
    document = json.loads(msgspec.json.encode(report))
    assert (document["schema"], document["version"]) == ("agenttop.report", 1)
    assert set(document["answers"][0]["figures"][0]) == {
        "key", "name", "unit", "value", "low", "high", "n", "of", "blocks", "estimated",
        "over_range", "missing",
    }  # fmt: skip
    assert msgspec.convert(document, Report) == report


def hostile(names: Sequence[str] = HOSTILE) -> Report:
    synth = Synth(agents=0)
    for number, name in enumerate(names):
        synth.add(replace(PROFILES[0], name=name, pid=100 + number))
    samples = synth.samples(8)
    assert samples[0].host is not None
    samples[0].host.name = HOSTILE[0]
    samples[0].host.missing["freq"] = HOSTILE[3]
    samples[0].host.idle_states[1].name = HOSTILE[5]
    return build(cut(samples), HOSTILE[2])


def test_names_that_mean_harm_are_text_everywhere() -> None:
    report = hostile()
    for page in (text.render(report), markdown.render(report), html.render(report)):
        assert all(line.isprintable() for line in page.splitlines())
    seen = Page(html.render(report))
    allowed = {tag for tag, _ in Page(html.render(build(cut(switched()), "x"))).tags}
    assert {tag for tag, _ in seen.tags} <= allowed
    words = "".join(seen.words)
    assert "<script>alert(1)</script>" in words
    assert '"><svg onload=x>' in words
    page = markdown.render(report)
    assert "<script>" not in page.replace("\\<", "")
    assert "http://" not in page
    assert "](" not in page.replace("\\]", "")
    assert whole_tables(page) == whole_tables(markdown.render(hostile(names=["a"] * 8)))


# --------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "a.rec"
    path.write_bytes(written(switched()))
    return path


@pytest.mark.parametrize("form", ["text", "json", "md", "html"])
def test_of_a_recording_in_each_format(
    recorded: Path, tmp_path: Path, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(recorded), "--format", form]) == 0
    out = capfd.readouterr().out
    target = tmp_path / "out"
    assert cli.main(["report", str(recorded), "--format", form, "-o", str(target)]) == 0
    assert capfd.readouterr().out == ""
    if form != "text":  # whose width is the terminal's
        assert target.read_text() == out
    assert "wake-up" in out


def test_of_the_first_seconds_of_a_recording(
    recorded: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(recorded), "--for", "10", "--format", "json"]) == 0
    assert json.loads(capfd.readouterr().out)["seconds"] == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nonexistent/a.rec"], "/nonexistent/a.rec: No such file"),
        (["/"], "Is a directory"),
        (["/dev/null"], "not a recording"),
        (["{}", "--switch", "guard"], "--switch is for a measurement"),
        (["--switch", "no-such"], "no-such"),
        (["--switch", "guard", "--for", "5"], "--switch needs --for 24"),
        (["{}", "-o", "/nonexistent/out"], "No such file"),
        (["{}", "-o", ""], "the name of a file"),
        (["{}", "--format", "pdf"], "'pdf'"),
        (["--for", "0"], "not within"),
    ],
)
def test_what_cannot_be_is_one_line(
    recorded: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    given_ = [str(recorded) if each == "{}" else each for each in arguments]
    assert cli.main(["report", *given_]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_one_sample_is_too_short(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.rec"
    path.write_bytes(written(Synth().samples(1)))
    assert cli.main(["report", str(path)]) == 2
    assert "too short" in capfd.readouterr().err


def test_other_messages_in_a_recording_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from agenttop.stream.framing import encode
    from agenttop.stream.recording import Header

    path = tmp_path / "a.rec"
    path.write_bytes(framed(msgspec.msgpack.encode(Header()), encode(Command("stop"))))
    assert cli.main(["report", str(path)]) == 2
    assert "no sample" in capfd.readouterr().err


NUMBERS = st.one_of(st.integers(-(1 << 63) + 1, (1 << 63) - 1), st.integers(-5, 5))


def _numbers_of(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    out: list[tuple[Any, ...]] = []
    for key, item in items:
        if isinstance(item, (dict, list)):
            out += _numbers_of(item, (*path, key))
        elif type(item) is int:
            out.append((*path, key))
    return out


SAMPLES = budgeted()[:8]
TREE = msgspec.to_builtins(SAMPLES[3], builtin_types=(bytes,))
PLACES = [place for place in _numbers_of(TREE) if place[0] not in ("t_ns", "seq")]


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.sampled_from(PLACES), NUMBERS, min_size=1, max_size=8))
def test_any_counters_give_a_report(changes: dict[tuple[Any, ...], int]) -> None:
    tree = msgspec.msgpack.decode(msgspec.msgpack.encode(TREE))
    for place, number in changes.items():
        at = tree
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = number
    changed = msgspec.convert(tree, Sample)
    made = build(cut([*SAMPLES[:3], changed, *SAMPLES[4:]]), "live")
    for page in (text.render(made), markdown.render(made)):
        assert "placement" in page
    Page(html.render(made))

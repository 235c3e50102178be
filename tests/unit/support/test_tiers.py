"""The suite's own rules: what runs when, what is tried again, what a run says at its end."""

from __future__ import annotations

import pytest

from tests.support.tiers import too_many

pytest_plugins = ["pytester"]

#: Tests that measure; those in ``again`` pass only when tried again.
MEASURING = """
import pytest
tried = set()

@pytest.mark.measures
@pytest.mark.parametrize("number", range({count}))
def test_measuring(number):
    first = number not in tried
    tried.add(number)
    assert not (first and number < {again})

@pytest.mark.measures
@pytest.mark.parametrize("number", range(100))
def test_skipped(number):
    pytest.skip("these do not count")
"""
MARKED = """
import pytest

def test_unit(): pass

@pytest.mark.long
def test_long_unit(): pass

@pytest.mark.live
def test_live(): pass

@pytest.mark.bpf
def test_bpf(): pytest.skip("no BPF at all")

@pytest.mark.policies
def test_policies(): pass

@pytest.mark.alone
def test_alone(): pass

@pytest.mark.bpf
@pytest.mark.policies
def test_both(): pass

@pytest.mark.measures
@pytest.mark.long
def test_measures(): pass
"""


def run(pytester: pytest.Pytester, text: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(text)
    plain = ("-p", "tests.support.tiers", "-p", "pytest_rerunfailures", "-rs", "--strict-markers")
    return pytester.runpytest_inprocess(*plain, *arguments)


@pytest.fixture(autouse=True)
def _on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr("tests.support.tiers.RERUN_DELAY_S", 0)


@pytest.mark.parametrize(
    ("again", "measuring", "judged"),
    [(0, 0, False), (2, 2, False), (3, 3, True), (3, 59, True), (3, 60, False), (6, 100, True)],
)
def test_how_many_reruns_are_too_many(again: int, measuring: int, judged: bool) -> None:
    assert too_many(again, measuring) is judged


def test_a_few_reruns_pass(pytester: pytest.Pytester) -> None:
    result = run(pytester, MEASURING.format(count=20, again=2))
    result.assert_outcomes(passed=20, skipped=100)
    assert "2 rerun" in result.stdout.str()
    assert result.ret == pytest.ExitCode.OK


def test_many_reruns_fail_the_run(pytester: pytest.Pytester) -> None:
    result = run(pytester, MEASURING.format(count=20, again=3))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.outlines[-1].startswith("FAILED: 3 of 20 tests that measure had to be tried")


def test_only_what_measures_is_tried_again(pytester: pytest.Pytester) -> None:
    text = MEASURING.format(count=3, again=1).replace("mark.measures", "mark.bpf")
    result = run(pytester, text)
    result.assert_outcomes(passed=2, failed=1, skipped=100)
    assert "rerun" not in result.stdout.str()


def test_what_fails_twice_fails(pytester: pytest.Pytester) -> None:
    result = run(pytester, MEASURING.format(count=1, again=1).replace("first and ", ""))
    result.assert_outcomes(failed=1, skipped=100)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("not alone and not long", {"unit", "live", "bpf", "policies"}),
        ("not alone and long", {"long_unit"}),
        ("alone and not long", {"alone", "both"}),
        ("alone and long", {"measures"}),
        ("live", {"live", "bpf", "policies", "alone", "both", "measures"}),
    ],
)
def test_each_test_is_in_one_part_of_one_tier(
    chosen: str, names: set[str], pytester: pytest.Pytester
) -> None:
    result = run(pytester, MARKED, "--collect-only", "-q", "-m", chosen)
    found = {line.split("::test_")[1] for line in result.outlines if "::test_" in line}
    assert found == names


def test_the_last_line_tells_what_was_not_shown(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(pytester, MARKED)
    assert result.outlines[-1] == (
        "NOT SHOWN HERE: 1 of 2 tests of BPF were skipped, reasons above"
    )
    assert "no BPF at all" in result.stdout.str()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = run(pytester, MARKED)
    assert result.outlines[-1].startswith(
        "NOT SHOWN HERE: 2 of 2 tests of BPF and 2 of 2 tests of policies"
    )
    assert "policies need root" in result.stdout.str()


def test_without_such_skips_the_last_line_is_pytests(pytester: pytest.Pytester) -> None:
    result = run(pytester, MARKED, "-m", "not bpf")
    assert "6 passed" in result.outlines[-1]

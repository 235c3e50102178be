"""The fuzzed tests of the first tier with many more inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.config import test_yaml_document as yamlfile
from tests.unit.report import test_report as report
from tests.unit.stream import test_recording as recording


def often(
    test: Callable[..., None], examples: int, *strategies: st.SearchStrategy[Any]
) -> Callable[..., None]:
    """The same test with so many inputs of these kinds."""
    inner = test.hypothesis.inner_test  # type: ignore[attr-defined]
    many = settings(max_examples=examples, deadline=None)(given(*strategies)(inner))
    return pytest.mark.long(many)


test_damage_anywhere_is_told_or_harmless = often(
    recording.test_damage_anywhere_is_told_or_harmless,
    2000,
    st.integers(0, len(recording.GOOD) - 1),
    st.binary(min_size=1, max_size=8),
)
test_values_that_cannot_be_are_told_or_harmless = often(
    recording.test_values_that_cannot_be_are_told_or_harmless,
    2000,
    st.lists(
        st.tuples(st.sampled_from(recording.PLACES), recording._numbers()), min_size=1, max_size=6
    ),
)
test_any_counters_give_a_report = often(
    report.test_any_counters_give_a_report,
    300,
    st.dictionaries(st.sampled_from(report.PLACES), report.NUMBERS, min_size=1, max_size=8),
)
test_any_other_scalar_is_a_value_or_a_line = often(
    yamlfile.test_any_other_scalar_is_a_value_or_a_line, 3000, yamlfile._TEXTS
)

"""Which tests run when, which are tried again, and what a run says at its end.

Markers, from what needs least of the machine to what needs most:

====================  ==========================================================================
none                  needs no live kernel: runs beside others, in any order (``pytest -n``)
``live``              reads or changes the machine as it runs
``bpf``               loads BPF programs; implies ``live``
``policies``          writes kernel settings as root; implies ``live``; skipped without root
``alone``             needs the machine for itself; implies ``live``; what is both ``bpf`` and
                      ``policies`` does
``measures``          holds a live measurement against a clock; implies ``alone``; the only tests
                      that are tried again, once, when they fail
``long``              beside any of these: not needed each time, in ``make test-long``
====================  ==========================================================================

What is ``live`` and not ``alone`` runs beside tests that need no live kernel, but in two groups
of which each keeps its order: ``tracing`` what loads BPF programs, which then are loaded once a
module and see no other test's threads, and ``settings`` the rest, which shares the policies' lock.

A run fails when more than 5 % of the tests that measure, and at least three, passed only when
tried again: a fault that shows every second time is not hidden by the rerun.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

#: Share of the measuring tests that may need their rerun, and a number that is never too many.
RERUN_SHARE = 0.05
RERUN_FREE = 2
#: Whatever disturbed a measurement may have passed by then, s.
RERUN_DELAY_S = 2

_IMPLY_LIVE = ("bpf", "policies", "measures")
_ALONE = ({"alone"}, {"measures"}, {"bpf", "policies"})
#: What a reader must know was not shown, by marker.
_SAID_IF_SKIPPED = {"bpf": "BPF", "policies": "policies"}
_MARKERS = (
    "live: reads or changes the machine as it runs",
    "alone: needs the machine for itself (live)",
    "bpf: loads BPF programs (live; skipped with the reason where root, BPF or BCC are missing)",
    "policies: writes kernel settings (live; skipped without root)",
    "measures: holds a live measurement against a clock (alone; tried again once)",
    "long: not needed each time (make test-long)",
)


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Ending(), "agenttop-ending")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Complete the markers before ``-m`` chooses by them."""
    for item in items:
        names = {marker.name for marker in item.iter_markers()}
        if any(needed <= names for needed in _ALONE):
            item.add_marker(pytest.mark.live)
            item.add_marker(pytest.mark.alone)
        elif names & {"live", *_IMPLY_LIVE}:
            item.add_marker(pytest.mark.live)
            group = "tracing" if "bpf" in names else "settings"
            item.add_marker(pytest.mark.xdist_group(group))
        if item.get_closest_marker("policies") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="policies need root"))
        if item.get_closest_marker("measures"):
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=RERUN_DELAY_S))


def too_many(again: int, measuring: int) -> bool:
    """Whether more tests needed their rerun than chance on a shared machine explains."""
    return again > max(RERUN_FREE, RERUN_SHARE * measuring)


class Ending:
    """Counts a run's reruns and skips; judges and names them after pytest's closing line."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {name: set() for name in _IMPLY_LIVE}
        self._skipped: dict[str, set[str]] = {name: set() for name in _IMPLY_LIVE}
        self._again: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name in _IMPLY_LIVE:
            if name in report.keywords:
                self._seen[name].add(report.nodeid)
                if report.skipped and not hasattr(report, "wasxfail"):
                    self._skipped[name].add(report.nodeid)
        if report.outcome == "rerun":  # type: ignore[comparison-overlap]
            self._again.add(report.nodeid)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        result = yield
        lines = []
        measuring = len(self._seen["measures"] - self._skipped["measures"])
        if too_many(len(self._again), measuring):
            lines.append(
                f"FAILED: {len(self._again)} of {measuring} tests that measure had to be tried"
                f" again: more than {RERUN_SHARE:.0%} is a fault, not chance"
            )
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        skipped = [
            f"{len(self._skipped[name])} of {len(self._seen[name])} tests of {what}"
            for name, what in _SAID_IF_SKIPPED.items()
            if self._skipped[name]
        ]
        if skipped:
            lines.append(f"NOT SHOWN HERE: {' and '.join(skipped)} were skipped, reasons above")
        terminal = session.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            for line in lines:
                terminal.write_line(line, red=line.startswith("FAILED"), bold=True)
        return result

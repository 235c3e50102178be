"""A policy that meets what nobody expected in /sys or /proc fails alone, with its reason."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agenttop.errors import UserError
from agenttop.model.sample import PolicyStatus
from agenttop.policies.base import Agent, Targets, Thread
from agenttop.policies.builtin.home import Home
from agenttop.policies.builtin.softirq import Softirq
from agenttop.policies.knobs import KNOBS
from agenttop.policies.manager import PolicyManager
from tests.live.policies.test_manager import run, targets, texts
from tests.support.policy_rig import Victim, needs_root, needs_two_cpus, victims

ERRORS = [
    (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "UnicodeDecodeError"),
    (ValueError("invalid literal for int(): '\x1b[2J'"), "ValueError: invalid literal"),
    (RecursionError("deep"), "RecursionError: deep"),
]


def raising(error: Exception) -> Any:
    def fail(*_args: object) -> None:
        raise error

    return fail


def status(manager: PolicyManager, name: str) -> PolicyStatus:
    return next(s for s in manager.status() if s.name == name)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[PolicyManager]:
    manager = PolicyManager(tmp_path / "state")
    yield manager
    manager.close()


@pytest.fixture
def victim() -> Iterator[Victim]:
    with victims() as victim:
        yield victim


@pytest.mark.parametrize(("error", "text"), ERRORS)
def test_a_probe_that_fails_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    monkeypatch.setattr(Softirq, "probe", raising(error))
    manager = PolicyManager(tmp_path / "state")
    softirq = status(manager, "softirq")
    assert softirq.state == "n/a"
    assert text in softirq.detail
    assert softirq.detail.isprintable()
    with pytest.raises(UserError, match="softirq: cannot be tried here"):
        manager.plan("softirq", Targets(1))


@pytest.mark.parametrize(("error", "text"), ERRORS)
def test_a_plan_that_fails_is_the_users_error(
    manager: PolicyManager, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    monkeypatch.setattr(Home, "probe", lambda self: None)
    monkeypatch.setattr(Home, "wanted", raising(error))
    with pytest.raises(UserError, match="home: cannot be planned") as caught:
        manager.plan("home", Targets(1))
    assert text in str(caught.value)


@pytest.mark.parametrize(("error", "text"), ERRORS)
def test_a_knob_that_cannot_be_read_is_refused(
    manager: PolicyManager, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    monkeypatch.setattr(Home, "probe", lambda self: None)
    monkeypatch.setattr(Home, "wanted", lambda *_: {("affinity", "1/1/1"): "0"})
    monkeypatch.setattr(KNOBS["affinity"], "read", raising(error))
    assert manager.plan("home", Targets(1, (Agent(1, "one", (1,), (Thread(1, 1, 0),)),))) == []


@needs_root
@needs_two_cpus
@pytest.mark.live
class TestFollowing:
    @pytest.mark.parametrize(("error", "text"), ERRORS)
    def test_what_is_held_stays_and_the_others_go_on(
        self,
        manager: PolicyManager,
        victim: Victim,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
        text: str,
    ) -> None:
        manager.set("home", True, targets(victim))
        manager.set("vfs", True, targets(victim))
        held = len(status(manager, "home").changes)
        assert held > 0
        with monkeypatch.context() as broken:
            broken.setattr(Home, "wanted", raising(error))
            events = run(manager, victim, 2.5)
            assert texts(events).count("home: cannot be planned") == 1
            home = status(manager, "home")
            assert home.state == "error"
            assert text in home.detail
            assert len(home.changes) == held
            assert status(manager, "vfs").state == "on"
        run(manager, victim, 1.5)
        assert status(manager, "home").state == "on"

    def test_switching_on_fails_and_leaves_nothing(
        self, manager: PolicyManager, victim: Victim, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Home, "wanted", raising(UnicodeError("\udcff")))
        (event,) = manager.set("home", True, targets(victim))
        assert event.kind == "error"
        assert event.text.isprintable()
        assert manager.guardian is None
        assert status(manager, "home").state == "error"

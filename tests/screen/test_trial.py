"""Before and after on the policy panel, and trials started from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agenttop.model.sample import Command
from agenttop.screens.popup import Popup
from tests.support.screen_rig import Rig, rig


def row_of(made: Rig, policy: str) -> str:
    """The panel's row of a policy."""
    panel = made.main.policies
    rows = [panel.row_text(y) for y in range(panel.size.height)]
    return next(row for row in rows if f" {policy} " in row)


def switched(made: Rig) -> list[tuple[str, bool]]:
    return [(c.name, c.on) for c in made.source.commands if c.kind == "policy"]


def state(made: Rig, name: str) -> str:
    return next(p.state for p in made.synth.policies if p.name == name)


async def finish(made: Rig) -> None:
    for _ in range(200):
        if made.view.trials.running is None:
            return
        await made.tick()
    raise AssertionError("the trial did not end")


# --------------------------------------------------------------------------- after a toggle


async def test_a_toggle_shows_its_effect_when_there_are_enough_steps() -> None:
    async with rig((120, 35), samples=12) as made:
        assert "×" not in row_of(made, "guard")
        await made.press("g")
        await made.tick(2)
        assert "not enough" in row_of(made, "guard")
        await made.tick(10)
        row = row_of(made, "guard")
        assert "slow p" in row
        assert "×0." in row
        assert "±" in row
        # The other policy was not switched: nothing is claimed of it.
        assert "×" not in row_of(made, "home")


async def test_the_panel_has_all_ratios_of_the_selected_policy() -> None:
    async with rig((120, 35), samples=12) as made:
        await made.press("g")
        await made.tick(14)
        shown = [line.split("│")[-2].split() for line in made.lines() if "step ×" in line]
        assert [words[0] for words in shown] == ["p50", "p99", "p99.9"]
        assert all(words[1] == "slow" and words[4] == "step" for words in shown)
        made.view.policy = 1
        await made.tick()
        assert "step ×" not in made.text()


async def test_the_popup_has_all_figures_and_what_it_cost() -> None:
    async with rig((120, 60), samples=12) as made:
        await made.press("g")
        await made.tick(14)
        await made.press("l")
        text = made.text()
        assert "before and after it was switched on" in text
        for figure in ("slow p50", "slow p99", "slow p99.9", "step p50", "step p99", "step p99.9"):
            assert figure in text
        assert "What it cost" in text
        assert "cpu0 40% → 0%" in text
        assert "N/A, no energy counters here" in text
        assert isinstance(made.app.screen, Popup)


async def test_an_agent_with_few_steps_says_how_many_are_missing() -> None:
    async with rig((120, 60), samples=12) as made:
        voice = next(i for i, a in enumerate(made.view.agents) if a.name == "voice")
        made.view.select(voice)
        await made.press("g")
        await made.tick(9)
        await made.press("l")
        # 100 steps a second: enough for p99 (500), not for p99.9 (5,000).
        line = next(line for line in made.lines() if "slow p99.9" in line)
        assert "not enough steps yet" in line


async def test_the_export_has_every_agents_effects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with rig((120, 35), samples=10) as made:
        await made.press("g")
        await made.tick(10)
        await made.press("x")
        await made.pilot.pause()
    (file,) = tmp_path.glob("*.json")
    policies = {p["name"]: p for p in json.loads(file.read_text())["policies"]}
    assert policies["home"]["effects"] == []
    effects = policies["guard"]["effects"]
    assert len(effects) == 5
    change = effects[0]["measures"]["slowpath"]["p50"]
    assert change["low"] < change["ratio"] < change["high"] < 1


# --------------------------------------------------------------------------- trials


async def test_a_trial_runs_to_its_end_and_its_result_stays() -> None:
    async with rig((120, 70), samples=4) as made:
        await made.press("e")
        await made.tick(3)
        assert "trial" in row_of(made, "guard")
        assert "left" in row_of(made, "guard")
        await finish(made)
        await made.tick(2)
        assert state(made, "guard") == "off"
        assert {on for _, on in switched(made)} == {True, False}
        assert "slow p" in row_of(made, "guard")
        await made.press("l")
        text = made.text()
        assert "trial, 8 rounds" in text
        assert "better" in text
        assert "nothing differs but chance" in text
        await made.press("escape")
        await made.tick(20)
        assert "slow p" in row_of(made, "guard")


@pytest.mark.parametrize("key", ["e", "escape"])
async def test_a_trial_is_cancelled_and_the_policy_is_as_it_was(key: str) -> None:
    async with rig((120, 35), samples=4) as made:
        await made.press("g")
        await made.tick(2)
        await made.press("e")
        await made.tick(7)
        assert made.view.trials.running is not None
        await made.press(key)
        await made.tick(2)
        assert made.view.trials.running is None
        assert state(made, "guard") == "on"
        assert switched(made)[-1] == ("guard", True)


async def test_escape_clears_the_filter_when_no_trial_runs() -> None:
    async with rig((120, 35)) as made:
        made.view.filter = "coder"
        await made.press("escape")
        assert made.view.filter == ""


async def test_no_policy_is_switched_by_its_key_while_a_trial_runs() -> None:
    async with rig((120, 35), samples=4) as made:
        await made.press("e")
        await made.tick(1)
        before = switched(made)
        await made.press("h")
        assert switched(made) == before
        assert "while a trial runs" in made.text()


async def test_readonly_and_unavailable_policies_have_no_trial() -> None:
    async with rig((120, 35), readonly=True) as made:
        await made.press("e")
        await made.tick(2)
        assert made.view.trials.running is None
        assert "readonly" in made.lines()[-1]
    async with rig((120, 35)) as made:
        made.view.policy = 2
        await made.press("e")
        await made.tick(2)
        assert made.view.trials.running is None
        assert "no cpufreq driver" in made.lines()[-1]
        assert not [c for c in made.source.commands if isinstance(c, Command) and c.on]


@pytest.mark.long
async def test_a_toggle_after_a_trial_is_what_the_row_tells_next() -> None:
    async with rig((120, 35), samples=4) as made:
        await made.press("e")
        await finish(made)
        await made.tick(12)
        await made.press("g")
        await made.tick(2)
        assert "not enough" in row_of(made, "guard")

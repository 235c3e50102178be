"""B on the screen: a bundle's policies go on or off together."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenttop.screens.popup import Popup
from tests.support.screen_rig import Rig, rig


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's own bundles: one that sorts behind the built-in ones."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "agenttop/policies"
    folder.mkdir(parents=True)
    (folder / "zz-both.yaml").write_text(
        'title: "both \\e[2J[red]"\npolicies: {guard: {}, home: {}, vfs: {}}\n'
    )
    return folder


def asked(made: Rig) -> list[tuple[str, bool]]:
    return [(c.name, c.on) for c in made.source.commands if c.kind == "bundle"]


async def test_the_list_and_a_choice() -> None:
    async with rig((120, 35)) as made:
        await made.press("B")
        assert isinstance(made.app.screen, Popup)
        text = made.text()
        for name in ("agent-window", "all-safe", "manual-tuning", "quiet-home", "zz-both"):
            assert name in text
        # Not among the policies of this machine.
        assert "guard home (vfs)" in text
        assert "\x1b" not in text
        await made.press("end", "enter")
        assert asked(made) == [("zz-both", True)]
        assert "zz-both: switching on" in made.text()


async def test_off_when_all_that_can_be_had_is_on() -> None:
    async with rig((120, 35)) as made:
        await made.press("g", "h")
        await made.tick(2)
        await made.press("B")
        row = next(line for line in made.lines() if "zz-both" in line)
        assert "●" in row
        await made.press("end", "enter")
        assert asked(made) == [("zz-both", False)]


@pytest.mark.parametrize("key", ["escape", "B", "q"])
async def test_closing_it_switches_nothing(key: str) -> None:
    async with rig((120, 35)) as made:
        await made.press("B", key)
        assert not isinstance(made.app.screen, Popup)
        assert asked(made) == []


async def test_readonly_can_look_but_not_switch() -> None:
    async with rig((120, 35), readonly=True) as made:
        await made.press("B", "end", "enter")
        assert asked(made) == []
        assert "not switched, agenttop runs with --readonly" in made.text()


async def test_no_bundle_is_switched_while_a_trial_runs() -> None:
    async with rig((120, 35), samples=4) as made:
        await made.press("e")
        await made.tick(2)
        trial = made.view.trials.running
        assert trial is not None
        await made.press("B", "end", "enter")
        assert asked(made) == []
        assert "zz-both: not switched while a trial runs" in made.text()
        assert made.view.trials.running is trial


@pytest.mark.long
async def test_after_a_bundle_the_rows_tell_of_it_and_not_of_a_trial() -> None:
    async with rig((120, 35), samples=4) as made:
        await made.press("e")
        for _ in range(200):
            if made.view.trials.running is None:
                break
            await made.tick()
        assert made.view.trials.newest == {"guard"}
        await made.press("B", "end", "enter")
        assert asked(made) == [("zz-both", True)]
        assert made.view.trials.newest == set()


async def test_a_file_that_is_wrong_is_one_line(own: Path) -> None:
    (own / "bad.yaml").write_text("title: t\npolicies:\n  realtime: {}\n")
    async with rig((240, 35)) as made:
        await made.press("B")
        assert not isinstance(made.app.screen, Popup)
        assert "bad.yaml:3" in made.text()

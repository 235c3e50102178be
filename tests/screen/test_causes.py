"""C on the screen: causes are switched, and those of the selected agent shown."""

from __future__ import annotations

from collections.abc import Callable

from agenttop.model.sample import CauseState, Sample
from agenttop.model.vocabulary import CAUSES
from agenttop.screens.popup import Popup
from tests.live.bpf.test_causes_engine import labelled, with_causes
from tests.support.screen_rig import Rig, rig


def growing(made: Rig, changed: Callable[[Sample, int], Sample]) -> None:
    """Each further sample has 50 more steps of what ``changed`` puts into it."""
    sample, steps = made.synth.sample, iter(range(0, 100_000, 50))
    made.synth.sample = lambda *a, **k: changed(sample(*a, **k), next(steps))  # type: ignore[method-assign]


async def select_first(made: Rig) -> None:
    """The agent that the samples are changed for."""
    first = made.view.snapshot.agents[0].id if made.view.snapshot else None
    for _ in range(10):
        if made.view.selected == first:
            break
        await made.press("down")


async def test_causes_of_the_agent_and_a_choice() -> None:
    async with rig((120, 40)) as made:
        growing(made, with_causes)
        await made.tick(3)
        await made.press("C")
        assert isinstance(made.app.screen, Popup)
        text = made.text()
        assert "minor_fault" in text
        assert "switched off" in text
        assert "rest of compute" in text
        assert "○ lite" in text
        await made.press("down", "enter")
        assert [c.name for c in made.source.commands if c.kind == "causes"] == ["lite"]
        assert "causes: lite" in made.text()


async def test_labels_stand_below_their_cause_and_in_the_chain() -> None:
    async with rig((120, 40)) as made:
        growing(made, labelled)
        await made.tick(3)
        await select_first(made)
        await made.press("1", "down")
        assert "interrupt (local_timer, cpu 0)" in made.text()
        await made.press("C")
        assert "each  local_timer, cpu 0" in made.text()


async def test_without_chains_it_says_so() -> None:
    async with rig((120, 40)) as made:
        await made.press("C")
        assert not isinstance(made.app.screen, Popup)
        assert "N/A without step chains" in made.text()


async def test_the_chain_names_what_compute_was_spent_on() -> None:
    async with rig((120, 40)) as made:
        growing(made, with_causes)
        await made.tick(3)
        await select_first(made)
        await made.press("1", *["down"] * 10)
        assert "minor_fault" in made.text()
        assert "rest" in made.text()


async def test_all_on_is_full() -> None:
    async with rig((120, 40)) as made:
        sample = made.synth.sample

        def full(*args: object, **more: object):  # type: ignore[no-untyped-def]
            made_sample = sample(*args, **more)  # type: ignore[arg-type]
            made_sample.causes = [CauseState(c.name, c.stage, c.level, "on") for c in CAUSES]
            return made_sample

        made.synth.sample = full  # type: ignore[method-assign]
        await made.tick(2)
        await made.press("C")
        assert "● full" in made.text()


async def test_what_follows_the_choices_can_be_scrolled_to() -> None:
    async with rig((100, 14)) as made:
        growing(made, with_causes)
        await made.tick(3)
        await made.press("C")
        assert "○ off" in made.text()
        assert "rest of compute" not in made.text()
        await made.press("pagedown", *["down"] * 60)
        assert "rest of compute" in made.text()
        assert "○ off" not in made.text()
        await made.press(*["up"] * 60)
        assert "○ off" in made.text()
        await made.press("down", "enter")
        assert [c.name for c in made.source.commands if c.kind == "causes"] == ["lite"]

"""The agents table grouped by the names of steps."""

from __future__ import annotations

import numpy as np

from agenttop.model.sample import Histogram, NamedCounters, Sample
from tests.support.screen_rig import rig
from tests.support.synth import Synth


class Naming(Synth):
    """A Synth whose first agent gives its steps names."""

    steps = 0

    def sample(self) -> Sample:
        sample = super().sample()
        self.steps += 100
        sample.agents[0].named = [
            NamedCounters(1, "tool:git", self.steps, self.steps * 1000, self.steps * 100,
                          {"step": _one(300, self.steps), "slowpath": _one(200, self.steps)}),
            NamedCounters(2, "llm\x1b[31m", self.steps // 2, self.steps * 1000, self.steps * 100,
                          {"step": _one(400, self.steps // 2)}),
        ]  # fmt: skip
        return sample


def _one(bucket: int, count: int) -> Histogram:
    return Histogram(np.uint16(bucket).tobytes(), np.uint64(count).tobytes())


async def test_a_key_shows_the_names_below_their_agent() -> None:
    async with rig((140, 40), synth=Naming()) as made:
        assert "tool:git" not in made.text()
        await made.press("s")
        lines = made.lines()
        owner = made.synth.agents[0].profile.name
        row = next(i for i, line in enumerate(lines) if "tool:git" in line)
        assert owner in lines[row - 1]
        assert "llm" in lines[row + 1]
        assert "\x1b" not in made.text()
        # Its own rate; what is the agent's alone is not repeated.
        assert "100" in lines[row].split()
        assert str(made.synth.agents[0].profile.pid) not in lines[row]
        await made.press("s")
        assert "tool:git" not in made.text()


async def test_moving_goes_from_agent_to_agent() -> None:
    async with rig((140, 40), synth=Naming(), samples=8) as made:
        await made.press("s", "home")
        seen = []
        for _ in range(len(made.view.agents)):
            seen.append(made.view.selected)
            cursor = next(line for line in made.lines() if line.startswith("│▸"))
            assert made.view.agent is not None
            assert made.view.agent.name in cursor
            await made.press("down")
        assert seen == [agent.id for agent in made.view.agents]


async def test_a_click_on_a_name_picks_its_agent() -> None:
    async with rig((140, 40), synth=Naming()) as made:
        await made.press("s", "end")
        owner = made.synth.agents[0].counters.id
        row = next(i for i, line in enumerate(made.lines()) if "tool:git" in line)
        await made.pilot.click(offset=(8, row))
        await made.pilot.pause()
        assert made.view.selected == owner


async def test_names_on_a_small_terminal() -> None:
    async with rig((80, 24), synth=Naming()) as made:
        await made.press("s", "end", "home", "pagedown", "end")
        for size in ((40, 8), (200, 60), (60, 12)):
            await made.pilot.resize_terminal(*size)
            await made.tick()
            strips = made.app.screen._compositor.render_strips()
            assert {strip.cell_length for strip in strips} == {size[0]}


async def test_without_names_the_key_says_what_gives_them() -> None:
    async with rig((140, 40)) as made:
        await made.press("s")
        assert "no step has a name" in made.text()
        assert not made.view.by_name

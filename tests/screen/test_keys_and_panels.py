"""The live screen: what it shows at each size, and what each key does."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest
from textual.binding import Binding
from textual.geometry import Size

from agenttop.config import output_file
from agenttop.model.sample import Command, Failure
from agenttop.screens.frame_diff import FrameSaver
from agenttop.screens.keys import BINDINGS
from agenttop.screens.popup import Popup
from agenttop.screens.terminal_driver import ThriftyFile
from tests.support.screen_rig import Rig, rig
from tests.support.synth import PROFILES, Synth


def names(made: Rig) -> list[str]:
    return [agent.name for agent in made.view.agents]


# --------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "size",
    [
        (200, 50),
        (80, 24),
        (40, 8),
        *(pytest.param(one, marks=pytest.mark.long) for one in ((120, 35), (60, 16))),
    ],
)
async def test_every_line_has_the_width_of_the_terminal(size: tuple[int, int]) -> None:
    async with rig(size) as made:
        strips = made.app.screen._compositor.render_strips()
        assert len(strips) == size[1]
        assert {strip.cell_length for strip in strips} == {size[0]}
        assert "agenttop" in made.lines()[0]
        assert "coder" in made.text()


async def test_at_200x50_everything_is_there() -> None:
    async with rig((200, 50)) as made:
        text = made.text()
        for part in ("Agents 5", "Chain", "Slowest steps", "CPUs 2", "Slowpath", "by agent",
                     "Policies", "irq+softirq", "lives here", "SOURCE"):  # fmt: skip
            assert part in text, part


async def test_at_80x24_one_panel_at_a_time() -> None:
    async with rig((80, 24)) as made:
        titles = ["Chain", "Slowest steps", "CPUs 2", "Slowpath", "Policies"]
        for key, title in zip("12345", titles, strict=True):
            await made.press(key)
            text = made.text()
            assert "Agents 5" in text
            assert [t for t in titles if f" {t} " in text or f" {t}\n" in text] == [title]


async def test_tab_walks_the_panels() -> None:
    async with rig((80, 24)) as made:
        seen = []
        for _ in range(6):
            await made.press("tab")
            seen.append(made.main._active)
        assert seen == ["chain", "slowest", "cpus", "trend", "policies", "agents"]


@pytest.mark.parametrize(
    "size",
    [
        (20, 5),
        (1, 1),
        *(pytest.param(one, marks=pytest.mark.long) for one in ((39, 30), (10, 1), (3, 2))),
    ],
)
async def test_too_small_a_terminal_is_told_in_one_line(size: tuple[int, int]) -> None:
    async with rig(size) as made:
        lines = made.lines()
        assert all(not line.strip() for line in lines[1:])
        if size[0] >= 20:
            assert "too small" in lines[0]
            assert "40x8" in lines[0]


async def test_any_resize_is_survived() -> None:
    async with rig((120, 35)) as made:
        for size in [
            (20, 5),
            (200, 50),
            (1, 1),
            (80, 24),
            (41, 9),
            (110, 29),
            (300, 100),
            (120, 35),
        ]:
            await made.pilot.resize_terminal(*size)
            await made.tick()
            strips = made.app.screen._compositor.render_strips()
            assert {strip.cell_length for strip in strips} == {size[0]}
            assert made.app.size == Size(*size)
        assert "Chain" in made.text()


async def test_a_popup_survives_a_small_terminal() -> None:
    async with rig((80, 24)) as made:
        await made.press("question_mark")
        await made.pilot.resize_terminal(20, 5)
        await made.pilot.resize_terminal(80, 24)
        assert "Keys and words" in made.text()


# --------------------------------------------------------------------------- moving


async def test_moving_selects_and_the_panels_follow() -> None:
    async with rig() as made:
        first, second = names(made)[:2]
        await made.press("home")
        assert f"Chain {first}" in made.text()
        await made.press("j")
        assert f"Chain {second}" in made.text()
        await made.press("up")
        assert f"Chain {first}" in made.text()
        await made.press("end")
        assert made.view.cursor == 4


async def test_the_selection_stays_with_its_agent() -> None:
    async with rig() as made:
        await made.press("home", "down")
        picked = made.view.selected
        await made.press("I")
        assert made.view.selected == picked
        assert made.view.agents[made.view.cursor].id == picked


async def test_sixty_agents_scroll() -> None:
    async with rig((80, 24), synth=Synth(agents=60)) as made:
        assert "Agents 60" in made.text()
        await made.press("end")
        assert names(made)[-1] in made.text()
        assert "60/60" in made.text()
        await made.press("pageup", "pageup")
        assert made.view.cursor < 58
        await made.press("home")
        assert names(made)[0] in made.text()


async def test_an_agent_that_vanishes_leaves_the_selection_with_a_neighbour() -> None:
    async with rig() as made:
        await made.press("home")
        gone = made.view.selected
        assert gone is not None
        made.synth.remove(gone)
        await made.tick(3)
        assert "ended" in made.text()
        for _ in range(40):
            made.synth.sample()  # its steps leave the window
        made.synth.request_full()
        await made.tick(40)
        assert gone not in [agent.id for agent in made.view.agents]
        assert made.view.selected in [agent.id for agent in made.view.agents]


async def test_left_and_right_tell_what_a_column_means() -> None:
    async with rig((200, 50)) as made:
        assert "slowpath p99: what the kernel adds" in made.text()
        await made.press("right")
        assert made.view.column == "slow_p999"
        assert "slowpath p99.9:" in made.text()


# --------------------------------------------------------------------------- finding and sorting


async def test_filter_and_escape() -> None:
    async with rig() as made:
        await made.press("backslash", *"tool")
        assert names(made) == ["toolcaller"]
        await made.press("enter")
        assert "1 of 5" in made.text()
        await made.press("escape")
        assert len(names(made)) == 5


async def test_a_filter_that_nothing_matches_says_so() -> None:
    async with rig() as made:
        await made.press("f4", *"nothing", "enter")
        assert "No agent matches 'nothing'" in made.text()
        await made.tick()
        await made.press("down", "enter", "n", "c", "escape")
        assert len(names(made)) == 5


async def test_search_goes_to_the_agent_while_typing() -> None:
    async with rig() as made:
        await made.press("slash", *"voi")
        agent = made.view.agent
        assert agent is not None
        assert agent.name == "voice"
        await made.press("q", "backspace", "escape")
        assert len(names(made)) == 5


async def test_an_empty_search_goes_to_the_next_match() -> None:
    async with rig(synth=Synth(agents=10)) as made:
        found = set()
        await made.press("home", "slash", *"coder", "enter")
        for _ in range(3):
            agent = made.view.agent
            assert agent is not None
            found.add(agent.name)
            await made.press("slash", "enter")
        assert found == {"coder", "coder-2"}


async def test_keys_typed_into_a_prompt_are_text() -> None:
    async with rig() as made:
        await made.press("slash", "q", "g", "space", "question_mark")
        assert made.app.is_running
        assert not made.source.commands
        assert not made.view.paused
        assert not isinstance(made.app.screen, Popup)


async def test_sorting_by_keys_menu_and_inversion() -> None:
    async with rig((200, 50)) as made:
        assert made.view.sort == "slow_p99"
        by_p99 = names(made)
        await made.press("I")
        assert names(made) == by_p99[::-1]
        await made.press("I", "less_than_sign")
        assert made.view.sort == "slow_p50"
        await made.press("greater_than_sign", "greater_than_sign")
        assert made.view.sort == "slow_p999"
        await made.press("f6")
        assert "Sort by" in made.text()
        await made.press("home", "enter")
        assert made.view.sort == "name"
        assert names(made) == sorted(by_p99)


async def test_a_click_on_a_head_sorts_and_one_on_a_row_selects() -> None:
    async with rig((200, 50)) as made:
        head = made.main.agents.row_text(1)
        await made.pilot.click("#agents", offset=(head.index("STEPS/S") + 2, 1))
        assert made.view.sort == "steps"
        assert names(made)[0] == "retriever"
        await made.pilot.click("#agents", offset=(10, 4))
        assert made.view.cursor == 2


async def test_the_sort_option() -> None:
    async with rig(sort="-name") as made:
        assert names(made) == sorted(names(made), reverse=True)


# --------------------------------------------------------------------------- time


async def test_pause_freezes_the_view_while_the_reader_goes_on() -> None:
    async with rig() as made:
        await made.press("space")
        before = made.lines()
        assert "paused" in before[0]
        shown = made.view.snapshot
        await made.tick(3)
        assert made.view.snapshot is shown
        assert made.lines()[2:] == before[2:]
        latest = made.store.snapshot()
        assert latest is not None
        assert shown is not None
        assert latest.t_ns == shown.t_ns + 3_000_000_000
        await made.press("Z")
        assert made.view.snapshot is not None
        assert made.view.snapshot.t_ns == latest.t_ns


async def test_an_old_sample_is_told_in_words() -> None:
    async with rig() as made:
        assert "STALE" not in made.text()
        made.age_ns = 4_000_000_000
        made.app._grow_older()
        await made.pilot.pause()
        assert "4.0s STALE" in made.text()


async def test_drops_are_told_in_words() -> None:
    synth = Synth()
    async with rig(synth=synth) as made:
        synth.trust.drops["ring_full"] = 40
        await made.tick()
        assert "LOST" in made.lines()[1]
        assert "ring_full" in made.lines()[1]


async def test_plus_and_minus_ask_the_engine_for_another_delay() -> None:
    async with rig() as made:
        await made.press("plus", "minus", "minus")
        assert [c.seconds for c in made.source.commands] == [2.0, 1.0, 0.5]
        assert {c.kind for c in made.source.commands} == {"delay"}


async def test_figures_since_the_last_toggle() -> None:
    async with rig() as made:
        await made.press("L")
        assert "no policy has been switched" in made.text()
        await made.press("g")
        await made.tick(3)
        await made.press("L")
        assert "since toggle" in made.lines()[0]
        assert made.view.snapshot is not None
        assert made.view.snapshot.interval_ns < 4_000_000_000


# --------------------------------------------------------------------------- policies


async def test_a_policys_key_sends_a_command_and_the_toggle_is_marked() -> None:
    async with rig((200, 50), samples=30) as made:
        await made.press("g")
        assert made.source.commands == [Command("policy", name="guard", on=True)]
        await made.tick(2)
        text = made.text()
        assert "● on" in text
        assert "┊" in text
        assert "guard on" in text
        await made.press("g")
        assert made.source.commands[-1] == Command("policy", name="guard", on=False)


async def test_a_policy_may_have_the_h_key_and_help_keeps_the_others() -> None:
    async with rig() as made:
        await made.press("h")
        assert made.source.commands == [Command("policy", name="home", on=True)]
        await made.press("question_mark")
        assert isinstance(made.app.screen, Popup)


async def test_h_is_help_when_no_policy_has_it() -> None:
    synth = Synth()
    synth.policies = [replace_key(p, "o") if p.key == "h" else p for p in synth.policies]
    async with rig(synth=synth) as made:
        await made.press("h")
        assert isinstance(made.app.screen, Popup)


def replace_key(policy: object, key: str):  # type: ignore[no-untyped-def]
    return msgspec.structs.replace(policy, key=key)


async def test_a_sample_that_comes_while_the_screen_is_taken_down_is_no_error() -> None:
    async with rig() as made:
        shot = made.view.snapshot
        assert shot is not None
        await made.main.remove_children()
        made.main._plan = None
        made.main.show(shot)


async def test_readonly_switches_nothing_and_says_so() -> None:
    async with rig(readonly=True) as made:
        await made.press("g")
        assert made.source.commands == []
        assert "--readonly" in made.text()


async def test_policies_that_another_agenttop_holds() -> None:
    synth = Synth()
    async with rig(synth=synth) as made:
        assert "held by" not in made.text()
        synth.held_by = 4711
        await made.tick()
        (line,) = (line for line in made.lines() if "Policies " in line)
        assert "held by pid 4711" in line
        synth.held_by = None
        await made.tick()
        assert "held by" not in made.text()
    async with rig(readonly=True, synth=(synth := Synth())) as made:
        synth.held_by = 0
        await made.tick()
        assert "readonly, held by another" in made.text()


async def test_a_policy_that_cannot_be_had_says_why() -> None:
    async with rig() as made:
        await made.press("f")
        assert made.source.commands == []
        assert "no cpufreq driver" in made.lines()[-1]


async def test_the_plan_of_the_selected_policy() -> None:
    async with rig((120, 40)) as made:
        await made.press("g")
        await made.tick(2)
        await made.press("l")
        text = made.text()
        assert "Policy guard" in text
        assert "pm_qos_resume_latency_us: 0 -> n/a" in text
        await made.press("l")
        assert not isinstance(made.app.screen, Popup)


async def test_what_a_policy_would_change_is_told_before() -> None:
    synth = Synth()
    synth.policies[0].plan = ["/sys/devices/system/cpu/cpu0: 0 -> n/a"]
    async with rig(synth=synth) as made:
        await made.press("l")
        assert "Would change" in made.text()
        assert "cpu0: 0 -> n/a" in made.text()


async def test_bpf_cost_is_asked_for() -> None:
    async with rig() as made:
        await made.press("b", "b")
        assert [(c.kind, c.on) for c in made.source.commands] == [
            ("bpf_stats", True),
            ("bpf_stats", False),
        ]


# --------------------------------------------------------------------------- details


async def test_the_slow_steps_are_walked() -> None:
    async with rig((200, 50)) as made:
        assert "1 of 16" in made.text()
        await made.press("n", "n", "p")
        assert "2 of 16" in made.text()
        await made.press(*"ppp")
        assert "1 of 16" in made.text()


async def test_details_of_an_agent() -> None:
    async with rig((120, 45)) as made:
        await made.press("home", "enter")
        text = made.text()
        for part in ("comm:", "measured", "slowpath", "ended by", "schedstat"):
            assert part in text
        await made.press("escape")
        assert not isinstance(made.app.screen, Popup)


async def test_help_is_made_from_the_bindings() -> None:
    async with rig((120, 70)) as made:
        await made.press("f1")
        text = made.text()
        for binding in BINDINGS:
            assert binding.tooltip in text, binding.id
        assert "guard: idle guard" in text


def test_every_binding_has_an_id_and_a_tooltip() -> None:
    for binding in [*BINDINGS, *Popup.BINDINGS]:
        assert isinstance(binding, Binding)
        assert binding.id
        assert binding.tooltip
    assert len({b.id for b in BINDINGS}) == len(BINDINGS)


async def test_what_is_not_available_says_why() -> None:
    async with rig((120, 35), synth=Synth(mode="procfs")) as made:
        text = made.text()
        assert "run as root to see step chains" in text
        assert "N/A, BPF needs root" in text
        assert "/proc only" in text
        await made.press("3")
        assert "MHz N/A, no cpufreq driver" in made.text()


async def test_return_is_not_available_at_level_lite_and_is_at_full() -> None:
    async with rig((120, 40)) as made:
        assert "in compute: level lite" in made.text()
    async with rig((120, 40), synth=Synth(level="full")) as made:
        assert "in compute: level lite" not in made.text()


async def test_a_cpu_that_goes_offline_is_told() -> None:
    synth = Synth(cpus=4)
    async with rig((200, 50), synth=synth) as made:
        synth.cpus[3].online = False
        await made.tick(2)
        assert "3  offline" in made.text()
        del synth.cpus[2:]
        await made.tick(2)
        await made.press("3", "end")
        assert "CPUs 2" in made.text()


async def test_no_agents_says_how_to_add_one() -> None:
    async with rig(synth=Synth(agents=0)) as made:
        assert "--agent pid:1234" in made.text()
        await made.press("down", "enter", "n", "c", "1", "2", "3", "4", "5", "I", "f6", "escape")
        assert made.app.is_running


async def test_before_the_first_sample() -> None:
    async with rig(samples=0) as made:
        assert "waiting for the first sample" in made.lines()[0]
        await made.press("down", "enter", "g", "l", "x", "c", "space", "L", "f6")
        assert made.app.is_running


HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "[bold]mark[/bold]up[",
    "\x1b]52;c;ZXZpbA==\x07",
    "tab\tnew\nline\r\x00",
    "漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字",
    "\u202eright to left\u200b",
    "e\u0301\u0301\u0301\u0301\u0301\u0301",
    "👩‍👩‍👧‍👦" * 10,
    "",
    "x" * 5000,
]


@pytest.mark.parametrize("size", [(200, 50), (80, 24)])
@pytest.mark.parametrize("ascii_only", [False, True])
async def test_hostile_names_are_text(size: tuple[int, int], ascii_only: bool) -> None:
    synth = Synth(agents=0)
    for number, name in enumerate(HOSTILE):
        synth.add(replace(PROFILES[number % 5], name=name, pid=5000 + number))
    for policy in synth.policies:
        policy.detail = policy.title = HOSTILE[0] + HOSTILE[1]
    async with rig(size, synth=synth, ascii_only=ascii_only) as made:
        for _ in HOSTILE:
            strips = made.app.screen._compositor.render_strips()
            assert {strip.cell_length for strip in strips} == {size[0]}
            text = made.text()
            assert all(c.isprintable() or c == "\n" for c in text)
            assert not ascii_only or text.isascii()
            await made.press("down")
        await made.press("enter")
        assert all(c.isprintable() or c == "\n" for c in made.text())
        await made.press("escape", "c")
        assert "[bold]mark" in made.text() or ascii_only or size == (80, 24)


@pytest.mark.parametrize("size", [(200, 50), (80, 24)])
async def test_ascii_means_ascii(size: tuple[int, int]) -> None:
    async with rig(size, ascii_only=True, samples=30) as made:
        for key in ("g", "1", "2", "3", "4", "5", "question_mark", "escape", "f6", "escape"):
            await made.press(key)
            assert made.text().isascii()


@pytest.mark.parametrize("theme", ["dark", "ansi16"])
async def test_no_color_means_no_colour(monkeypatch: pytest.MonkeyPatch, theme: str) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with rig((200, 50), theme=theme) as made:
        await made.press("t", "t")
        styles = {
            segment.style
            for strip in made.app.screen._compositor.render_strips()
            for segment in strip
            if segment.text.strip() and segment.style is not None
        }
        assert any(style.bold for style in styles)
        assert any(style.reverse for style in styles)
        for style in styles:
            assert style.color is None or style.color.is_default
            assert style.bgcolor is None or style.bgcolor.is_default


# --------------------------------------------------------------------------- leaving


async def test_the_engine_that_fails_ends_the_screen_with_its_words() -> None:
    async with rig() as made:
        made.source.put(Failure("no more \x1b[31mmaps"))
        for _ in range(50):
            await made.pilot.pause()
            if made.app.failure:
                break
    assert made.app.failure is not None
    assert made.app.failure.startswith("no more ")
    assert made.app.failure.isprintable()
    assert made.app.exit_code == 2


async def test_q_leaves() -> None:
    async with rig() as made:
        await made.press("q")
        assert made.app.exit_code == 0
        assert made.app._exit


async def test_export_writes_json_and_svg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with rig() as made:
        await made.press("x")
        assert "wrote agenttop-" in made.lines()[-1]
    files = {path.suffix: path for path in tmp_path.iterdir()}
    assert json.loads(files[".json"].read_text())["schema"] == "agenttop.snapshot"
    assert files[".svg"].read_text().startswith("<svg ")


async def test_an_export_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: BinaryIO, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(output_file, "_put", refuse)
    async with rig() as made:
        await made.press("x")
        assert "No space left on device" in made.lines()[-1]
    assert not list(tmp_path.iterdir())


async def test_copy_takes_the_agents_figures() -> None:
    async with rig() as made:
        await made.press("home", "c")
        assert f"name={names(made)[0]}" in made.app.clipboard
        assert "slowpath p99=" in made.app.clipboard


async def test_themes_are_walked_and_a_broken_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "agenttop" / "themes"
    folder.mkdir(parents=True)
    (folder / "zebra.yaml").write_text("base: dark\ncolors: 3\n")
    async with rig() as made:
        seen = []
        for _ in range(4):
            await made.press("t")
            seen.append(made.view.appearance.theme.name)
        assert seen == ["light", "high-contrast", "ansi16", "dark"]


# --------------------------------------------------------------------------- what a frame costs


async def test_only_changed_rows_are_drawn() -> None:
    async with rig((120, 35)) as made:
        await made.press("home")
        panels = made.main._panels
        before = {panel.id: panel.rows_drawn for panel in panels}
        made.main.update_panels()
        assert {panel.id: panel.rows_drawn for panel in panels} == before
        await made.press("down")
        drawn = made.main.agents.rows_drawn - before["agents"]
        assert drawn == 2  # the row that lost the cursor, and the one that has it
        assert made.main.policies.rows_drawn == before["policies"]


async def test_a_tick_costs_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    synth = Synth(agents=8)
    async with rig((200, 50), synth=synth, samples=60) as made:
        saver = FrameSaver()
        sizes: list[int] = []

        def display(screen: object, renderable: object) -> None:
            if hasattr(renderable, "render_segments"):
                sizes.append(
                    len(saver.saved(renderable.render_segments(made.app.console)).encode())
                )

        monkeypatch.setattr(made.app, "_display", display)
        await made.tick(4)
        sizes.clear()
        await made.tick(20)
        assert sizes
        assert sum(sizes) / 20 < 12_000


def test_a_terminal_that_is_gone_swallows_what_is_written() -> None:
    reader, writer = os.pipe()
    file = ThriftyFile(writer)
    assert file.write("hello") == 5
    assert os.read(reader, 99) == b"hello"
    os.close(reader)
    assert file.write("world") == 5
    assert file.gone
    assert file.write("!") == 1
    os.close(writer)

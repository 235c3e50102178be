"""The screen as pictures, compared with those that were looked at and found good.

``pytest --snapshot-update tests/screen/test_pictures.py`` after a change of
the looks; then look at them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

from agenttop.errors import UserError
from agenttop.screens.app import AgentTop
from agenttop.screens.picture import render_svg
from agenttop.store.store import Store
from agenttop.view.options import ViewOptions
from tests.support.synth import Synth

Compare = Callable[..., bool]


def fed(samples: int = 60, toggle_at: int = 40, **synth: Any) -> Store:
    """A store that has seen a minute, with a policy switched on in it."""
    source = Synth(**synth)
    store = Store(clock=lambda: source.t_ns)
    for number in range(samples):
        if number == toggle_at:
            source.toggle("guard")
        store.feed(source.sample())
    return store


def shown(store: Store, **options: Any) -> AgentTop:
    return AgentTop(
        store, None, ViewOptions(**options), snapshot=store.snapshot(), clock=lambda: 0,
        driver_class=None,
    )  # fmt: skip


def test_wide(snap_compare: Compare) -> None:
    assert snap_compare(shown(fed()), terminal_size=(200, 50))


def test_small_with_policies(snap_compare: Compare) -> None:
    assert snap_compare(shown(fed(), theme="light"), terminal_size=(80, 24), press=["5"])


def test_sixteen_colours(snap_compare: Compare) -> None:
    assert snap_compare(shown(fed(), theme="ansi16"), terminal_size=(120, 35))


def test_ascii_without_bpf(snap_compare: Compare) -> None:
    app = shown(fed(mode="procfs"), ascii_only=True)
    assert snap_compare(app, terminal_size=(100, 30))


@pytest.mark.parametrize("theme", ["dark", pytest.param("ansi16", marks=pytest.mark.long)])
def test_an_svg_without_a_terminal(theme: str) -> None:
    store = fed()
    svg = render_svg(store, store.snapshot(), size=(120, 35), theme=theme)
    root = ElementTree.fromstring(svg)
    text = "".join(root.itertext()).replace("\xa0", " ")
    assert "Slowest steps" in text
    assert "build-7" in text
    assert any("⠁" <= sign <= "⣿" for sign in text)


def test_an_svg_of_hostile_names_is_well_formed() -> None:
    source = Synth(agents=2)
    source.agents[0].counters.name = '<script>alert("x")</script>&amp;\x1b[31m'
    store = Store(clock=lambda: source.t_ns)
    for _ in range(3):
        store.feed(source.sample())
    root = ElementTree.fromstring(render_svg(store, store.snapshot(), size=(200, 50)))
    assert "<script>" in "".join(root.itertext())


def test_an_svg_needs_a_sample_and_a_theme_that_exists() -> None:
    with pytest.raises(UserError, match="no sample"):
        render_svg(Store(), None)
    store = fed(3)
    with pytest.raises(UserError, match="no theme 'nope'"):
        render_svg(store, store.snapshot(), theme="nope")

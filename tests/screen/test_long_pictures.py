"""Pictures of all sizes in all themes."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from agenttop.config import theme_file
from agenttop.screens.picture import render_svg
from agenttop.store.store import Store
from tests.screen.test_pictures import fed

pytestmark = pytest.mark.long

SIZES = ((20, 5), (40, 12), (80, 24), (100, 30), (120, 35), (200, 50), (300, 80), (500, 150))


@pytest.fixture(scope="module")
def store() -> Store:
    return fed()


@pytest.mark.parametrize("theme", theme_file.available())
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_a_picture_of_any_size_is_whole(store: Store, size: tuple[int, int], theme: str) -> None:
    root = ElementTree.fromstring(render_svg(store, store.snapshot(), size=size, theme=theme))
    text = "".join(root.itertext()).replace("\xa0", " ")
    # Of each line there is at least its first sign; the table is in all but the smallest.
    assert text.strip()
    if size >= (80, 24):
        assert "build-7" in text

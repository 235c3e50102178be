"""Theme files: what is valid, what the errors say, and that the shipped ones can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.config import theme_file
from agenttop.errors import UserError
from agenttop.model.vocabulary import STAGES


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's directory of themes."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "agenttop" / "themes"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", theme_file.BUILTIN)
def test_a_shipped_theme_has_every_role(name: str) -> None:
    theme = theme_file.load(name)
    wanted = {*(f"stage.{stage}" for stage in STAGES), *(f"heat.{level}" for level in range(8))}
    assert wanted | {"text", "alarm", "cursor", "busy", "steal", "idle.0"} <= set(theme.looks)
    assert theme.terminal_colors == (name == "ansi16")


def _luminance(color: str) -> float:
    def linear(value: int) -> float:
        share = value / 255
        return share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(color[i : i + 2], 16)) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    ("name", "least", "roles"),
    [
        ("high-contrast", 7.0, ("text", "strong", "dim", "faint", "alarm", "warn", "good", "key")),
        ("dark", 4.5, ("text", "strong", "dim", "alarm", "warn", "good", "key", "accent")),
        ("light", 4.5, ("text", "strong", "dim", "alarm", "warn", "good", "key", "accent")),
    ],
)
def test_text_can_be_read(name: str, least: float, roles: tuple[str, ...]) -> None:
    theme = theme_file.load(name)
    ground = theme.looks["background"].color
    assert ground is not None
    for role in roles:
        color = theme.looks[role].color
        assert color is not None
        assert _contrast(color, ground) >= least, role


def test_the_cheap_theme_uses_only_the_terminals_colours() -> None:
    for look in theme_file.load("ansi16").looks.values():
        assert {look.color, look.ground} <= {None, *theme_file.COLOR_NAMES}


def test_a_theme_may_build_on_another(own: Path) -> None:
    (own / "mine.yaml").write_text('base: dark\ntitle: Mine\ncolors:\n  alarm: "bold #ff0000"\n')
    theme = theme_file.load("mine")
    assert theme.looks["alarm"] == theme_file.Look("#ff0000", None, ("bold",))
    assert theme.looks["text"] == theme_file.load("dark").looks["text"]
    assert "mine" in theme_file.available()


def test_the_users_own_hides_the_shipped_one(own: Path) -> None:
    (own / "dark.yaml").write_text("base: light\ntitle: Not so dark\n")
    assert theme_file.load("dark").title == "Not so dark"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: dark\ncolors:\n  dim: 3\n", ":3: colors.dim: "),
        ("base: dark\ncolors:\n  dim: '#12'\n", ":3: colors.dim: no colour '#12'"),
        ("base: dark\ncolors:\n  dimm: red\n", "dimm"),
        ("base: dark\ncolors:\n  dim: red green\n", "two colours"),
        ("base: dark\ncolors:\n  dim: red on\n", "must follow 'on'"),
        ("base: dark\nheat: [red]\n", "heat: 1 colours, wanted 8"),
        ("base: dark\nstages:\n  nap: red\n", "no stage 'nap'"),
        ("base: dark\nstages: red\n", "stages"),
        ("base: dark\ncolors:\n  background: bold red\n", "colors.background"),
        ("base: nowhere\n", "base: no such theme"),
        ("title: X\ndark: true\n", "missing"),
        ("- a\n- b\n", "not a theme"),
        ("title: [\n", ":2"),
        ("", "not a theme"),
        ('base: dark\ncolors:\n  dim: "\\e[31m"\n', "no colour"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_the_place(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        theme_file.load(str(file))
    line = str(raised.value)
    assert line.startswith(str(file))
    assert said in line
    assert line.isprintable()


def test_themes_that_build_on_each_other_in_a_circle(own: Path) -> None:
    (own / "one.yaml").write_text("base: two\ntitle: 1\n")
    (own / "two.yaml").write_text("base: one\ntitle: 2\n")
    with pytest.raises(UserError, match=r"build on each other"):
        theme_file.load("one")


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(UserError, match="no theme 'nope': there are dark, light"):
        theme_file.load("nope")


@given(st.text(max_size=40))
def test_any_text_is_a_style_or_a_value_error(text: str) -> None:
    try:
        look = theme_file.parse_look(text, "here")
    except ValueError as error:
        said = str(error)
    else:
        said = "here: "
        assert look.color or look.attributes
    assert said.startswith("here: ")

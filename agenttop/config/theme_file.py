"""Theme files: YAML, validated with file and place in every error.

A theme names a style for each role that the screen uses. A style is a colour
(``#rrggbb``, one of the terminal's sixteen such as ``bright_blue``, or
``default``), optionally ``on`` a ground colour, and any of ``bold``,
``italic``, ``underline``, ``reverse``. A file may build on another one with
``base: dark`` and change only some roles.

No Textual here: a wrong theme is told before the screen starts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from agenttop.config import yaml_document
from agenttop.config.yaml_document import Document
from agenttop.errors import UserError
from agenttop.linux import paths
from agenttop.model.vocabulary import STAGES

DEFAULT: Final = "dark"
#: The ones that come with the program, in the order in which the t key walks them.
BUILTIN: Final = ("dark", "light", "high-contrast", "ansi16")
MAX_DEPTH: Final = 4

_TERMINAL = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
COLOR_NAMES: Final = ("default", *_TERMINAL, *(f"bright_{name}" for name in _TERMINAL))
ATTRIBUTES: Final = ("bold", "italic", "underline", "reverse")
_HEX = re.compile(r"#[0-9a-fA-F]{6}")


class Look(msgspec.Struct, frozen=True):
    """A parsed style; colours are ``#rrggbb``, a name of COLOR_NAMES, or None (not given)."""

    color: str | None = None
    ground: str | None = None
    attributes: tuple[str, ...] = ()


class Colors(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The general roles."""

    background: str
    text: str
    strong: str
    dim: str
    faint: str
    border: str
    border_active: str
    title: str
    brand: str
    head: str
    head_active: str
    accent: str
    key: str
    cursor: str
    good: str
    warn: str
    alarm: str
    banner: str
    marker: str


class ThemeFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A theme as its file has it."""

    title: str
    dark: bool
    colors: Colors
    stages: dict[str, str]
    #: Eight levels, cold to hot.
    heat: list[str]
    #: Idle states, shallow to deep; deeper ones than listed take the last.
    idle: list[str]
    busy: str
    steal: str
    #: Lines of a plot.
    series: list[str]


class Theme(msgspec.Struct, frozen=True):
    """A valid theme: role -> Look.

    Roles are the fields of Colors, ``stage.NAME``, ``heat.0`` to ``heat.7``,
    ``idle.N``, ``busy``, ``steal``, ``series.N``.
    """

    name: str
    title: str
    dark: bool
    looks: dict[str, Look]
    idle_levels: int
    series: int

    @property
    def terminal_colors(self) -> bool:
        """True if the ground is the terminal's own, so that no colour may be computed."""
        return self.looks["background"].color in COLOR_NAMES


def parse_look(text: str, place: str) -> Look:
    """A style from its text. Raises ValueError naming the place and what is wrong."""
    color: str | None = None
    ground: str | None = None
    attributes: list[str] = []
    words = text.split()
    position = 0
    while position < len(words):
        word = words[position]
        if word == "on":
            position += 1
            if position == len(words):
                raise ValueError(f"{place}: a colour must follow 'on' in '{text}'")
            ground = _color(words[position], place)
        elif word in ATTRIBUTES:
            attributes.append(word)
        elif color is None:
            color = _color(word, place)
        else:
            raise ValueError(f"{place}: two colours in '{text}' (write 'COLOUR on GROUND')")
        position += 1
    if color is None and not attributes:
        raise ValueError(f"{place}: no colour given")
    return Look(color, ground, tuple(attributes))


def _color(word: str, place: str) -> str:
    if _HEX.fullmatch(word):
        return word.lower()
    if word in COLOR_NAMES:
        return word
    shown = word[:40].encode("unicode_escape").decode()
    raise ValueError(
        f"{place}: no colour '{shown}' (#rrggbb, default, black, red, ..., bright_white)"
    )


def available() -> dict[str, Path]:
    """Theme name -> file: the user's own hide those of the program."""
    found = {name: paths.themes() / f"{name}.yaml" for name in BUILTIN}
    own = paths.config()
    try:
        mine = sorted((own / "themes").glob("*.yaml")) if own else []
    except OSError:
        mine = []
    found.update({path.stem: path for path in mine})
    return found


def load(name: str) -> Theme:
    """The theme of that name, or in that file (anything with a / or ending in .yaml).

    Raises UserError with file, line and place.
    """
    path = Path(name)
    if "/" not in name and path.suffix not in (".yaml", ".yml"):
        files = available()
        if name not in files:
            raise UserError(f"no theme '{name}': there are {', '.join(files)} (or give a file)")
        path = files[name]
    else:
        name = path.stem
    document, data = _merged(path, MAX_DEPTH)
    try:
        return _valid(name, msgspec.convert(data, ThemeFile))
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at ")
        raise document.error(place.strip("`") or "$", text) from None
    except ValueError as error:
        place, _, text = str(error).partition(": ")
        raise document.error(f"$.{place}", text) from None


def _merged(path: Path, depth: int) -> tuple[Document, dict[str, Any]]:
    """The file, and its content over that of its base."""
    document = yaml_document.read(path)
    if not isinstance(document.data, dict):
        raise document.error("$", "not a theme (title, colors, stages, ... are wanted)")
    raw = {str(key): value for key, value in document.data.items()}
    base = raw.pop("base", None)
    if base is None:
        return document, raw
    files = {name: file for name, file in available().items() if file != path}
    if depth == 0:
        raise document.error("$.base", f"more than {MAX_DEPTH} files build on each other")
    if not isinstance(base, str) or base not in files:
        raise document.error("$.base", f"no such theme (there are {', '.join(files)})")
    _, out = _merged(files[base], depth - 1)
    for key, value in raw.items():
        before = out.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            value = {**before, **value}
        out[key] = value
    return document, out


def _valid(name: str, file: ThemeFile) -> Theme:
    looks: dict[str, Look] = {}

    def take(texts: Mapping[str, str], place: str, prefix: str) -> None:
        for key, text in texts.items():
            looks[f"{prefix}{key}"] = parse_look(text, f"{place}{key}")

    take(msgspec.structs.asdict(file.colors), "colors.", "")
    if missing := [stage for stage in STAGES if stage not in file.stages]:
        raise ValueError(f"stages: '{missing[0]}' is missing")
    if unknown := [stage for stage in file.stages if stage not in STAGES]:
        raise ValueError(f"stages: no stage '{unknown[0][:40]}' (there are {', '.join(STAGES)})")
    take(file.stages, "stages.", "stage.")
    for key, values, least, most in (
        ("heat", file.heat, 8, 8),
        ("idle", file.idle, 1, 16),
        ("series", file.series, 2, 16),
    ):
        if not least <= len(values) <= most:
            want = str(least) if least == most else f"{least} to {most}"
            raise ValueError(f"{key}: {len(values)} colours, wanted {want}")
        take({str(i): value for i, value in enumerate(values)}, f"{key}.", f"{key}.")
    take({"busy": file.busy, "steal": file.steal}, "", "")
    ground = looks["background"]
    if ground.color is None or ground.ground or ground.attributes:
        raise ValueError("colors.background: one colour and nothing else")
    return Theme(name, file.title, file.dark, looks, len(file.idle), len(file.series))

"""The headless paths import neither Textual nor Rich."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import agenttop

#: What may import Textual.
SCREEN = ("agenttop.screens", "agenttop.widgets", "agenttop.view")


def headless_modules() -> list[str]:
    names = [
        module.name
        for module in pkgutil.walk_packages(agenttop.__path__, "agenttop.")
        if not module.name.startswith(SCREEN) and module.name != "agenttop.__main__"
    ]
    assert {"agenttop.cli", "agenttop.store.store", "agenttop.commands.snapshot"} <= set(names)
    return names


def loaded_by(*modules: str) -> set[str]:
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_the_check_can_fail() -> None:
    assert {"textual", "rich"} <= loaded_by("textual.app")


def test_no_headless_module_imports_textual_or_rich() -> None:
    assert not loaded_by(*headless_modules()) & {"textual", "rich"}


@pytest.mark.parametrize(
    "arguments", [["schema"], ["snapshot", "--help"], ["--help"], ["-s", "help"]]
)
def test_commands_that_print_do_not_load_the_screen(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom agenttop import cli\n"
        "try:\n    code = cli.main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "print(code or 0, *sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    code_, *modules = done.stderr.split()
    assert code_ == "0"
    assert not {name.partition(".")[0] for name in modules} & {"textual", "rich"}
    assert done.stdout

"""No process of ours runs what lies in the working directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import msgspec
import numpy
import pytest
import textual

from agenttop.cli import COMMANDS
from agenttop.linux import isolation

#: Modules that we, our children or Python itself look for.
PLANTED = (
    *("json", "select", "socket", "logging", "numpy", "bcc", "agenttop", "ctypes", "msgspec"),
    *("textual", "yaml", "psutil", "re", "struct", "sitecustomize", "usercustomize", "typing"),
)
#: Each command, with what makes it end soon.
USES = {
    "live": ["--help"],
    "snapshot": ["--for", "0.2", "--no-bpf", "--format", "svg"],
    "trace": ["--for", "0.2", "-o", "t.trace", "--no-bpf"],
    "record": ["--for", "0.2", "--no-bpf"],
    "replay": ["none.rec"],
    "report": ["none.rec"],
    "policy": ["plan", "vfs"],
    "restore": [],
    "doctor": [],
    "schema": [],
    "loop": ["--source", "timer", "--for", "0.2"],
    "demo": ["--no-bpf", "--for", "0.3"],
}


def test_every_command_is_tried() -> None:
    assert set(USES) == set(COMMANDS)


@pytest.mark.parametrize("command", USES)
def test_nothing_of_the_working_directory_runs(command: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    for name in PLANTED:
        (place / name).mkdir(parents=True)
        trap = f"open({str(tmp_path / 'RAN')!r}, 'a').write({name!r} + ' ')\n"
        (place / name / "__init__.py").write_text(trap)
    tool = place / "true"
    tool.write_text(f"#!/bin/sh\necho true >> {tmp_path}/RAN\n")
    tool.chmod(0o755)
    subprocess.run(
        [Path(sys.executable).with_name("agenttop"), command, *USES[command]],
        cwd=place,
        env={**os.environ, "AGENTTOP_STATE": str(tmp_path / "state"), "PATH": ":.:/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert not (tmp_path / "RAN").exists(), (tmp_path / "RAN").read_text()


def test_places_that_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for entry in ("", ".", "lib", str(tmp_path), str(tmp_path / "open")):
        assert not isolation.safe(entry), entry
    for entry in (isolation.PACKAGE_ROOT, str(tmp_path / "none"), "/usr/lib"):
        assert isolation.safe(entry), entry
    assert isolation.safe(str(tmp_path / "open"), trusted=False)
    assert not isolation.of_root(str(tmp_path / "open"))
    assert not isolation.of_root(str(tmp_path / "none"))


@pytest.mark.parametrize("module", [os, pytest], ids=["standard library", "packages"])
def test_the_interpreters_own_places_hold_whoever_works_there(module: ModuleType) -> None:
    assert module.__file__ is not None
    place = Path(module.__file__).parent
    if (place / "__init__.py").exists():
        place = place.parent
    done = subprocess.run(
        [Path(sys.executable).with_name("agenttop"), "doctor"],
        cwd=place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, Path]:
    """A checkout that is not installed, and an interpreter with all that it needs but that."""
    shutil.copytree(Path(isolation.PACKAGE_ROOT) / "agenttop", tmp_path / "checkout/agenttop")
    bare = tmp_path / "bare"
    venv.create(bare, symlinks=True)
    needs = {str(Path(module.__file__ or "").parents[1]) for module in (msgspec, numpy, textual)}
    (packages,) = bare.glob("lib/python*/site-packages")
    for place in map(Path, needs):
        for part in place.iterdir():
            if "agenttop" not in part.name and part.suffix != ".pth":
                target = packages / part.name
                if not target.exists():
                    target.symlink_to(part)
    return tmp_path / "checkout", bare / "bin/python"


def refusal(cwd: Path, *command: str | Path) -> str:
    """The one line with which a command says that it cannot run from there."""
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.skipif(os.geteuid() != 0, reason="without rights PYTHONPATH and the user's count")
def test_a_checkout_that_is_not_installed_says_so(checkout: tuple[Path, Path]) -> None:
    root, python = checkout
    line = refusal(root, python, "-m", "agenttop", "snapshot", "--for", "0.2", "--no-bpf")
    assert "has no agenttop among its own packages" in line
    assert f"-m pip install {root}' installs it" in line


def test_without_what_it_needs_it_says_so(tmp_path: Path) -> None:
    shutil.copytree(Path(isolation.PACKAGE_ROOT) / "agenttop", tmp_path / "agenttop")
    line = refusal(tmp_path, sys.executable, "-S", "-m", "agenttop", "snapshot")
    assert "has no msgspec among its own packages" in line

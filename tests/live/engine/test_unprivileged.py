"""Without privileges: the same screens on /proc and /sys, and every gap with its reason."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.live_terminal import ROOT

NOBODY = 65534
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="becoming nobody needs root"
)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run agenttop as nobody, beside a state directory and a home that are root's own."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        # Where nobody may read: this tree and its environment may lie below a private folder.
        shutil.copytree(ROOT / "agenttop", place / "agenttop")
        shutil.copytree(ROOT / "themes", place / "agenttop" / "themes")
        packages = Path(site.getsitepackages()[0])
        for wanted in ("msgspec", "yaml", "_yaml", "numpy", "numpy.libs", "psutil"):
            if (packages / wanted).is_dir():
                shutil.copytree(packages / wanted, place / wanted, symlinks=True)
        subprocess.run(["chmod", "-R", "a+rX", name], check=True)
        for private in ("state", "home"):
            (place / private).mkdir(mode=0o700)

        # The system's own of the same version, if there is one: others lie in private folders.
        same = f"/usr/bin/python3.{sys.version_info.minor}"
        python = same if os.path.exists(same) else os.path.realpath(sys.executable)

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [
                    *f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups".split(),
                    python,
                    "-m",
                    "agenttop",
                    *arguments,
                ],
                cwd="/",
                env={
                    "PATH": os.environ["PATH"],
                    "LANG": "C.UTF-8",
                    "PYTHONPATH": name,
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "AGENTTOP_STATE": str(place / "state"),
                    "HOME": str(place / "home"),
                },
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
            )

        if run("--version").returncode:
            pytest.skip("this interpreter lies where nobody may not read")
        yield run


def test_a_snapshot_says_what_is_missing_and_why(run: Run) -> None:
    done = run("snapshot", "--for", "0.5", "--format", "json", "--agent", f"pid:{os.getpid()}")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert "run as root" in document["host"]["missing"]["chains"]
    assert "run as root" in document["host"]["banner"]
    (agent,) = document["agents"]
    assert agent["pids"]
    assert agent["step"] is None or agent["step"]["p99_ns"] is None
    assert agent["steps"] is None
    assert {policy["state"] for policy in document["policies"]} == {"n/a"}
    assert document["cpus"]


def test_text(run: Run) -> None:
    done = run("-b", "-n", "1", "-d", "0.2", "--agent", f"pid:{os.getpid()}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "note: no step chains: " in done.stdout
    assert "needs root" in done.stdout


def test_doctor(run: Run) -> None:
    done = run("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "not root; lost: step chains, policies; to do: run as root" in done.stdout
    assert run("doctor", "--check").returncode == 1


@pytest.mark.parametrize(
    "command", ["policy apply guard --for 1", "policy status", "policy revert", "restore"]
)
def test_policies_are_refused_in_one_line(run: Run, command: str) -> None:
    done = run(*command.split())
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("agenttop: ")
    assert "needs root" in last
    assert "Traceback" not in done.stderr

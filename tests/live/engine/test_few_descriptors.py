"""With too few file descriptors agenttop says so, and goes on with less."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.engines import needs_bpf

#: Limits, sets this process's, opens some descriptors more, and becomes agenttop.
RUN = """
import os, resource, sys
most, opened = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
for _ in range(opened):
    os.set_inheritable(os.open("/dev/null", os.O_RDONLY), True)
os.execv(sys.executable, [sys.executable, "-m", "agenttop", *sys.argv[3:]])
"""


def run(most: int, opened: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, str(most), str(opened), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("most", "opened"), [(64, 0), (256, 0), (4096, 1100)])
def test_without_bpf_a_snapshot_comes_all_the_same(most: int, opened: int) -> None:
    done = run(most, opened, "snapshot", "--no-bpf", "--for", "1", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert len(told["cpus"]) == os.sysconf("SC_NPROCESSORS_CONF")


@pytest.mark.bpf
@pytest.mark.parametrize(
    ("most", "opened"),
    [
        (100, 0),
        (4096, 1100),
        pytest.param(64, 0, marks=pytest.mark.long),
        pytest.param(256, 0, marks=pytest.mark.long),
    ],
)
def test_with_bpf_there_are_chains_or_the_reason_and_what_helps(most: int, opened: int) -> None:
    needs_bpf()
    done = run(most, opened, "snapshot", "--for", "2", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["cpus"]
    reason = told["host"]["missing"].get("chains")
    if most > 1024:
        assert reason is None
    elif reason is not None:
        assert f"the limit is {most}" in reason
        assert "ulimit -n" in reason
    if most == 64:
        assert reason is not None


def test_the_soft_limit_is_raised_first() -> None:
    code = (
        "import resource; from agenttop.linux import descriptors;"
        "descriptors.raise_limit(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        ["bash", "-c", f'ulimit -Sn 64; ulimit -Hn 500; exec {sys.executable} -c "$0"', code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["500", "500"]

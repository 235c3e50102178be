"""Descriptors of 1024 and above: what a server with many CPUs has open (select(2) refuses them)."""

from __future__ import annotations

import ast
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.linux import signals
from agenttop.linux.readiness import readable, writable
from agenttop.policies.guardian.lease import Lease
from agenttop.policies.knobs.base import Change
from tests.support.knob_files import use
from tests.support.places import ROOT
from tests.support.policy_rig import needs_root


@pytest.fixture
def crowded() -> Iterator[None]:
    """All descriptors below 1100 are taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"no more than {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    taken: list[int] = []
    try:
        while not taken or taken[-1] < 1100:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("crowded")
def test_waiting_for_a_pipe() -> None:
    reader, writer = os.pipe()
    try:
        assert reader > 1024
        assert not readable(reader, 0)
        assert writable(writer, 0)
        os.write(writer, b"x")
        assert readable(reader, None)
    finally:
        os.close(reader)
        os.close(writer)
    with signals.noted() as wait:
        assert not wait(0.01)


@needs_root
@pytest.mark.usefixtures("crowded")
def test_a_setting_is_written_and_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = use(tmp_path, monkeypatch).sysctl("net.core.netdev_budget", "300")
    lease = Lease(str(tmp_path / "state"))
    assert min(lease.fds()) > 1024
    change = Change("softirq", "sysctl", "net.core.netdev_budget", "300", "128")
    assert [result.status for result in lease.apply([change])] == ["ok"]
    assert file.read_text() == "128"
    lease.beat()
    assert readable(lease.fds()[0], 2)
    assert lease.poll() == []
    lease.close()
    assert file.read_text() == "300"


def test_nothing_calls_select() -> None:
    for folder in ("agenttop", "bench", "lab", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(file.read_bytes())))
            modules = {name.name for n in nodes if isinstance(n, ast.Import) for name in n.names}
            if "select" in modules:
                attributes = {ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute)}
                assert "select.select" not in attributes, file
            names = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "select"]
            assert not names, file

"""Files of the kernel are read whole, however small the pieces are that its reads give."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.linux import process, whole_file
from agenttop.linux.cgroup_mounts import cgroup2_mount
from agenttop.linux.files import KeptFile, read_text
from agenttop.policies.knobs.cgroup import CPUSET, mount
from agenttop.policies.parts import agent_cgroups


@pytest.fixture(autouse=True)
def _short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does: a read gives at most 100 bytes, whatever it is asked for."""
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: whole(fd, min(size, 100), at))


@given(st.binary(max_size=1000), st.integers(0, 1200))
def test_head_and_whole(tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int) -> None:
    path = tmp_path_factory.mktemp("whole") / "file"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.lseek(fd, min(3, len(data)), os.SEEK_SET)
        assert whole_file.head(fd, size) == data[:size]
        assert whole_file.from_fd(fd) == data
        if len(data) > size:
            with pytest.raises(OSError) as error:
                whole_file.from_fd(fd, size)
            assert error.value.errno == errno.EFBIG
        else:
            assert whole_file.from_fd(fd, size) == data
    finally:
        os.close(fd)


def test_every_process_of_a_cgroup(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in range(1, 1201)))
    (tmp_path / "below").mkdir()
    (tmp_path / "below/cgroup.procs").write_text("5000\n")
    assert agent_cgroups.members(str(tmp_path)) == {*range(1, 1201), 5000}


def test_mounts_behind_many_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTTOP_PROC", str(tmp_path))
    rows = [b"none /mnt/%d tmpfs rw 0 0\n" % i for i in range(5000)]
    rows += [b"cgroup /c\\040g/cpu cgroup rw,cpuset,cpu 0 0\n", b"none /\xff cgroup2 rw 0 0\n"]
    (tmp_path / "mounts").write_bytes(b"".join(rows))
    assert mount(1, "cpuset") == "/c g/cpu"
    assert cgroup2_mount() == mount(2, "cpu") == os.fsdecode(b"/\xff")


def test_long_cpu_lists(tmp_path: Path) -> None:
    listed = ",".join(map(str, range(0, 4096, 2)))
    (tmp_path / "cpuset.cpus.effective").write_text(listed + "\n")
    assert CPUSET[2].effective(str(tmp_path)) == frozenset(range(0, 4096, 2))
    assert read_text(str(tmp_path / "cpuset.cpus.effective")) == listed
    assert KeptFile(str(tmp_path / "cpuset.cpus.effective")).read_all() == (listed + "\n").encode()


def test_what_is_gone_is_none(tmp_path: Path) -> None:
    assert process.read_whole(str(tmp_path / "none")) is None
    assert KeptFile(str(tmp_path / "none")).read_all() is None
    assert read_text(str(tmp_path)) is None

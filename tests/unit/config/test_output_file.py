"""What is written goes through no link and over nothing of others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agenttop.config import output_file
from agenttop.errors import UserError
from agenttop.linux import paths
from agenttop.stream.recording import create

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users: needs root")
OTHER = 65534


def precious(path: Path) -> Path:
    path.write_text("precious")
    return path


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    victim = precious(tmp_path / "victim")
    link = tmp_path / "out"
    link.symlink_to(victim)
    for use in (output_file.check, lambda path: output_file.write(path, b"bad"), create):
        with pytest.raises(UserError, match="is a link"):
            use(link)
    assert output_file.new_group(tmp_path, "out", {"": b"new"}) == "out-2"
    assert victim.read_text() == "precious"


@ROOT
def test_a_link_on_the_way_in_anothers_directory(tmp_path: Path) -> None:
    (tmp_path / "victims").mkdir()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "out").symlink_to(tmp_path / "victims")
    os.chown(theirs, OTHER, OTHER)
    with pytest.raises(UserError, match="'out' is a link"):
        output_file.write(theirs / "out" / "x", b"")
    with (
        pytest.raises(UserError, match="'out' is a link"),
        output_file.folder(theirs / "out/a", True),
    ):
        pass
    assert not list((tmp_path / "victims").iterdir())
    (tmp_path / "own").symlink_to("victims")
    output_file.write(tmp_path / "own" / "x", b"fine")
    assert (tmp_path / "victims/x").read_bytes() == b"fine"


@ROOT
def test_what_lies_in_a_users_directory_belongs_to_the_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, OTHER, OTHER)
    output_file.write(home / "x", b"")
    output_file.new_group(home, "y", {".json": b"", ".svg": b""})
    with output_file.folder(home / "a" / "b", make=True):
        pass
    for path in (home / "x", home / "y.json", home / "y.svg", home / "a", home / "a/b"):
        assert (path.stat().st_uid, path.stat().st_gid) == (OTHER, OTHER), path
    with pytest.raises(UserError, match="another user's"):
        output_file.write(home / "x", b"over it")


def test_bits_are_not_taken_over(tmp_path: Path) -> None:
    for before, after in ((0o6777, 0o644), (0o600, 0o600), (0o640, 0o640), (0o666, 0o644)):
        path = precious(tmp_path / "file")
        path.chmod(before)
        output_file.write(path, b"new")
        assert path.stat().st_mode & 0o7777 == after
    (tmp_path / "second").hardlink_to(path)
    with pytest.raises(UserError, match="under 2 names"):
        output_file.write(path, b"newer")
    assert path.read_bytes() == b"new"


def test_names_within_a_second_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {".json": b"1", ".svg": b"2"}
    precious(tmp_path / "s-2.svg")
    assert [output_file.new_group(tmp_path, "s", contents) for _ in range(2)] == ["s", "s-3"]
    assert not (tmp_path / "s-2.json").exists()
    assert (tmp_path / "s-2.svg").read_text() == "precious"
    monkeypatch.chdir(tmp_path)
    made = [create(None) for _ in range(3)]
    assert len({name for _, name in made}) == 3
    for file, _ in made:
        file.close()


def test_no_home_is_no_directory_named_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "relative")
    for home in (None, "", "here", "~"):
        if home is None:
            monkeypatch.delenv("HOME", raising=False)
        else:
            monkeypatch.setenv("HOME", home)
        monkeypatch.setattr(os, "geteuid", lambda: 987_654_321)
        assert paths.home() is paths.config() is paths.user_state() is paths.user_cache() is None

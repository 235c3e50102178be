"""The cache of compiled programs: a file that is not whole and ours alone is never used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agenttop.collectors.bpf.load.compile_cache import Compiled, MapSpec, cache_folder, keep, recall
from agenttop.collectors.bpf.load.loader import Loading
from tests.support.engines import needs_bpf

TEXT, NAMES = "int p_x(void *c) { return 0; }", ["p_x"]
LOAD_MAP = b"\x18\x11\x00\x00\x07\x00\x00\x00" + bytes(8)
OTHER = b"\xb7\x00\x00\x00\x07\x00\x00\x00"


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTTOP_CACHE", str(tmp_path / "cache"))


def sample() -> Compiled:
    spec = MapSpec("m", 2, 4, 8, 1, 0, 0, 0)
    return Compiled([spec] * 8, {"p_x": LOAD_MAP + OTHER}, b"btf")


def stored() -> Path:
    (path,) = cache_folder().glob("*.json")
    return path


def test_what_is_kept_is_recalled_for_the_same_text_only() -> None:
    keep(sample(), TEXT, NAMES)
    assert recall(TEXT, NAMES) == sample()
    assert recall(TEXT + " ", NAMES) is None
    assert recall(TEXT, [*NAMES, "p_y"]) is None


def test_only_map_references_are_replaced() -> None:
    code = sample().code("p_x", list(range(100, 108)))
    assert code == LOAD_MAP.replace(b"\x07", b"\x6b") + OTHER


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_a_damaged_file_is_not_used(data: st.DataObject) -> None:
    keep(sample(), TEXT, NAMES)
    path = stored()
    body = path.read_bytes()
    at = data.draw(st.integers(0, len(body) - 1))
    damaged = data.draw(
        st.sampled_from([body[:at], body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]])
    )
    path.write_bytes(damaged)
    assert recall(TEXT, NAMES) is None


def test_a_file_that_others_may_write_is_not_used() -> None:
    keep(sample(), TEXT, NAMES)
    stored().chmod(0o666)
    assert recall(TEXT, NAMES) is None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    keep(sample(), TEXT, NAMES)
    path = stored()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert recall(TEXT, NAMES) is None


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTTOP_CACHE", "/proc/nowhere")
    keep(sample(), TEXT, NAMES)
    assert recall(TEXT, NAMES) is None


@pytest.mark.bpf
def test_the_second_load_uses_the_first_ones_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_bpf()

    def load() -> int:
        loaded = Loading("lite").result()
        count = len(loaded.links)
        for fd in (*loaded.maps.values(), *loaded.programs.values(), *loaded.links):
            os.close(fd)
        return count

    first = load()
    kept = stored().stat()
    # What PYTHONPATH names is not looked at, so a module there does not take BCC's place.
    monkeypatch.setenv("PYTHONPATH", str(cache_folder()))
    (cache_folder() / "bcc.py").write_text("raise ImportError('none here')\n")
    assert load() == first
    assert stored().stat().st_ino == kept.st_ino
    stored().write_text("damaged")
    assert load() == first
    assert stored().stat().st_size == kept.st_size

"""Bundles: files of policies that are switched together, built in and the user's own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agenttop.errors import UserError
from agenttop.policies import bundles, catalog, never_offered

BUILTIN = ("agent-window", "all-safe", "manual-tuning", "quiet-home")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's own bundles."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "agenttop/policies"
    folder.mkdir(parents=True)
    return folder


def test_the_built_in_ones_load(own: Path) -> None:
    found = bundles.load_all()
    assert tuple(sorted(found)) == BUILTIN
    for bundle in found.values():
        assert bundle.title
        assert bundle.why
        assert set(bundle.policies) <= set(catalog.POLICIES)


def test_without_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    assert tuple(sorted(bundles.load_all())) == BUILTIN


def test_ones_own_wins(own: Path) -> None:
    (own / "quiet-home.yaml").write_text("title: mine\npolicies: {guard: {limit_us: 7}}\n")
    (own / "more.yaml").write_text("title: more\npolicies: {vfs: {}, home: {}}\n")
    found = bundles.load_all()
    assert found["quiet-home"].title == "mine"
    assert found["quiet-home"].policies == {"guard": {"limit_us": 7}}
    assert list(found["more"].policies) == ["vfs", "home"]


def test_names_become_policies_and_set_goes_over_a_bundle(own: Path) -> None:
    (own / "mine.yaml").write_text("title: t\npolicies: {guard: {limit_us: 7}, home: {}}\n")
    names, settings = bundles.expand(["vfs", "mine", "home"], {"guard": {"limit_us": 9}})
    assert names == ["vfs", "guard", "home"]
    assert settings["guard"] == {"limit_us": 9}


def test_two_bundles_that_want_it_otherwise(own: Path) -> None:
    (own / "a.yaml").write_text("title: t\npolicies: {guard: {limit_us: 7}}\n")
    (own / "b.yaml").write_text("title: t\npolicies: {guard: {limit_us: 8}}\n")
    with pytest.raises(UserError, match="b: wants guard otherwise"):
        bundles.expand(["a", "b"], {})


def test_a_name_that_is_none(own: Path) -> None:
    with pytest.raises(UserError, match=r"no policy or bundle 'nix': .*window.*quiet-home"):
        bundles.expand(["nix"], {})
    with pytest.raises(UserError, match="no-realtime"):
        bundles.expand(["realtime"], {})


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("title: t\npolicies:\n  realtime: {}\n", 3, "no-realtime"),
        ("title: t\npolicies:\n  home: {}\n  performance: {}\n", 4, "no-performance-governor"),
        ("title: t\npolicies:\n  demote:\n    to: fifo\n", 4, "no-realtime"),
        ("title: t\npolicies:\n  block:\n    ioprio: '1:0'\n", 4, "no-urgent-io"),
        ("title: t\npolicies:\n  softirq:\n    busy_poll: 50\n", 4, "no-busy-poll"),
        ("title: t\npolicies:\n  nix: {}\n", 3, "no policy 'nix'"),
        ("title: t\npolicies:\n  guard: {limit_us: 0}\n", 3, "guard"),
        ("title: t\npolicies:\n  guard: {limit: 1}\n", 3, "no parameter 'limit'"),
        ("title: t\npolicies: {}\n", 2, "policies: "),
        ("title: t\npolicies: [guard]\n", 2, "policies: "),
        ("title: t\npolicies: {guard: 5}\n", 2, "policies"),
        ("policies: {guard: {}}\n", 1, "title"),
        ("title: t\nkeep: true\npolicies: {guard: {}}\n", 1, "keep"),
        ("title: t\ntitle: u\npolicies: {guard: {}}\n", 2, "given twice"),
        ("title: t\npolicies: {guard: {}\n", 3, "bad.yaml"),
        ("title: t\npolicies: {guard: {}, home: &a {}, vfs: *a}\n", 2, "aliases"),
        ("title: t\npolicies: !!python/object/apply:os.getpid []\n", 2, "tags"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_file_and_line(
    own: Path, text: str, line: int, message: str
) -> None:
    file = own / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        bundles.load_all()
    assert str(error.value).startswith(f"{file}:{line}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["guard.yaml", "Big.yaml", "a b.yaml", "\x1b[31m.yaml"])
def test_a_file_that_needs_another_name(own: Path, name: str) -> None:
    (own / name).write_text("title: t\npolicies: {guard: {}}\n")
    with pytest.raises(UserError) as error:
        bundles.load_all()
    assert "\x1b" not in str(error.value)


def test_escape_sequences_do_not_come_through(own: Path) -> None:
    (own / "bad.yaml").write_text(
        'title: "\\e[2Jx"\nwhy: "a\\e]52;c;x\\a b"\npolicies: {guard: {}}\n'
    )
    bundle = bundles.load_all()["bad"]
    assert "\x1b" not in bundle.title + bundle.why


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from([*catalog.POLICIES, "realtime", "x", ""]),
        _values | st.dictionaries(st.sampled_from(["limit_us", "to", "processes"]), _values),
    )
)
def test_any_file_is_a_bundle_or_one_line(policies: dict[str, Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "any.yaml"
        file.write_text(yaml.safe_dump({"title": "t", "policies": policies}))
        with contextlib.suppress(UserError):
            bundle = bundles.load(file)
            assert set(bundle.policies) <= set(catalog.POLICIES)
            assert not any(never_offered.refusal(n, p) for n, p in bundle.policies.items())

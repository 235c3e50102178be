"""Bundles: policies that are switched together, with their parameters, in YAML.

Those beside this file, and users' own in ~/.config/agenttop/policies. A file
is a bundle; its name without ``.yaml`` is the bundle's.

    title: one line for the list
    why: when to use it, and what it costs
    policies:
      guard: {limit_us: 5}
      home: {}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from agenttop.config import yaml_document
from agenttop.errors import UserError
from agenttop.linux import paths
from agenttop.linux.process import printable
from agenttop.policies import catalog, never_offered

BUILTIN: Final = Path(__file__).with_name("bundles")
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
#: A folder with more is not one of ours.
MAX_FILES: Final = 200


class _File(msgspec.Struct, forbid_unknown_fields=True):
    title: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    policies: Annotated[dict[str, dict[str, Any]], msgspec.Meta(min_length=1)]
    why: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class Bundle(msgspec.Struct, frozen=True):
    """Policies and their parameters under one name."""

    name: str
    title: str
    why: str
    #: In the order in which they are switched on.
    policies: dict[str, dict[str, object]]
    file: str


def folders() -> list[Path]:
    """Where bundles are looked for; the later wins."""
    own = paths.config()
    return [BUILTIN, *([own / "policies"] if own else [])]


def load(path: Path) -> Bundle:
    """One file. Raises UserError with file and line, also for what is never offered."""
    if not _NAME.fullmatch(path.stem):
        raise UserError(f"{printable(str(path), 200)}: name it with a-z, 0-9 and -")
    if path.stem in catalog.POLICIES:
        raise UserError(f"{path}: a bundle cannot have the name of a policy")
    document = yaml_document.read(path)
    # First what is never offered: its refusal says what to use instead.
    if isinstance(document.data, Mapping) and isinstance(document.data.get("policies"), Mapping):
        for name, given in document.data["policies"].items():
            params = given if isinstance(given, Mapping) else {}
            if refused := never_offered.refusal(str(name), params):
                about, text = refused
                place = f"$.policies.{name}" + (f".{about}" if about != name else "")
                raise document.error(place, text)
    found = document.convert(_File)
    for name, given in found.policies.items():
        try:
            catalog.check_name(name)
            catalog.make_all({name: given})
        except UserError as error:
            raise document.error(f"$.policies.{name}", str(error)) from None
    return Bundle(
        path.stem,
        printable(found.title, 200),
        " ".join(printable(line, 400) for line in found.why.split()),
        dict(found.policies),
        str(path),
    )


def load_all() -> dict[str, Bundle]:
    """Every bundle by name. Raises UserError for the first file that is wrong."""
    bundles: dict[str, Bundle] = {}
    for folder in folders():
        try:
            files = sorted(folder.glob("*.yaml"))
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror}") from None
        for path in files[:MAX_FILES]:
            bundle = load(path)
            bundles[bundle.name] = bundle
    return bundles


def expand(
    names: Iterable[str], settings: catalog.Settings
) -> tuple[list[str], dict[str, dict[str, object]]]:
    """Names of policies and bundles as policies, and all settings together.

    What stands in ``settings`` (--set) goes over a bundle's. Raises UserError
    for a name that is neither, and where two bundles want different values.
    """
    policies: list[str] = []
    merged: dict[str, dict[str, object]] = {}
    known: dict[str, Bundle] | None = None
    for name in names:
        if name in catalog.POLICIES:
            policies.append(name)
            continue
        if refused := never_offered.refusal(name):
            raise UserError(refused[1])
        known = load_all() if known is None else known
        if name not in known:
            raise UserError(
                f"no policy or bundle '{printable(name, 40)}': there are "
                f"{', '.join([*catalog.POLICIES, *known])}"
            )
        for policy, given in known[name].policies.items():
            if merged.get(policy, given) != given:
                raise UserError(f"{name}: wants {policy} otherwise than a bundle before it")
            merged[policy] = dict(given)
            policies.append(policy)
    for policy, params in settings.items():
        merged[policy] = {**merged.get(policy, {}), **params}
    catalog.make_all(merged)
    return list(dict.fromkeys(policies)), merged

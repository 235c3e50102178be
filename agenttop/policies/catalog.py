"""All policies: their names, their parameters, and how each is made.

A policy's parameters are a msgspec Struct beside it, ``Params``; what people
write (``--set guard.limit_us=50``, a policy file) is checked against it here,
before anything starts. The order is that of the screen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from agenttop.config.yaml_document import Document
from agenttop.errors import UserError
from agenttop.linux.process import printable
from agenttop.policies import never_offered
from agenttop.policies.base import Policy
from agenttop.policies.builtin import (
    block,
    demote,
    floor,
    guard,
    home,
    memory,
    slice,
    softirq,
    steer,
    vfs,
    window,
)

#: Policy -> parameter -> value, as people write them.
Settings = Mapping[str, Mapping[str, object]]


class Entry(NamedTuple):
    """How a policy is made from its parameters."""

    params: type[msgspec.Struct]
    make: Callable[[Any], Policy]


POLICIES: Final[dict[str, Entry]] = {
    "guard": Entry(guard.Params, guard.Guard),
    "floor": Entry(floor.Params, floor.StaticFloor),
    "home": Entry(home.Params, home.Home),
    "steer": Entry(steer.Params, steer.Steer),
    "softirq": Entry(softirq.Params, softirq.Softirq),
    "block": Entry(block.Params, block.Block),
    "slice": Entry(slice.Params, slice.Slice),
    "demote": Entry(demote.Params, demote.Demote),
    "memory": Entry(memory.Params, memory.Memory),
    "vfs": Entry(vfs.Params, vfs.Vfs),
    "window": Entry(window.Params, window.Window),
}

_SET: Final = re.compile(r"(\w+)\.(\w+)=(.*)", re.DOTALL)


def make_all(settings: Settings | None = None) -> list[Policy]:
    """Every policy, with these parameters or its defaults. Raises UserError."""
    settings = settings or {}
    for name in settings:
        check_name(name)
    return [entry.make(params(name, settings.get(name, {}))) for name, entry in POLICIES.items()]


def check_name(name: str) -> None:
    """Raises UserError for a policy that there is not, and for what is never offered."""
    if name not in POLICIES:
        if refused := never_offered.refusal(name):
            raise UserError(refused[1])
        raise UserError(f"no policy '{printable(name, 40)}': there are {', '.join(POLICIES)}")


def params(name: str, given: Mapping[str, object]) -> msgspec.Struct:
    """A policy's parameters from what somebody wrote. Raises UserError."""
    kind = POLICIES[name].params
    known = [field.name for field in msgspec.structs.fields(kind)]
    for key in given:
        if key not in known:
            there = ", ".join(known) or "none"
            raise UserError(
                f"{name} has no parameter '{printable(str(key), 40)}': there are {there}"
            )
    try:
        return msgspec.convert(dict(given), kind)
    except msgspec.ValidationError as error:
        text = printable(str(error).replace(" - at `$.", " - at `"), 200)
        raise UserError(f"{name}: {text}") from None


def parse_set(texts: Iterable[str]) -> dict[str, dict[str, object]]:
    """``POLICY.PARAM=VALUE`` each (the value as in YAML), as settings. Raises UserError."""
    settings: dict[str, dict[str, object]] = {}
    for text in texts:
        match = _SET.fullmatch(text)
        if match is None:
            raise UserError(f"--set {printable(text, 60)}: write POLICY.PARAM=VALUE")
        name, key, value = match.groups()
        check_name(name)
        try:
            parsed = Document(value, "").data
        except UserError:
            raise UserError(f"--set {printable(text, 60)}: not a YAML value") from None
        if refused := never_offered.refusal(name, {key: parsed}):
            raise UserError(f"--set {printable(text, 60)}: {refused[1]}")
        settings.setdefault(name, {})[key] = parsed
    make_all(settings)
    return settings

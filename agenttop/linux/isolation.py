"""Nothing of ours is imported or run from the current directory, or from where anybody may write.

Python looks for modules in the current directory (``-m``, an empty part of
PYTHONPATH), and at what PYTHON* variables name; the loader of shared libraries
and PATH have the like. Whoever made that directory would run code of theirs in
our processes, which may be root's.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from typing import Final

from agenttop.linux.capabilities import effective

#: Where this package lies: it has been imported from there already.
PACKAGE_ROOT: Final = str(Path(__file__).resolve().parents[2])
#: What Python says of a module that it does not find.
_MISSING: Final = re.compile(r"No module named '([^'.\n]+)")
#: The interpreter's own places: whoever may write there need not wait for one of us to be there.
_INTERPRETER: Final = tuple(
    os.path.join(prefix, name, "python")
    for prefix in (sys.prefix, sys.base_prefix)
    for name in ("lib", "lib64")
)


def privileged() -> bool:
    """Has this process rights that the users of the machine have not?"""
    return os.geteuid() == 0 or effective() > 0


def python(*arguments: str) -> list[str]:
    """The command line of a child of ours that runs Python.

    With rights: nothing but the interpreter's own places (-I). Without them
    PYTHONPATH and the user's own packages count as they do for the view.
    """
    return [sys.executable, "-I" if privileged() else "-P", *arguments]


def remedy(said: str) -> str:
    """One line on what to do where a child of ours has not found what it needs; "" else.

    ``said``: its stderr. With rights it looks in the interpreter's own places alone, where a
    checkout that is run by ``python -m agenttop``, or a user's own packages, are not.
    """
    missing = _MISSING.search(said)
    if missing is None:
        return ""
    alone = ", and as root nothing else is looked at" if privileged() else ""
    return (
        f"{sys.executable} has no {missing[1]} among its own packages{alone}:"
        f" '{sys.executable} -m pip install {PACKAGE_ROOT}' installs it"
    )


def tidy() -> None:
    """Have later imports and children take nothing from such places; children inherit it."""
    trusted = privileged()
    sys.path[:] = [entry for entry in sys.path if safe(entry, trusted)]
    path = os.environ.get("PATH")
    if path is not None:
        os.environ["PATH"] = ":".join(part for part in path.split(":") if os.path.isabs(part))
    if trusted:
        for name in [name for name in os.environ if name.startswith(("PYTHON", "LD_"))]:
            del os.environ[name]


def safe(entry: str, trusted: bool = True) -> bool:
    """May modules be imported from there? ``trusted``: nor where anybody may write."""
    if entry == PACKAGE_ROOT:
        return True
    if not os.path.isabs(entry):
        return False
    try:
        here = os.stat(entry)
        if os.path.samestat(here, os.stat(".")) and not entry.startswith(_INTERPRETER):
            return False
    except OSError:
        return True  # Nothing is there, or nothing that we may read.
    return not (trusted and here.st_mode & stat.S_IWOTH)


def of_root(folder: str) -> bool:
    """Does it belong to root, and may nobody else write there?"""
    try:
        about = os.stat(folder)
    except OSError:
        return False
    return about.st_uid == 0 and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)

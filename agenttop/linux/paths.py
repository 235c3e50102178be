"""Where things are, each changeable by the environment so that tests stay off the machine's own."""

from __future__ import annotations

import os
import pwd
from pathlib import Path


def proc() -> Path:
    """/proc, or AGENTTOP_PROC (fixture trees)."""
    return Path(os.environ.get("AGENTTOP_PROC") or "/proc")


def sys() -> Path:
    """/sys, or AGENTTOP_SYS (fixture trees)."""
    return Path(os.environ.get("AGENTTOP_SYS") or "/sys")


def state() -> Path:
    """Journal and lock: /run/agenttop, or AGENTTOP_STATE. Dropped at reboot, as the knobs are."""
    return Path(os.environ.get("AGENTTOP_STATE") or "/run/agenttop")


def home() -> str | None:
    """The user's home, by HOME or the passwd file; None for a user who has none."""
    given = os.environ.get("HOME") or ""
    if not os.path.isabs(given):
        try:
            given = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            return None
    return given if os.path.isabs(given) else None


def _own(variable: str, below_home: str) -> Path | None:
    """A base directory of the user's own (XDG Base Directory: what is not absolute is ignored)."""
    given = os.environ.get(variable) or ""
    if not os.path.isabs(given):
        folder = home()
        if folder is None:
            return None
        given = os.path.join(folder, below_home)
    return Path(given) / "agenttop"


def config() -> Path | None:
    """The user's own files: $XDG_CONFIG_HOME/agenttop; None without a home."""
    return _own("XDG_CONFIG_HOME", ".config")


def user_state() -> Path | None:
    """What the user's runs leave and may be thrown away: $XDG_STATE_HOME/agenttop; or None."""
    return _own("XDG_STATE_HOME", ".local/state")


def user_cache() -> Path | None:
    """What the user's runs can make anew: $XDG_CACHE_HOME/agenttop; None without a home."""
    return _own("XDG_CACHE_HOME", ".cache")


def themes() -> Path:
    """The theme files that come with the program (source tree or wheel)."""
    package = Path(__file__).resolve().parents[1]
    source = package.parent / "themes"
    return (
        source
        if source.is_dir() and (package.parent / "pyproject.toml").exists()
        else (package / "themes")
    )

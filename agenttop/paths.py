"""Where things are, each changeable by the environment so that tests stay off the machine's own."""

from __future__ import annotations

import os
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


def config() -> Path:
    """The user's own files: $XDG_CONFIG_HOME/agenttop."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "agenttop"


def user_state() -> Path:
    """What the user's runs leave and may be thrown away: $XDG_STATE_HOME/agenttop."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "agenttop"


def themes() -> Path:
    """The theme files that come with the program (source tree or wheel)."""
    package = Path(__file__).resolve().parent
    source = package.parent / "themes"
    return (
        source
        if source.is_dir() and (package.parent / "pyproject.toml").exists()
        else (package / "themes")
    )

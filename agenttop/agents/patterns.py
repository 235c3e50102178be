"""Patterns that pick processes: ``pid:N | comm:RE | cmd:RE | prog:RE | cgroup:PATH | user:NAME``.

comm and cmd are searched for (anchor with ^ and $), prog must match as a
whole: a name of the program that runs (program_names.py), or that name and the
first word after it (``prog:ollama serve``).
"""

from __future__ import annotations

import fnmatch
import pwd
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from agenttop.agents.linear_regex import MOST_PLACES, Linear, TooComplexError, UnknownPythonError
from agenttop.agents.program_names import Program
from agenttop.errors import UserError
from agenttop.linux.process import ProcInfo, printable

KINDS: Final = ("pid", "comm", "cmd", "prog", "cgroup", "user")
#: Characters of a command line that patterns see: their time is linear in it (linear_regex.py).
MAX_TEXT: Final = 1024
MAX_PATTERN: Final = 500
#: Those whose regular expressions linear_regex.py is known to take apart.
PYTHONS: Final = "3.11 to 3.13"
#: (uid_t) -1, which chown(2) and its like take for "none".
NO_USER: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Pattern:
    """One condition on a process."""

    kind: str
    value: str
    #: Process id, user id (pid:, user:).
    number: int | None = None
    regex: Linear | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """``KIND:VALUE`` as a Pattern. Raises UserError (one line, no place in it)."""
        kind, colon, value = text.partition(":")
        shown = printable(text, 80)
        if not colon or kind not in KINDS:
            forms = "pid:N, comm:RE, cmd:RE, prog:RE, cgroup:PATH or user:NAME"
            raise UserError(f"'{shown}' is no pattern: it must be {forms}")
        if not value or not value.strip():
            raise UserError(f"'{shown}': nothing after '{kind}:'")
        if len(value) > MAX_PATTERN:
            raise UserError(f"'{shown}': longer than {MAX_PATTERN} characters")
        if kind == "pid":
            if not (value.isascii() and value.isdigit() and 0 < int(value) < 1 << 22):
                raise UserError(f"'{shown}': a process id is a number from 1 to {(1 << 22) - 1}")
            return cls(kind, value, int(value))
        if kind == "user":
            return cls(kind, value, _user_id(value))
        if kind == "cgroup":
            return cls(kind, _cgroup_path(value))
        return cls(kind, value, regex=_compile(value, shown))

    def matches(self, info: ProcInfo, programs: Callable[[], list[Program]]) -> bool:
        """Does it hold for this process? ``programs`` gives its names when they are needed."""
        if self.kind == "pid":
            return info.pid == self.number
        if self.kind == "user":
            return info.uid == self.number
        if self.kind == "cgroup":
            return self.cgroup_of(info) is not None
        assert self.regex is not None
        if self.kind == "comm":
            return self.regex.search(info.comm)
        if self.kind == "cmd":
            return self.regex.search(" ".join(info.cmdline)[:MAX_TEXT])
        return self.program_of(programs()) is not None

    def program_of(self, programs: list[Program]) -> str | None:
        """The most special name that a prog: pattern matches."""
        if self.kind != "prog" or self.regex is None:
            return None
        for name, command in reversed(programs):
            name = name[:MAX_TEXT]
            if self.regex.fullmatch(name):
                return name
            if command and self.regex.fullmatch(f"{name} {command}"[:MAX_TEXT]):
                return name
        return None

    def cgroup_of(self, info: ProcInfo) -> str | None:
        """The cgroup that a cgroup: pattern means: that of the process or one above it."""
        if self.kind != "cgroup":
            return None
        wild = any(c in self.value for c in "*?[")
        for path in info.cgroups or ():
            if not wild:
                if path == self.value or path.startswith(self.value.rstrip("/") + "/"):
                    return self.value
                continue
            parts = path.split("/")
            # An asterisk stays inside a folder's name, as in a shell.
            depth = self.value.count("/") + 1
            if len(parts) >= depth:
                top = parts[:depth]
                pairs = zip(top, self.value.split("/"), strict=True)
                if all(fnmatch.fnmatchcase(name, glob) for name, glob in pairs):
                    return "/".join(top)
        return None


class AnyProgram:
    """All prog: patterns in one look: what every exec on the machine is asked about."""

    #: Names whose answer is kept (the same few programs start again and again).
    KEPT: Final = 4096

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        texts = list(dict.fromkeys(p.value for p in patterns if p.kind == "prog"))
        self._answers: dict[Program, bool] = {}
        self._regex: Linear | None = None
        self._none = not texts
        # Groups that are referred to, and flags, mean something else side by side.
        if texts and not any(re.search(r"\\\d|\(\?", text) for text in texts):
            together = "|".join(f"(?:{text})" for text in texts)
            self._regex = Linear(together, MOST_PLACES * len(texts) * 2)

    def may_match(self, programs: list[Program]) -> bool:
        """False only if no prog: pattern matches any of these names."""
        if self._none:
            return False
        return self._regex is None or any(map(self._answer, programs))

    def _answer(self, program: Program) -> bool:
        known = self._answers.get(program)
        if known is None:
            assert self._regex is not None
            name, command = program
            known = self._regex.fullmatch(name[:MAX_TEXT])
            if not known and command:
                known = self._regex.fullmatch(f"{name} {command}"[:MAX_TEXT])
            if len(self._answers) >= self.KEPT:
                self._answers.clear()
            self._answers[program] = known
        return known


def _user_id(value: str) -> int:
    if value.isascii() and value.isdigit():
        if len(value) > 10 or int(value) >= NO_USER:
            raise UserError(f"'user:{printable(value)}': a user id is a number below {NO_USER}")
        return int(value)
    try:
        return pwd.getpwnam(value).pw_uid
    except (KeyError, ValueError, UnicodeError):
        raise UserError(f"'user:{printable(value)}': no such user on this machine") from None


def _cgroup_path(value: str) -> str:
    """The path below the mount point, whichever way it was written."""
    path = re.sub(r"^/sys/fs/cgroup(/unified)?(?=/|$)", "", value)
    return "/" + "/".join(part for part in path.split("/") if part)


def _compile(value: str, shown: str) -> Linear:
    try:
        return Linear(value)
    except re.error as error:
        place = f" at position {error.pos + 1}" if error.pos is not None else ""
        raise UserError(
            f"'{shown}': bad regular expression: {printable(error.msg, 80)}{place}"
        ) from None
    except TooComplexError as error:
        raise UserError(f"'{shown}': bad regular expression: {error}") from None
    except UnknownPythonError as error:
        raise UserError(
            f"'{shown}': {printable(str(error), 200)}: run agenttop with Python {PYTHONS},"
            " or choose by pid:, user: or cgroup:"
        ) from None
    except (RecursionError, OverflowError):
        raise UserError(f"'{shown}': bad regular expression: too large") from None

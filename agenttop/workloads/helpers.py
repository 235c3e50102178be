"""What causes need apart from the loop: a helper process, a cgroup of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from agenttop.errors import UserError
from agenttop.workloads.syscalls import die_with


class Helper:
    """A forked process that does something each time it is asked; ends with its parent."""

    def __init__(
        self, work: Callable[[Helper], None], first: Callable[[], None] | None = None
    ) -> None:
        """``first`` is done once, in the helper; ``work`` calls ``reply`` when ``ask`` may go on.

        Raises UserError.
        """
        asked, self._ask = os.pipe()
        self._answer, self._reply = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                for number in (signal.SIGINT, signal.SIGALRM):
                    signal.signal(number, signal.SIG_IGN)
                for number in (signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                die_with(parent)
                os.close(self._ask)
                if first is not None:
                    first()
                self.reply()
                while os.read(asked, 1):
                    work(self)
                code = 0
            finally:
                os._exit(code)
        os.close(asked)
        os.close(self._reply)
        if not os.read(self._answer, 1):
            self.close()
            raise UserError("the helper of the cause could not start: it takes root")

    def ask(self) -> None:
        """Have it work, and wait for its reply."""
        os.write(self._ask, b"x")
        os.read(self._answer, 1)

    def reply(self) -> None:
        """In the helper: who asked may go on."""
        os.write(self._reply, b"x")

    def close(self) -> None:
        """Have it end."""
        os.close(self._ask)
        os.close(self._answer)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


class OwnGroup:
    """A cgroup below the one of this process, for one controller; gone with ``close``."""

    def __init__(self, controller: str) -> None:
        """Raises UserError where no cgroup can be made."""
        root, inside, self.v2 = _place(controller)
        self._home = root / inside.lstrip("/")
        self.path = self._home / f"agenttop-cause-{os.getpid()}"
        try:
            self.path.mkdir()
        except OSError as error:
            raise UserError(f"no cgroup can be made in {self._home}: {error.strerror}") from None

    def write(self, name: str, value: str) -> None:
        """A file of it. Raises UserError."""
        try:
            (self.path / name).write_text(value)
        except OSError as error:
            raise UserError(f"{self.path / name}: {error.strerror}") from None

    def number(self, name: str, field: str) -> int:
        """A field of one of its files of fields; 0 without it."""
        lines = (self.path / name).read_text().splitlines()
        words = (line.split() for line in lines)
        return next((int(value) for key, value in words if key == field), 0)

    def enter(self) -> None:
        """This process moves into it."""
        self.write("cgroup.procs", str(os.getpid()))

    def close(self) -> None:
        """This process moves back, and the cgroup goes."""
        try:
            (self._home / "cgroup.procs").write_text(str(os.getpid()))
            self.path.rmdir()
        except OSError:
            pass


def _place(controller: str) -> tuple[Path, str, bool]:
    """Mount point, this process's cgroup in it, and whether it is of version 2."""
    names = dict[str, str]()
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, inside = line.split(":", 2)
        names |= dict.fromkeys(controllers.split(","), inside)
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup" and controller in options.split(",") and controller in names:
            return Path(where), names[controller], False
        if kind == "cgroup2" and controller not in names and "" in names:
            enabled = Path(where, names[""].lstrip("/"), "cgroup.controllers")
            if enabled.exists() and controller in enabled.read_text().split():
                return Path(where), names[""], True
    raise UserError(f"the cgroup controller {controller} is not mounted")

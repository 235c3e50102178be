"""The command line: picks the command, imports only that one, turns UserErrors into one line.

Each command is a module in agenttop/commands with ``configure(parser)`` and
``run(args) -> int``. Plain ``agenttop`` is ``live``, which behaves like
``snapshot`` without a terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from agenttop import __version__
from agenttop.errors import UserError
from agenttop.linux import isolation
from agenttop.text.figures import clean

#: Command -> its line in the help.
COMMANDS: Final = {
    "live": "the screen (default)",
    "snapshot": "measure for a while, print once: text, json or svg",
    "trace": "slow steps, whole, as a trace for Perfetto",
    "record": "the engine's samples into a file",
    "replay": "the screen on a recording",
    "report": "open questions about agents' tails, answered with figures and intervals",
    "policy": "list, plan, apply, revert policies; their status",
    "restore": "put back what a killed agenttop left changed",
    "doctor": "what this machine offers, and what is lost where it is missing",
    "schema": "the JSON Schema of snapshot --format json",
    "loop": "a controlled agent loop that times its own steps",
    "demo": "agents of several kinds and background noise, on the screen",
}


class Parser(argparse.ArgumentParser):
    """argparse with our one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see '{self.prog} --help')")


def overview() -> str:
    """The text of ``agenttop --help`` above live's own options."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "commands:\n" + "\n".join(lines) + "\n\n'agenttop COMMAND --help' tells its options."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 well, 1 a check failed, 2 the user can mend it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _whole_streams()
    isolation.tidy()
    # numpy would start a thread for each CPU, in the engine too, for products that nobody forms.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # Here a full disk is one line; at the interpreter's end it is not.
        return code
    except UserError as error:
        return _tell(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("agenttop"):
            raise
        return _tell(isolation.remedy(str(error)))
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does. Python would
        # complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # The environment refused something that no command has a better word
        # for: a full disk behind stdout, no more processes or descriptors.
        why = error.strerror or str(error)
        code = _tell(f"{os.fsdecode(error.filename)}: {why}" if error.filename else why)
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    except KeyboardInterrupt:
        return 130


def _tell(text: str) -> int:
    """One line on stderr, whatever is in the names that it quotes; the exit code."""
    with contextlib.suppress(OSError):
        print(f"agenttop: {clean(text, 1000)}", file=sys.stderr, flush=True)
    return 2


def _whole_streams() -> None:
    """Closed standard streams lead nowhere, not into a socket that is opened later."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", encoding="utf-8", closefd=False))


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"agenttop {__version__}")
        return 0
    name, prog = "live", "agenttop"
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        prog = f"agenttop {name}"
        if name not in COMMANDS:
            raise UserError(f"no command '{name}': there are {', '.join(COMMANDS)}")
    module = importlib.import_module(f"agenttop.commands.{name}")
    parser = Parser(
        prog=prog,
        description=module.__doc__.split("\n\n")[0] if module.__doc__ else None,
        epilog=overview() if prog == "agenttop" else getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    return int(module.run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())

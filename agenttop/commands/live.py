"""The live screen: agents' step chains, their slowest steps, the CPUs, and policies a key each.

Without a terminal it behaves as `agenttop snapshot`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agenttop.commands import arguments, breach_arguments
from agenttop.config import theme_file
from agenttop.errors import UserError
from agenttop.flight import breach_watch
from agenttop.model.options import EngineOptions
from agenttop.render.columns import sort_help, sort_key
from agenttop.view.options import ViewOptions

if TYPE_CHECKING:
    from agenttop.screens.app import Source

#: Terminals without colours of their own choice: the linux console and its like.
_FEW_COLORS: Final = ("linux", "vt", "ansi", "cons", "sun", "wy")


def configure(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("screen")
    add = group.add_argument
    add("--theme", metavar="NAME|FILE", help=f"{', '.join(theme_file.BUILTIN)}, or one of your own")
    add("--ascii", action="store_true", help="plain ASCII only")
    add("--no-mouse", action="store_true", help="leave the mouse to the terminal")
    add("--readonly", action="store_true", help="policies can be looked at but not switched")
    arguments.add_window(group)  # type: ignore[arg-type]
    arguments.add_sort(group)  # type: ignore[arg-type]
    batch = parser.add_argument_group("without a screen")
    batch.add_argument("-b", "--batch", action="store_true", help="text, a block per update")
    batch.add_argument(
        "-n",
        "--iterations",
        type=arguments.count(1, 1_000_000_000),
        metavar="N",
        help="with -b: end after N updates",
    )
    arguments.add_engine(parser)
    breach_arguments.add(parser)
    parser.add_argument(
        "-p",
        "--pid",
        action="append",
        default=[],
        type=arguments.count(1, 1 << 22),
        metavar="PID",
        help="short for --agent pid:PID (repeatable)",
    )


def run(args: argparse.Namespace) -> int:
    """Show the screen, or what suits better. Raises UserError."""
    if args.sort == "help":
        print(sort_help())
        return 0
    args.agent = [*args.agent, *(f"pid:{pid}" for pid in args.pid)]
    if args.batch:
        from agenttop.commands import batch

        return batch.run(args)
    if args.iterations is not None:
        raise UserError("-n counts the updates of -b: say -b too")
    if not on_terminal(os.environ):
        from agenttop.commands import snapshot

        return snapshot.run(args)
    view = ViewOptions(
        theme=args.theme,
        ascii_only=args.ascii,
        mouse=not args.no_mouse,
        readonly=args.readonly,
        sort=args.sort,
        delay_s=args.delay,
        window_s=args.window,
        breach=breach_watch.Breach.of(args),
    )
    return show(arguments.engine_options(args), view=view)


def on_terminal(environ: Mapping[str, str]) -> bool:
    """Is there a terminal to draw on? A redirected stdout asks for text."""
    terminal = all(os.isatty(stream) for stream in (0, 1, 2))
    return terminal and environ.get("TERM", "dumb") not in ("dumb", "", "unknown")


def fitting_theme(environ: Mapping[str, str]) -> str:
    """The theme for this terminal: the sixteen colours where it has no more, or wants none."""
    term = environ.get("TERM", "")
    many = environ.get("COLORTERM") or "256" in term or "direct" in term
    if environ.get("NO_COLOR") or (not many and term.startswith(_FEW_COLORS)):
        return "ansi16"
    return theme_file.DEFAULT


def show(engine: EngineOptions, *, view: ViewOptions) -> int:
    """Run the engine and the screen until the user leaves; the exit code.

    However it ends, the engine is asked to end and gives back what its
    policies have changed. Raises UserError (a wrong theme or sort key before
    anything starts, or what made the engine end).
    """
    check(view)
    from agenttop.stream.engine_client import EngineClient

    client = EngineClient(engine)
    return draw(client, view=replace(view, delay_s=engine.delay_s))


def check(view: ViewOptions) -> None:
    """Raises UserError for a wrong theme or sort key, before anything starts."""
    theme_file.load(view.theme or fitting_theme(os.environ))
    sort_key(view.sort)


def draw(source: Source, *, view: ViewOptions, clock: Callable[[], int] = time.monotonic_ns) -> int:
    """The screen on this source until the user leaves; the source is closed. Raises UserError."""
    from agenttop.store.store import Store

    encoding = (getattr(sys.__stderr__, "encoding", None) or "").lower().replace("-", "")
    try:
        # Textual loads while the engine does.
        from agenttop.screens.app import AgentTop

        chosen = replace(
            view,
            theme=view.theme or fitting_theme(os.environ),
            ascii_only=view.ascii_only or encoding != "utf8",
        )
        store = Store(window_ns=int(view.window_s * 1e9), clock=clock)
        app = AgentTop(store, source, chosen, clock=clock)
        app.run(mouse=view.mouse)
    finally:
        source.close()
    if app.failure is not None:
        raise UserError(app.failure)
    return app.exit_code or app.return_code or 0

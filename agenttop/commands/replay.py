"""Show a recording on the screen as it came, or N times as fast.

Without a terminal it behaves as `agenttop snapshot --from FILE`.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from agenttop.commands import arguments, live
from agenttop.config import theme_file
from agenttop.render.columns import sort_help
from agenttop.view.options import ViewOptions


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recording", metavar="FILE", help="what agenttop record wrote")
    parser.add_argument(
        "--speed",
        type=arguments.number(0.01, 10_000),
        default=1.0,
        metavar="N",
        help="N times as fast as it came (%(default)g)",
    )
    add = parser.add_argument
    add("--theme", metavar="NAME|FILE", help=f"{', '.join(theme_file.BUILTIN)}, or one of your own")
    add("--ascii", action="store_true", help="plain ASCII only")
    add("--no-mouse", action="store_true", help="leave the mouse to the terminal")
    arguments.add_window(parser)
    arguments.add_sort(parser)


def run(args: argparse.Namespace) -> int:
    """Show it until the user leaves. Raises UserError."""
    if args.sort == "help":
        print(sort_help())
        return 0
    if not live.on_terminal(os.environ):
        from agenttop.commands import snapshot

        return snapshot.run(args)
    from agenttop.stream.replay import Replay

    view = ViewOptions(
        theme=args.theme,
        ascii_only=args.ascii,
        mouse=not args.no_mouse,
        readonly=True,
        sort=args.sort,
        window_s=args.window,
    )
    live.check(view)
    replay = Replay(args.recording, args.speed)
    return live.draw(replay, view=replace(view, delay_s=replay.delay_s), clock=replay.clock)

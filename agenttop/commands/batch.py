"""``agenttop -b``: a block of text per update, as ``top -b``."""

from __future__ import annotations

import argparse

from agenttop.commands import session as headless
from agenttop.commands.arguments import engine_options
from agenttop.config import theme_file
from agenttop.flight.breach_watch import Breach
from agenttop.render.columns import sort_help, sort_key
from agenttop.render.snapshot_text import Layout, report, terminal_width
from agenttop.store.store import Store


def run(args: argparse.Namespace) -> int:
    """Print ``-n`` updates (None: without end), ``-d`` seconds apart.

    Each is over the rolling window (``--window``), so the first ones are
    over less. Ends quietly on SIGTERM and SIGHUP. Raises UserError.
    """
    if args.sort == "help":
        print(sort_help())
        return 0
    key, inverted = sort_key(args.sort)
    if args.theme is not None:
        theme_file.load(args.theme)
    options = engine_options(args)
    watched = Breach.of(args)
    layout = Layout(
        width=terminal_width(),
        sort=key,
        inverted=inverted,
        ascii=bool(getattr(args, "ascii", False)) or not headless.speaks_unicode(),
    )
    iterations = getattr(args, "iterations", None)

    def work() -> int:
        store = Store(window_ns=int(args.window * 1e9))
        with headless.Session(options, store, watched) as session:
            samples = session.samples()
            session.ready(samples)
            printed = 0
            for _ in samples:
                snapshot = store.snapshot()
                if snapshot is None:
                    continue
                text = ("\n" if printed else "") + report(snapshot, layout)
                headless.write_out(text.encode("utf-8", "replace"))
                printed += 1
                if printed == iterations:
                    break
        return 0

    return headless.quietly(work)

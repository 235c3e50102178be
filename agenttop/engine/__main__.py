"""Starts the engine process, and before that the loader of the kernel side.

    python -m agenttop.engine FD OPTIONS

Compiling takes most of a second, and the engine's own imports a fifth: this
file imports little, so that the two go on side by side.
"""

from __future__ import annotations

import json
import socket
import sys

from agenttop.collectors.bpf.load.loader import LoadError, Loading
from agenttop.linux import descriptors, isolation
from agenttop.linux.capabilities import why_no_bpf


def main() -> int:
    """See the module, and agenttop/engine.py."""
    isolation.tidy()
    channel = socket.socket(fileno=int(sys.argv[1]))
    options = json.loads(sys.argv[2])
    # Children inherit the limit.
    descriptors.raise_limit()
    loading: Loading | LoadError | None = None
    if options["bpf"] != "off" and why_no_bpf() is None:
        try:
            loading = Loading(options["level"], raw=options["bpf"] == "raw")
        except LoadError as error:
            loading = error
    from agenttop.agents import own_processes
    from agenttop.engine import loop

    own_processes.begin()
    return loop.main(channel, sys.argv[2], loading)


if __name__ == "__main__":
    sys.exit(main())

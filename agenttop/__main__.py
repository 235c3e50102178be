"""``python -m agenttop``."""

import sys

# Python has put the current directory first, where anybody may have laid a module: this package
# has been found, and no other comes from there.
if not sys.flags.safe_path:
    del sys.path[0]

from agenttop.cli import main

sys.exit(main())

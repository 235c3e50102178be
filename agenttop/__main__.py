"""``python -m agenttop``."""

import sys

from agenttop.cli import main

sys.exit(main())

"""agenttop's own processes: known by their tree, as anybody may take their names.

They are the engine, who started it (the view), and what the engine starts
(the loaders, the guardian). Other agenttops on the machine are processes
like any other.
"""

from __future__ import annotations

import os

from agenttop.linux.process import ProcInfo

#: Those whose numbers are known.
_known: frozenset[int] = frozenset()
#: Whose children are own, too; 0: nobody's.
_engine = 0


def begin() -> None:
    """This process is the engine from now on."""
    global _known, _engine
    _engine = os.getpid()
    parent = os.getppid()
    # Process 1 started everything.
    _known = frozenset({_engine, parent} - {0, 1})


def is_own(info: ProcInfo) -> bool:
    """Whether it is one of this agenttop's processes."""
    return info.pid == os.getpid() or info.pid in _known or (_engine > 0 and info.ppid == _engine)

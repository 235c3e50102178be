"""The guest's programs, compiled on the emulator's side.

BCC takes seconds for them there, and minutes in the guest. What is compiled is
a text that tells the guest's kernel's facts, so the guest writes the texts
that its engine will want (want()), run.py has them compiled into the cache
that both sides see, and the engine finds them there. Where that fails, or
comes too late, the engine compiles as it does on any machine.

    AGENTTOP_CACHE=FOLDER python lab/ahead.py FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agenttop.collectors.bpf.causes import loader as causes_loader  # noqa: E402
from agenttop.collectors.bpf.load import compile_cache, loader  # noqa: E402
from agenttop.collectors.bpf.load import source as programs  # noqa: E402
from agenttop.collectors.bpf.load.btf import Btf  # noqa: E402
from agenttop.collectors.bpf.read.cpu_rows import CpuRows  # noqa: E402


def want(path: Path, later: bool) -> None:
    """In the guest: write what to compile. ``later``: a CPU more may come, as wide.py has it."""
    btf, rows = Btf.load(), CpuRows.present()
    chains = [programs.plan(btf, "lite", rows)]
    if later:
        chains.append(programs.plan(btf, "lite", CpuRows((*rows.cpus, rows.span))))
    texts = [(one.text, loader.MAPS, one.names) for one in chains]
    text, names = causes_loader.source(btf, "lite", rows)
    texts.append((text, causes_loader.ALL_MAPS, names))
    written = path.with_suffix(".part")
    written.write_text(json.dumps(texts))
    written.rename(path)


def main() -> None:
    module = loader.bcc()
    for text, maps, names in json.loads(Path(sys.argv[1]).read_text()):
        if compile_cache.recall(text, names) is None:
            compile_cache.keep(compile_cache.compile_text(module, text, maps, names), text, names)


if __name__ == "__main__":
    main()

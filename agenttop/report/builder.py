"""From blocks of time to the Report."""

from __future__ import annotations

from typing import Final

import msgspec

from agenttop import __version__
from agenttop.errors import UserError
from agenttop.model.vocabulary import MEASURES
from agenttop.report import model
from agenttop.report.question_data import Data
from agenttop.report.questions import QUESTIONS
from agenttop.report.time_blocks import Blocks
from agenttop.stats.before_after import point
from agenttop.store.snapshot_builder import Named
from agenttop.text.figures import clean_all

#: Agents that are named.
MOST_AGENTS: Final = 64
#: Signs of a text.
LONGEST: Final = 4000


def build(blocks: Blocks, source: str) -> model.Report:
    """Every question's answer. Raises UserError when there is no block of time at all."""
    if not blocks.blocks or blocks.last is None or blocks.host is None:
        raise UserError("too short: not a single interval between two samples was measured")
    host = blocks.host
    data = Data(host, blocks.blocks, blocks.known, blocks.above_known, blocks.last, blocks.labels)
    start = data.blocks[0].start_ns
    steps = {agent: sum(row.steps for row in data.rows([agent])) for agent in data.agents()}
    made = sum(steps.values())
    chains = data.no_chains is None
    unattributed = sum(row.unattributed for row in data.rows(list(steps)))
    report = model.Report(
        schema=model.SCHEMA_NAME,
        version=model.SCHEMA_VERSION,
        program=__version__,
        source=source,
        wall_s=blocks.last.wall_s,
        seconds=data.seconds,
        blocks=len(data.blocks),
        block_s=blocks.block_ns / 1e9,
        host=model.Host(host.name, host.kernel, host.cpus, host.level, host.mode, host.missing),
        trust=model.Trust(
            steps=made,
            lost=sum(block.lost for block in data.blocks),
            unattributed_ratio=unattributed / made if made else None,
            self_ratio=sum(block.self_ns for block in data.blocks) / (data.seconds * 1e9),
            slots_full=max(block.slots_full for block in data.blocks),
        ),
        agents=[
            model.Agent(
                agent & 0xFFFFFFFF,
                known.name[:64],
                known.pid,
                known.background,
                count,
            )
            for agent, count in list(steps.items())[:MOST_AGENTS]
            if (known := data.known[agent]) is not None
        ],
        answers=[question(data) for question in QUESTIONS],
        trend=[_point(data, at, start) for at in range(len(data.blocks))] if chains else [],
    )
    return _cleaned(report)


def _cleaned(report: model.Report) -> model.Report:
    """Names of processes, devices and hosts are hostile: no format gets one that is not clean."""
    return msgspec.convert(clean_all(msgspec.to_builtins(report), LONGEST), model.Report)


def _point(data: Data, at: int, start_ns: int) -> model.Point:
    block = data.blocks[at]
    slow = block.counts.row(MEASURES.index("slowpath"))[None]
    return model.Point(
        start_s=(block.start_ns - start_ns) / 1e9,
        length_s=block.length_ns / 1e9,
        steps=sum(Named.of(row).steps for row in block.agents.values()),
        p50_ns=point(slow, "p50"),
        p99_ns=point(slow, "p99"),
        policies=None if block.on is None else sorted(block.on),
    )

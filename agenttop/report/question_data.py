"""What questions are answered from: the blocks of time, and who was in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from agenttop.model.sample import DetailCounters, Host, Sample
from agenttop.model.vocabulary import DETAILS, MEASURES
from agenttop.report.time_blocks import CAUSE_FIELDS, Block, Known
from agenttop.stats.histogram import BUCKETS
from agenttop.store.cause_sums import known_fields
from agenttop.store.snapshot_builder import SCALARS, Named
from agenttop.store.windows import Ints, Label
from agenttop.text.cause_labels import label_text


@dataclass(frozen=True, slots=True)
class Labelled:
    """A label of a cause."""

    cause: str
    text: str
    #: words.DETAILS; none: all labels beyond the limit.
    fields: Mapping[str, str | int | None]
    #: Shape (blocks, CAUSE_FIELDS and the sums of words.DETAILS).
    rows: Ints

    @property
    def steps(self) -> Ints:
        """Of each block, as the rest."""
        return self.rows[:, 0]

    @property
    def events(self) -> Ints:
        return self.rows[:, 1]

    @property
    def ns(self) -> Ints:
        return self.rows[:, 2]

    def sums(self, name: str) -> Ints:
        """One of those of words.DETAILS."""
        return self.rows[:, CAUSE_FIELDS + DETAILS[self.cause].sums.index(name)]


@dataclass(slots=True)
class Data:
    """What questions are answered from."""

    host: Host
    blocks: list[Block]
    known: dict[int, Known]
    above_known: bool
    newest: Sample
    #: Labels of causes, and what they are.
    known_labels: Mapping[Label, DetailCounters] = field(default_factory=dict)

    def agents(self) -> list[int]:
        """All, those with the most steps first."""
        steps: Counter[int] = Counter()
        for block in self.blocks:
            for agent, row in block.agents.items():
                steps[agent] += Named.of(row).steps
        return [agent for agent, _ in steps.most_common()]

    def foreground(self) -> list[int]:
        """Without those in the background."""
        return [agent for agent in self.agents() if not self.known[agent].background]

    def rows(self, agents: Sequence[int]) -> list[Named]:
        """These agents' scalars together, one for each block."""
        empty = np.zeros(SCALARS, dtype=np.int64)
        return [
            Named.of(
                np.sum([block.agents[a] for a in agents if a in block.agents] or [empty], axis=0)
            )
            for block in self.blocks
        ]

    def counts(self, measure: str) -> Ints:
        """Of the agents in the foreground, shape (blocks, BUCKETS)."""
        row = MEASURES.index(measure)
        return np.array([block.counts.row(row) for block in self.blocks]).reshape(-1, BUCKETS)

    def observed(self, cause: str) -> list[int]:
        """Places of the blocks in all of which a cause was observed."""
        return [at for at, block in enumerate(self.blocks) if cause in block.observed]

    def labels(self, cause: str) -> list[Labelled]:
        """A cause by its labels, the most time first, in the blocks in which it was observed.

        Of the agents in the foreground; of all, if none of them made a step.
        """
        alone = not any(Named.of(row).steps for row in self._foreground_rows())
        blocks = [self.blocks[at] for at in self.observed(cause)]
        width = CAUSE_FIELDS + len(DETAILS[cause].sums)
        found: dict[Label, Ints] = {}
        for at, block in enumerate(blocks):
            for background, labels in block.labels.items():
                for label, sums in labels.items():
                    if label[0] == cause and (alone or not background) and len(sums) == width:
                        empty = np.zeros((len(blocks), width), dtype=np.int64)
                        found.setdefault(label, empty)[at] += sums
        out = []
        for label, rows in found.items():
            one = self.known_labels.get(label)
            fields = known_fields(cause, one.label) if one is not None else {}
            out.append(Labelled(cause, label_text(cause, fields), fields, rows))
        return sorted(out, key=lambda one: (-int(one.ns.sum()), one.text))

    def _foreground_rows(self) -> Iterator[Ints]:
        chosen = self.foreground()
        for block in self.blocks:
            yield from (block.agents[agent] for agent in chosen if agent in block.agents)

    @property
    def seconds(self) -> float:
        return sum(block.length_ns for block in self.blocks) / 1e9

    @property
    def no_chains(self) -> str | None:
        """Why no step chains were measured, or None."""
        return self.host.missing.get("chains")

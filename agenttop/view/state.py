"""What the screen shows: one state, changed by the screen alone, read by every panel."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from agenttop.model.sample import Effect, Event, Exemplar, Host, PolicyStatus, Sample
from agenttop.model.snapshot import Agent, Cpu, Snapshot
from agenttop.model.vocabulary import TARGETS_NS
from agenttop.render.columns import named_rows, ordered
from agenttop.store.store import Marker, TrendPoint
from agenttop.store.toggles import History
from agenttop.view.appearance import Appearance
from agenttop.view.options import ViewOptions
from agenttop.view.trials import Trials

#: The slowpath may take what its stages may take together.
SLOWPATH_TARGET_NS: Final = (
    TARGETS_NS["irq"] + TARGETS_NS["softirq"] + TARGETS_NS["run"] + TARGETS_NS["return"]
)


class Data(Protocol):
    """What the screen needs of the store."""

    def feed(self, sample: Sample) -> None: ...
    def set_view_cpu(self, ns: int) -> None: ...
    def snapshot(
        self, window_ns: int | None = None, since_ns: int | None = None
    ) -> Snapshot | None: ...
    def trend(self, agent_id: int) -> Sequence[TrendPoint]: ...
    @property
    def markers(self) -> Sequence[Marker]: ...
    @property
    def events(self) -> deque[Event]: ...
    @property
    def history(self) -> History: ...


class TableRow(NamedTuple):
    """A row of the agents table."""

    #: Place of the agent in View.agents.
    place: int
    agent: Agent
    #: It is one name of the agent's steps (columns.named_rows).
    named: bool


@dataclass
class View:
    """Everything that a panel may read."""

    data: Data
    options: ViewOptions
    appearance: Appearance
    snapshot: Snapshot | None = None
    #: The agents shown: filtered and sorted.
    agents: list[Agent] = field(default_factory=list)
    #: Id of the selected agent, and its row.
    selected: int | None = None
    cursor: int = 0
    sort: str = "slow_p99"
    inverted: bool = False
    filter: str = ""
    search: str = ""
    #: Key of the column whose meaning is told.
    column: str = "slow_p99"
    cpu: int = 0
    policy: int = 0
    stage: int = 0
    exemplar: int = 0
    paused: bool = False
    since_toggle: bool = False
    bpf_stats: bool = False
    #: The table shows the names of each agent's steps.
    by_name: bool = False
    delay_s: float = 1.0
    #: Age of what is shown, ns; kept by the screen.
    age_ns: int = 0
    #: Heat history of each CPU: (irq + softirq share) per Sample, newest last.
    heat: dict[int, list[float | None]] = field(default_factory=dict)
    trials: Trials = field(default_factory=Trials)

    @property
    def agent(self) -> Agent | None:
        """The selected agent."""
        if self.snapshot is None:
            return None
        return next((a for a in self.snapshot.agents if a.id == self.selected), None)

    @property
    def table(self) -> list[TableRow]:
        """The rows of the agents table."""
        rows = []
        for index, agent in enumerate(self.agents):
            rows.append(TableRow(index, agent, False))
            if self.by_name:
                rows += [TableRow(index, row, True) for row in named_rows(agent)]
        return rows

    @property
    def host(self) -> Host | None:
        return self.snapshot.host if self.snapshot else None

    @property
    def cpus(self) -> list[Cpu]:
        return self.snapshot.cpus if self.snapshot else []

    @property
    def policies(self) -> list[PolicyStatus]:
        return self.snapshot.policies if self.snapshot else []

    @property
    def held_by(self) -> int | None:
        """Process of another agenttop that holds policies (0: not known which)."""
        return self.snapshot.policies_held_by if self.snapshot else None

    @property
    def exemplars(self) -> list[Exemplar]:
        """Slowest recent steps of the selected agent, slowest first."""
        if self.snapshot is None:
            return []
        return [e for e in self.snapshot.exemplars if e.agent == self.selected]

    @property
    def stale(self) -> bool:
        """Older than three delays: the figures may no longer hold."""
        return not self.paused and self.age_ns > 3 * self.delay_s * 1e9

    def effect(self, policy: str) -> Effect | None:
        """What the policy's last toggle changed for the selected agent."""
        if self.selected is None:
            return None
        return self.data.history.effect(policy, self.selected)

    # ------------------------------------------------------------------ which agent

    def pick(self) -> None:
        """Filter and sort anew; the selection stays with its agent, or else with its row."""
        if self.snapshot is None:
            return
        agents = [agent for agent in self.snapshot.agents if matches(agent, self.filter)]
        self.agents = ordered(agents, self.sort, self.inverted)
        ids = [agent.id for agent in self.agents]
        if self.selected in ids:
            self.cursor = ids.index(self.selected)
        else:
            self.select(min(self.cursor, max(len(ids) - 1, 0)))

    def select(self, row: int) -> None:
        """The agent in this row."""
        before = self.selected
        self.cursor = row
        self.selected = self.agents[row].id if 0 <= row < len(self.agents) else None
        if self.selected != before:
            self.exemplar = 0

    def find(self, start: int) -> None:
        """Select the first agent that matches the search, from that row on."""
        for offset in range(len(self.agents)):
            row = (start + offset) % len(self.agents)
            if matches(self.agents[row], self.search):
                self.select(row)
                return

    # ------------------------------------------------------------------ what is told

    def reason(self, group: str) -> str:
        """Why something is N/A here."""
        host = self.host
        missing = host.missing if host else {}
        return missing.get(group) or missing.get("chains") or ""

    def name_of(self, agent_id: int) -> str:
        if self.snapshot:
            for agent in self.snapshot.agents:
                if agent.id == agent_id:
                    return agent.name
        return "?"


def matches(agent: Agent, text: str) -> bool:
    """Does an agent's name, pid or rule contain the text (without regard to case)?"""
    text = text.casefold()
    return (
        not text
        or text in agent.name.casefold()
        or text in agent.rule.casefold()
        or text in map(str, agent.pids)
        or text == str(agent.pid)
    )

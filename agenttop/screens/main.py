"""The main screen: puts the panels where they fit, and turns keys into changes of the View."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.events import Key, Resize
from textual.message import Message
from textual.screen import Screen
from textual.widget import Widget

from agenttop.errors import UserError
from agenttop.model.sample import Command, Sample
from agenttop.model.snapshot import Snapshot
from agenttop.model.vocabulary import STAGES
from agenttop.policies.bundles import load_all
from agenttop.render.columns import COLUMNS
from agenttop.screens.help import help_rows
from agenttop.screens.keys import BINDINGS, FOOTER, RESERVED
from agenttop.screens.popup import Popup
from agenttop.text.figures import clean
from agenttop.view import switching
from agenttop.view.layout import LEAST, PANELS, Plan, plan
from agenttop.view.state import View, matches
from agenttop.view.trials import refusal
from agenttop.widgets import bundle_rows as bundles
from agenttop.widgets import cause_rows as causes
from agenttop.widgets import detail_rows
from agenttop.widgets.agents import Agents
from agenttop.widgets.chain import Chain
from agenttop.widgets.cpus import Cpus
from agenttop.widgets.footer import Footer
from agenttop.widgets.header import Header
from agenttop.widgets.panel import Panel
from agenttop.widgets.policies import Policies
from agenttop.widgets.slowest import Slowest
from agenttop.widgets.too_small import Notice
from agenttop.widgets.trend import Trend

#: Keys after which letters are text.
_ASKING = {"slash": "search", "backslash": "filter", "f4": "filter"}
#: How long an event stands in the footer, s.
MESSAGE_S = 5.0
DELAYS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

_ROLES = {"policy": "marker", "agent": "accent", "warning": "warn", "error": "alarm"}


class Main(Screen[None]):
    """Agents above; the selected one's chain, slowest steps, CPUs, trend and policies below."""

    CSS = """
    Main { layout: vertical; overflow: hidden; }
    #body { height: 1fr; }
    #left, #right { width: 1fr; height: 100%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = list(BINDINGS)
    AUTO_FOCUS = None

    class Reconsider(Message):
        """Another Snapshot is wanted: the pause has ended, or the interval is another one."""

    def __init__(self, view: View, send: Callable[[Command], None]) -> None:
        super().__init__()
        self.view = view
        self._send = send
        self._panel = "chain"
        self._active = "agents"
        self._plan: Plan | None = None
        events = view.data.events
        self._event_seen: Any = events[-1] if events else None
        self._quiet_at = 0.0

        self.notice = Notice(view, id="notice")
        self.header = Header(view, id="header")
        self.agents = Agents(view, id="agents")
        self.chain = Chain(view, id="chain")
        self.slowest = Slowest(view, id="slowest")
        self.cpus = Cpus(view, id="cpus")
        self.trend = Trend(view, id="trend")
        self.compare = Trend(view, id="compare", compare=True)
        self.policies = Policies(view, id="policies")
        self.footer = Footer(view, id="footer")
        self.footer.hints = FOOTER
        self.agents.active = True
        self._left = (self.chain, self.slowest)
        self._right = (self.trend, self.compare)
        self._bottom = (self.cpus, self.policies)
        self._panels: tuple[Panel, ...] = (
            *(
                self.notice,
                self.header,
                self.agents,
                *self._left,
                *self._right,
                *self._bottom,
                self.footer,
            ),
        )
        # Kept, not looked up: a Sample or a resize may come when the screen is being taken down.
        self._body = Horizontal(id="body")
        self._left_column, self._right_column = Vertical(id="left"), Vertical(id="right")
        self._bottom_row = Horizontal(id="bottom")
        self._by_id = {panel.id: panel for panel in self._panels}

    def compose(self) -> ComposeResult:
        yield self.notice
        yield self.header
        yield self.agents
        with self._body:
            with self._left_column:
                yield from self._left
            with self._right_column:
                yield from self._right
        with self._bottom_row:
            yield from self._bottom
        yield self.footer

    def on_mount(self) -> None:
        if self.view.snapshot is not None:
            self.show(self.view.snapshot)

    def on_resize(self, event: Resize) -> None:
        self._arrange()

    def panel(self, name: str) -> Panel:
        """A panel by its id."""
        return self._by_id[name]

    # ------------------------------------------------------------------ what is shown

    def show(self, snapshot: Snapshot) -> None:
        """Show another Snapshot."""
        self.view.snapshot = snapshot
        self.view.pick()
        self._tell_events()
        self._arrange()
        self.update_panels()

    def update_panels(self) -> None:
        """Have each panel draw what has changed."""
        if self._quiet_at and time.monotonic() >= self._quiet_at:
            self._quiet_at = 0.0
            self.footer.tell("", "")
        for panel in self._panels:
            panel.sync()

    def update_age(self, age_ns: int) -> None:
        """The sample has grown older without another one."""
        self.view.age_ns = age_ns
        self.header.sync()

    def repaint(self) -> None:
        """Draw everything anew, for instance in another theme."""
        for panel in self._panels:
            panel.repaint()

    def tell(self, text: str, kind: str = "info") -> None:
        """A line for the reader, in the footer for some seconds."""
        self.footer.tell(text, _ROLES.get(kind, "text"))
        self._quiet_at = time.monotonic() + MESSAGE_S
        self.set_timer(MESSAGE_S + 0.05, self.update_panels)

    def _tell_events(self) -> None:
        events = self.view.data.events
        if not events or events[-1] is self._event_seen:
            return
        event = self._event_seen = events[-1]
        self.tell(event.text, event.kind)

    # ------------------------------------------------------------------ where it stands

    def _arrange(self) -> None:
        view = self.view
        width, height = self.size
        wanted = plan(
            width,
            height,
            self.header.wanted_height(height),
            max(len(view.snapshot.agents), len(view.table)) if view.snapshot else 0,
            len(view.cpus),
            len(view.policies),
            self._panel,
        )
        if wanted == self._plan or not self.is_mounted:
            return
        self._plan = wanted
        self.notice.display = wanted.too_small
        for panel, rows in ((self.header, wanted.header), (self.agents, wanted.agents)):
            panel.display = rows > 0
            panel.styles.height = rows
        heights = wanted.heights
        places: tuple[tuple[Widget, tuple[Panel, ...]], ...] = (
            (self._left_column, self._left),
            (self._right_column, self._right),
            (self._bottom_row, self._bottom),
        )
        self._bottom_row.styles.height = max((n for _, n in wanted.bottom), default=0)
        for column, panels in places:
            for below in panels:
                below.display = below.id in heights
                below.styles.height = heights.get(str(below.id), 0)
            column.display = any(p.id in heights for p in panels)
        self._body.display = bool(wanted.left or wanted.right)
        self._left_right(width)
        self.footer.display = not wanted.too_small
        if self._active != "agents" and self._active not in heights:
            self._activate("agents")

    def _left_right(self, width: int) -> None:
        """The chain needs 66 cells; CPUs with their history are wide too."""
        assert self._plan is not None
        both = bool(self._plan.left and self._plan.right)
        self._left_column.styles.width = max(66, width // 2) if both else "1fr"
        pair = len(self._plan.bottom) == 2
        self.cpus.styles.width = max(66, width * 3 // 5) if pair else "1fr"

    def _activate(self, name: str) -> None:
        self._active = name
        for panel in self._panels:
            panel.active = panel.id == name

    # ------------------------------------------------------------------ keys

    def on_key(self, event: Key) -> None:
        """The policies' own keys."""
        if self.footer.asking:
            # Typed ahead of the prompt: a name's letters must not switch policies.
            self.footer.on_key(event)
            return
        if kind := _ASKING.get(event.key):
            # Now, not when the key has bubbled to its binding, behind what was typed after it.
            event.stop()
            event.prevent_default()
            self.action_ask(kind)
            return
        character = event.character
        if not character or character in RESERVED:
            return
        for index, policy in enumerate(self.view.policies):
            if policy.key == character:
                event.stop()
                event.prevent_default()
                self.view.policy = index
                self.tell(*switching.toggle(self.view, policy, self._send))
                self.update_panels()
                return

    def sampled(self, sample: Sample) -> None:
        """The store has had another Sample: a trial goes on."""
        if text := self.view.trials.take(sample, self.view.data.history):
            self.tell(text, "policy")

    def action_trial(self) -> None:
        """Start a trial of the selected policy, or end the one that runs."""
        view = self.view
        if view.policies:
            policy = view.policies[min(view.policy, len(view.policies) - 1)]
            why_not = refusal(policy, view.host, view.options.readonly)
            self.tell(*view.trials.press(policy, view.policies, why_not, self._send))
        self.update_panels()

    def action_bundles(self) -> None:
        """Choose a bundle: on, or off if all of it is on."""
        view = self.view
        try:
            found = list(load_all().values())
        except UserError as error:
            self.tell(str(error), "error")
            return

        def chosen(index: int | None) -> None:
            if index is None:
                return
            self.tell(*switching.toggle_bundle(view, found[index], self._send))
            self.update_panels()

        def rows(width: int) -> list[Any]:
            return bundles.bundle_rows(view, found, width)

        self.app.push_screen(
            Popup(view, "Bundles", rows, width=100, choices=len(found), also_closes="B"), chosen
        )

    def action_causes(self) -> None:
        """Choose which causes are observed, and see those of the selected agent."""
        view = self.view
        if view.snapshot is None or not view.snapshot.cause_states:
            self.tell("causes: N/A without step chains", "warning")
            return

        def chosen(index: int | None) -> None:
            if index is not None:
                name = causes.CHOICES[index][0]
                self._send(Command("causes", name=name))
                self.tell(f"causes: {name}", "policy")

        def rows(width: int) -> list[Any]:
            return causes.cause_rows(view, width)

        self.app.push_screen(
            Popup(view, "Causes", rows, width=100, choices=len(causes.CHOICES), also_closes="C"),
            chosen,
        )

    def action_move(self, rows: int) -> None:
        view = self.view
        if self._active == "cpus":
            view.cpu = min(max(view.cpu + rows, 0), max(len(view.cpus) - 1, 0))
        elif self._active == "policies":
            view.policy = min(max(view.policy + rows, 0), max(len(view.policies) - 1, 0))
        elif self._active == "chain":
            view.stage = min(max(view.stage + rows, 0), len(STAGES) - 1)
        elif self._active == "slowest":
            self.action_exemplar(rows)
        elif view.agents:
            view.select(min(max(view.cursor + rows, 0), len(view.agents) - 1))
        self.update_panels()

    def action_page(self, pages: int) -> None:
        table = self.panel(self._active)
        self.action_move(pages * max(table.size.height - 4, 1))

    def action_column(self, step: int) -> None:
        keys = self.agents.shown_columns()
        at = keys.index(self.view.column) if self.view.column in keys else 0
        self.view.column = keys[(at + step) % len(keys)]
        self._activate("agents")
        self.update_panels()

    def action_exemplar(self, step: int) -> None:
        view = self.view
        view.exemplar = min(max(view.exemplar + step, 0), max(len(view.exemplars) - 1, 0))
        self.update_panels()

    def action_panel(self, index: int) -> None:
        """Give a panel the arrows, and show it where there is room for one only."""
        name = PANELS[index]
        self._panel = name
        self._arrange()
        self._activate(name if self._active != name else "agents")
        self.update_panels()

    def action_next_panel(self, step: int) -> None:
        order = ["agents", *PANELS]
        at = order.index(self._active) if self._active in order else 0
        name = order[(at + step) % len(order)]
        if name != "agents":
            self._panel = name
        self._arrange()
        self._activate(name if self.panel(name).display else "agents")
        self.update_panels()

    def action_ask(self, kind: str) -> None:
        self.footer.ask(kind, self.view.filter if kind == "filter" else "")

    def on_footer_typed(self, typed: Footer.Typed) -> None:
        view = self.view
        if typed.kind == "filter":
            view.filter = typed.text if typed.accepted else ""
            self.view.pick()
        elif typed.accepted and typed.text:
            view.search = typed.text
            view.find(view.cursor)
        elif typed.accepted and typed.done and view.search:
            # Enter alone: the next one of what was searched before.
            view.find(view.cursor + 1)
        self.update_panels()

    def action_clear(self) -> None:
        view = self.view
        if text := view.trials.cancel():
            self.tell(text, "policy")
            self.update_panels()
            return
        view.filter = view.search = ""
        self._activate("agents")
        self.view.pick()
        self.update_panels()

    def action_sort(self, step: int) -> None:
        keys = self.agents.shown_columns()
        at = keys.index(self.view.sort) if self.view.sort in keys else 0
        self._sort_by(keys[(at + step) % len(keys)])

    def action_invert(self) -> None:
        self.view.inverted = not self.view.inverted
        self.view.pick()
        self.update_panels()

    def action_sort_menu(self) -> None:
        view = self.view
        keys = list(COLUMNS)

        def chosen(index: int | None) -> None:
            if index is not None:
                self._sort_by(keys[index])

        self.app.push_screen(
            Popup(
                view,
                "Sort by",
                lambda width: detail_rows.sort_rows(view, width),
                choices=len(keys),
                at=keys.index(view.sort),
                also_closes="f6",
            ),
            chosen,
        )

    def _sort_by(self, key: str) -> None:
        view = self.view
        view.inverted = not view.inverted if view.sort == key else False
        view.sort = view.column = key
        self.view.pick()
        self.update_panels()

    def action_pause(self) -> None:
        self.view.paused = not self.view.paused
        self.update_panels()
        self.post_message(self.Reconsider())

    def action_by_name(self) -> None:
        view = self.view
        if not view.by_name and not any(agent.steps_by_name for agent in view.agents):
            self.tell("no step has a name: programs give them by agenttop.step", "warning")
            return
        view.by_name = not view.by_name
        self._arrange()
        self.update_panels()

    def action_since_toggle(self) -> None:
        view = self.view
        if not view.data.markers:
            self.tell("no policy has been switched yet", "warning")
            return
        view.since_toggle = not view.since_toggle
        self.post_message(self.Reconsider())

    def action_delay(self, step: int) -> None:
        view = self.view
        nearest = min(range(len(DELAYS)), key=lambda i: abs(DELAYS[i] - view.delay_s))
        view.delay_s = DELAYS[min(max(nearest + step, 0), len(DELAYS) - 1)]
        self._send(Command("delay", seconds=view.delay_s))
        self.tell(f"{view.delay_s:g} s between samples")

    def action_bpf_stats(self) -> None:
        self.view.bpf_stats = not self.view.bpf_stats
        self._send(Command("bpf_stats", on=self.view.bpf_stats))
        state = "is measured (about 30 ns a run)" if self.view.bpf_stats else "is not measured"
        self.tell(f"the BPF programs' own time {state}")

    def action_details(self) -> None:
        view = self.view
        if self._active == "policies":
            self.action_plan()
            return
        agent = view.agent
        if agent is None:
            return
        picked = agent.id

        def rows(width: int) -> list[Any]:
            found = next((a for a in view.agents if a.id == picked), agent)
            return detail_rows.agent_rows(view, found, width)

        title = f"{clean(agent.name, 32)} (pid {agent.pid})"
        self.app.push_screen(Popup(view, title, rows, also_closes="enter"))

    def action_plan(self) -> None:
        view = self.view
        if not view.policies:
            return
        name = view.policies[min(view.policy, len(view.policies) - 1)].name

        def rows(width: int) -> list[Any]:
            policy = next((p for p in view.policies if p.name == name), None)
            return detail_rows.policy_rows(view, policy, width) if policy else []

        # The engine works a plan out only while somebody looks at it.
        self._send(Command("plan", name=name, on=True))
        self.app.push_screen(
            Popup(view, f"Policy {clean(name, 24)}", rows, also_closes="l"),
            lambda _: self._send(Command("plan", name=name, on=False)),
        )

    def action_help(self) -> None:
        view = self.view
        self.app.push_screen(
            Popup(
                view,
                "Keys and words",
                lambda width: help_rows(view, width),
                also_closes="question_mark,f1,h",
            )
        )

    # ------------------------------------------------------------------ mouse

    def on_agents_picked(self, message: Agents.Picked) -> None:
        self._activate("agents")
        self.view.select(message.index)
        self.update_panels()

    def on_agents_sort_by(self, message: Agents.SortBy) -> None:
        self._sort_by(message.key)

    def on_agents_scrolled(self, message: Agents.Scrolled) -> None:
        self._activate("agents")
        self.action_move(message.rows)


__all__ = ["LEAST", "Main", "matches"]

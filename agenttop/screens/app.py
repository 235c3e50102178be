"""The live screen as a Textual application: reads a source of Samples, shows Snapshots.

The source is read on the event loop when it has something to say, one Snapshot
is made per reading, and while the screen is held or the terminal is behind the
reading goes on. Nothing here is polled but the age of what is shown.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from textual.app import App
from textual.events import Resize
from textual.theme import BUILTIN_THEMES
from textual.theme import Theme as TextualTheme

from agenttop.config import output_file, theme_file
from agenttop.errors import UserError
from agenttop.flight import perfetto_trace
from agenttop.flight.breach_watch import Watcher
from agenttop.flight.recorder import Flight
from agenttop.model.sample import Command, Failure, Message, Sample
from agenttop.model.snapshot import Snapshot
from agenttop.render.columns import COLUMNS, GAP, sort_key
from agenttop.screens.main import Main
from agenttop.screens.picture import picture
from agenttop.screens.popup import Popup
from agenttop.screens.terminal_driver import Terminal
from agenttop.store.cpu_heat import HeatHistory
from agenttop.store.toggles import attach
from agenttop.stream.framing import StreamError
from agenttop.text.figures import clean
from agenttop.view.appearance import Appearance
from agenttop.view.options import ViewOptions
from agenttop.view.state import Data, View

#: With so many writes that the terminal has not taken, a tick is not drawn.
BACKLOG: Final = 4
AGE_TICK_S: Final = 1.0
#: Slow steps and counters of this long are there for a trace.
FLIGHT_S: Final = 600.0
#: Textual alone would die of them without restoring the terminal.
SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Source(Protocol):
    """Where Samples come from: the engine, a recording, another host, or a test."""

    def fileno(self) -> int: ...

    def read(self) -> Sequence[Message]:
        """What has come since the last call, without waiting."""
        ...

    def send(self, command: Command) -> None: ...

    def close(self) -> None: ...


class AgentTop(App[None]):
    """The application. ``source`` None shows what the store has and takes nothing more."""

    TITLE = "agenttop"
    ENABLE_COMMAND_PALETTE = False
    CSS = "Screen { background: $background; }"

    def __init__(
        self,
        data: Data,
        source: Source | None,
        options: ViewOptions,
        *,
        snapshot: Snapshot | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        driver_class: type[Any] | None = Terminal,
    ) -> None:
        """Raises UserError for an unknown theme or sort key."""
        self._theme_names = list(theme_file.available())
        first = theme_file.load(options.theme or theme_file.DEFAULT)
        sort, inverted = sort_key(options.sort)
        super().__init__(driver_class=driver_class)
        self.source = source
        self.data = data
        self._clock = clock
        self._arrived_ns = clock()
        self._heat = HeatHistory()
        self._flight = Flight(FLIGHT_S)
        breach = options.breach
        self._watcher = None if breach is None else Watcher(breach, options.delay_s)
        self.view = View(
            data=data,
            options=options,
            appearance=Appearance(first, options.ascii_only, self.no_color),
            snapshot=snapshot,
            sort=sort,
            inverted=inverted,
            column=sort,
            delay_s=options.delay_s,
        )
        self.view.heat = self._heat.by_cpu
        #: What the user is told after the screen has gone, and the exit code.
        self.failure: str | None = None
        self.exit_code = 0
        self._main = Main(self.view, self._send)
        self._use(first)

    # ------------------------------------------------------------------ life

    def get_default_screen(self) -> Main:
        return self._main

    def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            try:
                loop.add_signal_handler(number, self._signalled, number)
            except (ValueError, RuntimeError):
                pass  # not in the main thread: then somebody else handles signals
        if self.source is not None:
            loop.add_reader(self.source.fileno(), self._readable)
            self.set_interval(AGE_TICK_S, self._grow_older)
        if self.view.options.for_s is not None:
            self.set_timer(self.view.options.for_s, self.exit)

    def on_unmount(self) -> None:
        loop = asyncio.get_running_loop()
        if self.source is not None:
            loop.remove_reader(self.source.fileno())
        for number in SIGNALS:
            try:
                loop.remove_signal_handler(number)
            except (ValueError, RuntimeError):
                pass

    def _signalled(self, number: int) -> None:
        self.exit_code = 128 + number
        self.exit()

    def on_resize(self, event: Resize) -> None:
        # What a terminal shows after a resize is its own affair: begin anew.
        if isinstance(self._driver, Terminal):
            self._driver.write("\x1b[2J")

    # ------------------------------------------------------------------ the stream

    def _send(self, command: Command) -> None:
        if self.source is None:
            return
        try:
            self.source.send(command)
        except (OSError, ValueError) as error:
            self._fail(f"the engine does not answer: {error}")

    def _readable(self) -> None:
        assert self.source is not None
        try:
            messages = self.source.read()
        except (UserError, OSError, EOFError, StreamError) as error:
            self._fail(str(error) or "the engine has ended")
            return
        news = False
        for message in messages:
            if isinstance(message, Sample):
                self.data.set_view_cpu(time.process_time_ns())
                self.data.feed(message)
                self._main.sampled(message)
                self._heat.feed(message)
                self._flight.feed(message, self.data)
                if self._watcher is not None:
                    self.data.events.extend(self._watcher.take(message, self.data, self._send))
                news = True
            elif isinstance(message, Failure):
                self._fail(message.text)
                return
        if news:
            self._arrived_ns = self._clock()
            if not self.view.paused:
                self.reconsider()

    def _fail(self, text: str) -> None:
        """The stream is over: leave, and say why on the terminal that is then restored."""
        if self.source is not None:
            asyncio.get_running_loop().remove_reader(self.source.fileno())
        self.failure = clean(text, 300)
        self.exit_code = 2
        self.exit()

    def reconsider(self) -> None:
        """Make a Snapshot of what is there now and show it."""
        if isinstance(self._driver, Terminal):
            if self._driver.backlog > BACKLOG:
                return
            if self._driver.dropped:
                self._driver.dropped = False
                self.action_redraw()
        since = None
        markers = self.data.markers
        if self.view.since_toggle and markers:
            since = markers[-1].t_ns
        snapshot = self.data.snapshot(since_ns=since)
        if snapshot is not None:
            self.view.age_ns = self._age(snapshot)
            self._main.show(snapshot)
            if isinstance(self.screen, Popup):
                self.screen.sheet.sync()

    def on_main_reconsider(self) -> None:
        if not self.view.paused:
            self.reconsider()

    def _age(self, snapshot: Snapshot) -> int:
        return max(self._clock() - self._arrived_ns, 0) + snapshot.trust.sample_age_ns

    def _grow_older(self) -> None:
        if isinstance(self._driver, Terminal) and self._driver.gone:
            self._signalled(signal.SIGHUP)
        elif self.view.snapshot is not None:
            age_ns = max(self._clock() - self._arrived_ns, 0)
            if age_ns > 1.5e9 * self.view.delay_s and not self.view.paused:
                self._main.update_age(age_ns)

    # ------------------------------------------------------------------ what is said and written

    def action_theme(self) -> None:
        """The next theme; one that is broken is told and passed over."""
        names = self._theme_names
        at = names.index(self.view.appearance.theme.name) if self._in_list() else -1
        for step in range(1, len(names) + 1):
            name = names[(at + step) % len(names)]
            try:
                theme = theme_file.load(name)
            except UserError as error:
                self._main.tell(str(error), "error")
                continue
            self._use(theme)
            self.view.appearance = Appearance(theme, self.view.options.ascii_only, self.no_color)
            self._main.repaint()
            self._main.tell(f"theme {theme.title} ({name})")
            return

    def _in_list(self) -> bool:
        return self.view.appearance.theme.name in self._theme_names

    def _use(self, theme: theme_file.Theme) -> None:
        """Tell Textual the ground: all else is painted by the panels themselves."""
        looks = theme.looks

        def css(role: str) -> str:
            color = looks[role].color or "default"
            return color if color.startswith("#") else f"ansi_{color}"

        name = f"agenttop-{theme.name}"
        self.register_theme(
            TextualTheme(
                name=name,
                primary=css("accent"),
                foreground=css("text"),
                background=css("background"),
                surface=css("background"),
                panel=css("background"),
                warning=css("warn"),
                error=css("alarm"),
                success=css("good"),
                dark=theme.dark,
                ansi=theme.terminal_colors,
                # Textual's own style sheets ask for more names in such a theme.
                variables=BUILTIN_THEMES["ansi-dark"].variables if theme.terminal_colors else {},
            )
        )
        self.theme = name

    def action_redraw(self) -> None:
        if isinstance(self._driver, Terminal):
            self._driver.write("\x1b[2J")
        self._main.repaint()
        self.screen.refresh(layout=True)

    def action_copy(self) -> None:
        """The selected agent's figures, by OSC 52."""
        agent = self.view.agent
        if agent is None:
            self._main.tell("no agent is selected", "warning")
            return
        line = (" " * GAP).join(f"{c.label}={c.text(agent)}" for c in COLUMNS.values())
        self.copy_to_clipboard(line)
        self._main.tell(f"{clean(agent.name, 32)}: copied (where the terminal lets OSC 52 pass)")

    def action_export(self) -> None:
        """The snapshot as JSON, the screen as SVG, the slow steps as a trace: here."""
        snapshot = self.view.snapshot
        if snapshot is None:
            return
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(snapshot.wall_s))
        files = {
            ".json": msgspec.json.format(
                msgspec.json.encode(attach(snapshot, self.data.history.effect))
            ),
            ".svg": picture(self).encode(),
        }
        if self._flight.steps:
            files[perfetto_trace.SUFFIX] = perfetto_trace.trace(self._flight)
        try:
            stem = output_file.new_group(Path(), f"agenttop-{stamp}", files)
        except (OSError, UserError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self._main.tell(f"cannot write agenttop-{stamp}: {why}", "error")
            return
        where = clean(os.getcwd(), 120)
        kinds = ", ".join(suffix.rpartition(".")[2] for suffix in files)
        self._main.tell(f"wrote {stem} ({kinds}) in {where}", "agent")

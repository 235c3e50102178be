"""The keys of the main screen: one list that serves the screen, the footer and the help."""

from __future__ import annotations

from typing import Final

from textual.binding import Binding

_MOVE = Binding.Group("Move")
_FIND = Binding.Group("Find and sort")
_TIME = Binding.Group("Time")
_SHOW = Binding.Group("Show")
_POLICY = Binding.Group("Policies")
_OTHER = Binding.Group("agenttop")


def _key(
    key: str, action: str, name: str, text: str, tooltip: str, group: Binding.Group
) -> Binding:
    return Binding(key, action, text, id=f"main.{name}", tooltip=tooltip, group=group)


BINDINGS: Final = [
    _key("up,k", "move(-1)", "up", "up", "The row above (in the panel that is active)", _MOVE),
    _key("down,j", "move(1)", "down", "down", "The row below", _MOVE),
    _key("left", "column(-1)", "left", "left", "The column to the left: the frame tells it", _MOVE),
    _key("right", "column(1)", "right", "right", "The column to the right", _MOVE),
    _key("pageup", "page(-1)", "page_up", "page up", "One page up", _MOVE),
    _key("pagedown", "page(1)", "page_down", "page down", "One page down", _MOVE),
    _key("home", "move(-100000)", "home", "first", "First row", _MOVE),
    _key("end", "move(100000)", "end", "last", "Last row", _MOVE),
    _key("enter", "details", "details", "details", "Everything about the selected agent", _MOVE),
    _key("tab", "next_panel(1)", "next", "next panel", "Next panel (the arrows go there)", _SHOW),
    _key("shift+tab", "next_panel(-1)", "previous", "previous panel", "Previous panel", _SHOW),
    _key("1", "panel(0)", "chain", "chain", "The chain of the selected agent", _SHOW),
    _key("2", "panel(1)", "slowest", "slowest", "Its slowest recent steps", _SHOW),
    _key("3", "panel(2)", "cpus", "CPUs", "The CPUs", _SHOW),
    _key("4", "panel(3)", "trend", "trend", "The tail over time", _SHOW),
    _key("5", "panel(4)", "policies", "policies", "The policies", _SHOW),
    _key("n", "exemplar(1)", "next_step", "next", "The next slow step", _SHOW),
    _key("p", "exemplar(-1)", "previous_step", "previous", "The slow step before", _SHOW),
    _key("slash", "ask('search')", "search", "search", "Go to the next agent by name", _FIND),
    _key("backslash,f4", "ask('filter')", "filter", "filter",
         "Only agents whose name, pid or rule matches", _FIND),
    _key("escape", "clear", "clear", "clear", "Clear filter and search; back to the table", _FIND),
    _key("f6", "sort_menu", "sort", "sort", "Choose the column to sort by", _FIND),
    _key("less_than_sign", "sort(-1)", "sort_left", "sort left", "Sort by the one before", _FIND),
    _key("greater_than_sign", "sort(1)", "sort_right", "sort right", "Sort by the next column",
         _FIND),
    _key("s", "by_name", "by_name", "step names",
         "The agents' steps by name (of step markers) below them", _SHOW),
    _key("I", "invert", "invert", "invert", "Turn the order round", _FIND),
    _key("space,Z", "pause", "pause", "pause", "Hold the picture; measuring goes on", _TIME),
    _key("plus", "delay(1)", "slower", "longer delay", "Longer between samples", _TIME),
    _key("minus", "delay(-1)", "faster", "shorter delay", "Shorter between samples", _TIME),
    _key("L", "since_toggle", "since", "since toggle",
         "Figures since the last policy toggle, or over the window", _TIME),
    _key("e", "trial", "trial", "trial",
         "Try the policy fairly, on and off by chance; again: end it", _POLICY),
    _key("B", "bundles", "bundles", "bundles",
         "Choose a bundle: its policies go on or off together", _POLICY),
    _key("l", "plan", "plan", "plan", "Plan and changes of the selected policy", _POLICY),
    _key("C", "causes", "causes", "causes",
         "What stages were spent on: choose what is observed", _SHOW),
    _key("b", "bpf_stats", "bpf", "bpf cost", "Measure the BPF programs' own time", _OTHER),
    _key("x", "app.export", "export", "export", "Write JSON, SVG and Perfetto trace here", _OTHER),
    _key("c", "app.copy", "copy", "copy", "Copy the agent's figures by OSC 52", _OTHER),
    _key("t", "app.theme", "theme", "theme", "Next theme", _OTHER),
    _key("ctrl+l", "app.redraw", "redraw", "redraw", "Draw everything anew", _OTHER),
    _key("question_mark,f1,h", "help", "help", "help", "This list", _OTHER),
    _key("q,f10,ctrl+c", "app.quit", "quit", "quit", "Leave; policies are given back", _OTHER),
]  # fmt: skip

#: What the footer offers, most useful first: (key shown, action's id, word).
FOOTER: Final = (
    ("q", "quit"),
    ("?", "help"),
    ("/", "search"),
    ("\\", "filter"),
    ("F6", "sort"),
    ("Space", "pause"),
    ("Enter", "details"),
    ("1-5", "panel"),
    ("n/p", "slow step"),
    ("l", "plan"),
    ("e", "trial"),
    ("B", "bundles"),
    ("L", "since toggle"),
    ("s", "step names"),
    ("x", "export"),
    ("t", "theme"),
    ("c", "copy"),
)

_SHOWN: Final = {
    "slash": "/",
    "backslash": "\\",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "question_mark": "?",
    "plus": "+",
    "minus": "-",
    "space": "Space",
    "escape": "Esc",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "enter": "Enter",
    "shift+tab": "Shift+Tab",
    "ctrl+c": "Ctrl+C",
    "ctrl+l": "Ctrl+L",
    "tab": "Tab",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "home": "Home",
    "end": "End",
}


def shown(keys: str) -> str:
    """``slash,f4`` as a person says it: ``/ F4``."""
    return " ".join(
        _SHOWN.get(key, key.upper() if key[0] == "f" and key[1:].isdigit() else key)
        for key in keys.split(",")
    )


#: Single keys that policies cannot have (h may be one: help has others).
RESERVED: Final = frozenset(
    _SHOWN.get(key, key) for binding in BINDINGS for key in binding.key.split(",") if key != "h"
)

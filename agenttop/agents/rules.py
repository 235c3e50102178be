"""Which processes are agents: rules, and the process trees that they find.

An agent is the topmost process that matches a rule, with its descendants,
except those that match a different rule (an MCP server that a coding agent
started is an agent of its own). Kernel threads and this agenttop's own processes
(own_processes.py) never are; ``agenttop loop`` is, it exists to be measured.
"""

from __future__ import annotations

import os
import string
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from agenttop.agents.own_processes import is_own
from agenttop.agents.patterns import AnyProgram, Pattern
from agenttop.agents.program_names import Program, programs
from agenttop.config import yaml_document
from agenttop.errors import UserError
from agenttop.linux import paths, process
from agenttop.linux.process import ProcInfo, printable
from agenttop.linux.process_table import ProcessTable
from agenttop.linux.slices import whole

As = Literal["tree", "cgroup"]
#: What a label may hold in braces.
FIELDS: Final = ("program", "comm", "pid", "rule")
#: The rules that come with the program.
BUILTIN: Final = Path(__file__).with_name("builtin.yaml")


@dataclass(frozen=True, slots=True)
class Rule:
    """Processes that match any of ``patterns`` and none of ``unless`` are agents."""

    name: str
    patterns: tuple[Pattern, ...]
    unless: tuple[Pattern, ...] = ()
    #: Its agents matter less: policies may be bound to the others.
    background: bool = False
    #: tree: each topmost match is one agent; cgroup: all matches of a cgroup together are one.
    as_: As = "tree"
    #: How its agents are called, with {program}, {comm}, {pid}, {rule}; None: by the rule's name.
    label: str | None = None
    #: Only processes of these users (their real user id); empty: of anybody.
    users: tuple[Pattern, ...] = ()

    @property
    def chosen(self) -> bool:
        """Whether it holds by what nobody can fake: anybody may take a program's name."""
        return bool(self.users) or all(p.kind in ("pid", "user", "cgroup") for p in self.patterns)

    def matches(self, info: ProcInfo, names: list[Program]) -> bool:
        """Does the rule hold for this process, known by these names?"""
        return (
            any(p.matches(info, lambda: names) for p in self.patterns)
            and not any(p.matches(info, lambda: names) for p in self.unless)
            and (not self.users or any(p.matches(info, lambda: names) for p in self.users))
        )

    def group_of(self, info: ProcInfo) -> str | None:
        """For as_ "cgroup": the cgroup whose processes are one agent."""
        if self.as_ != "cgroup":
            return None
        for pattern in self.patterns:
            if path := pattern.cgroup_of(info):
                return path
        return info.cgroups[0] if info.cgroups else None

    def name_of(self, info: ProcInfo) -> str:
        """What its agent with this root process is called; fit to show."""
        if self.label is None:
            return printable(self.name, 32)
        names = programs(info.cmdline, info.comm)
        program = next((n for p in self.patterns if (n := p.program_of(names))), None)
        if program is None:
            program = next((n.name for n in reversed(names) if "/" not in n.name), info.comm)
        if not program.startswith("@"):
            # "weather-mcp/index.js": the project says more than its main script.
            program = program.partition("/")[0]
        values = {"program": program, "comm": info.comm, "pid": str(info.pid), "rule": self.name}
        shown = "".join(
            literal + (values[key] if key else "")
            for literal, key, _, _ in string.Formatter().parse(self.label)
        )
        return printable(shown.strip(), 32) or str(info.pid)


@dataclass(frozen=True, slots=True)
class Found:
    """An agent as the rules see it."""

    rule: Rule
    name: str
    #: The process at the root of the tree (as_ "cgroup": the oldest one).
    root: int
    #: Clock ticks after boot at which the root process started.
    starttime: int
    #: The processes in it, root first. From ExecFilter: the one that called exec.
    pids: tuple[int, ...]
    #: Set for as_ "cgroup".
    cgroup: str | None = None

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Equal for two Founds that mean the same agent."""
        if self.cgroup is not None:
            return (self.rule.name, self.cgroup, 0, 0)
        return (self.rule.name, "", self.root, self.starttime)


class _RuleSpec(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    match: str | list[str]
    unless: str | list[str] = msgspec.field(default_factory=list)
    background: bool = False
    as_: As = msgspec.field(default="tree", name="as")
    label: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    users: str | list[str] = msgspec.field(default_factory=list)


class _FileSpec(msgspec.Struct, forbid_unknown_fields=True):
    rules: list[_RuleSpec]
    #: The built-in rules hold after the file's own.
    builtin: bool = False


@dataclass(frozen=True)
class Rules:
    """An ordered list of rules: the first that matches a process has it."""

    rules: tuple[Rule, ...]
    #: Where they come from, for people.
    origin: str = ""
    _needs_uid: bool = field(init=False, default=False)
    _needs_cgroups: bool = field(init=False, default=False)
    _programs: AnyProgram = field(init=False, repr=False, compare=False)
    #: The rules that can match by something else than the program's name.
    _beside_programs: tuple[Rule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kinds = {p.kind for r in self.rules for p in (*r.patterns, *r.unless, *r.users)}
        object.__setattr__(self, "_needs_uid", "user" in kinds)
        grouped = "cgroup" in kinds or any(r.as_ == "cgroup" for r in self.rules)
        object.__setattr__(self, "_needs_cgroups", grouped)
        patterns = [p for rule in self.rules for p in rule.patterns]
        object.__setattr__(self, "_programs", AnyProgram(patterns))
        beside = tuple(r for r in self.rules if any(p.kind != "prog" for p in r.patterns))
        object.__setattr__(self, "_beside_programs", beside)

    @classmethod
    def load(cls, agents_file: str | None = None, patterns: Iterable[str] = ()) -> Rules:
        """The rules that are in force.

        With ``patterns`` (``--agent``) only those count, each a rule of its
        own. Else ``agents_file`` (``--agents``), else the user's
        ``~/.config/agenttop/agents.yaml``, else the built-in ones.
        Raises UserError: one line with file, line and path, or the pattern.
        """
        if given := list(patterns):
            if agents_file is not None:
                raise UserError("--agent and --agents exclude each other: put the rule in the file")
            rules = tuple(map(_rule_of_option, dict.fromkeys(given)))
            return cls(rules, " ".join(f"--agent {text}" for text in given))
        if agents_file is not None:
            return _read(Path(agents_file))
        own = paths.config()
        # os.path: a folder that may not be entered (another user's HOME) has none for us.
        mine = own is not None and os.path.exists(own / "agents.yaml")
        return _read(own / "agents.yaml" if own and mine else BUILTIN)

    def read(self, pid: int, root: str | None = None) -> ProcInfo | None:
        """A process with what these rules ask for; None if it is gone."""
        return process.read(pid, uid=self._needs_uid, cgroups=self._needs_cgroups, root=root)

    def match(self, info: ProcInfo) -> Rule | None:
        """The rule that makes this process an agent, or None; agenttop's own never match."""
        return self.judge(info)[0]

    def judge(self, info: ProcInfo) -> tuple[Rule | None, bool]:
        """``match``, and whether it is a process of agenttop itself."""
        if info.kernel or not (info.cmdline or info.comm):
            return None, False
        if is_own(info):
            return None, True
        names = programs(info.cmdline, info.comm)
        # Nearly every process runs no program that any rule names: one look tells.
        rules = self.rules if self._programs.may_match(names) else self._beside_programs
        for rule in rules:
            if rule.matches(info, names):
                return rule, False
        return None, False


def _rule_of_option(text: str) -> Rule:
    try:
        pattern = Pattern.parse(text)
    except UserError as error:
        raise UserError(f"--agent {error}") from None
    if pattern.kind == "pid" and process.read(pattern.number or 0) is None:
        raise UserError(f"--agent {pattern}: no such process")
    as_: As = "cgroup" if pattern.kind == "cgroup" else "tree"
    label = pattern.value.rpartition("/")[2] if as_ == "cgroup" else ""
    # A label is a template: braces of a cgroup's name stand for themselves.
    label = label.replace("{", "{{").replace("}", "}}")
    label = label or ("{comm}" if pattern.kind == "comm" else "{program}")
    return Rule(f"--agent {pattern}", (pattern,), as_=as_, label=label)


def _read(path: Path) -> Rules:
    document = yaml_document.read(path)
    spec = document.convert(_FileSpec)
    rules: list[Rule] = []
    names: set[str] = set()
    for i, item in enumerate(spec.rules):
        place = f"$.rules[{i}]"
        if item.name in names:
            raise document.error(f"{place}.name", f"a second rule named '{item.name}'")
        names.add(item.name)
        if item.label is not None:
            _check_label(document, f"{place}.label", item.label)
        matched = _patterns(document, f"{place}.match", item.match)
        if not matched:
            raise document.error(f"{place}.match", "no pattern: the rule could never match")
        unless = _patterns(document, f"{place}.unless", item.unless)
        users = _patterns(document, f"{place}.users", item.users, "user:")
        rules.append(Rule(item.name, matched, unless, item.background, item.as_, item.label, users))
    if spec.builtin and path != BUILTIN:
        rules += [rule for rule in _read(BUILTIN).rules if rule.name not in names]
    if not rules:
        raise document.error("$.rules", "no rules: nothing could be an agent")
    return Rules(tuple(rules), "built-in rules" if path == BUILTIN else str(path))


def _patterns(
    document: yaml_document.Document, place: str, given: str | list[str], kind: str = ""
) -> tuple[Pattern, ...]:
    found = []
    for i, text in enumerate([given] if isinstance(given, str) else given):
        try:
            found.append(Pattern.parse(kind + text))
        except UserError as error:
            where = place if isinstance(given, str) else f"{place}[{i}]"
            raise document.error(where, str(error)) from None
    return tuple(found)


def _check_label(document: yaml_document.Document, place: str, label: str) -> None:
    try:
        parts = list(string.Formatter().parse(label))
    except ValueError as error:
        raise document.error(place, f"bad label: {error}") from None
    for _, key, form, conversion in parts:
        if key is not None and (key not in FIELDS or form or conversion):
            fields = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise document.error(place, f"'{{{key}}}' is not one of {fields}")


# --------------------------------------------------------------------------- finding


Judged = tuple[Rule | None, bool]


def table(rules: Rules) -> ProcessTable[Judged]:
    """The process table as these rules see it."""
    root = str(paths.proc())
    return ProcessTable(lambda pid: rules.read(pid, root), rules.judge)


def scan(rules: Rules) -> list[Found]:
    """The agents there are now, oldest first."""
    processes = table(rules)
    whole(processes.look(anew=True))
    return whole(group(processes))


def group(processes: ProcessTable[Judged]) -> Generator[None, None, list[Found]]:
    """The agents among processes that were read already, oldest first; yields between them."""
    infos, verdicts, children = processes.infos, processes.verdicts, processes.children
    members: dict[tuple[str, str, int], list[int]] = {}
    owners: dict[tuple[str, str, int], tuple[Rule, ProcInfo, str | None]] = {}
    # From the top down, each process with the agent that its parent belongs to.
    levels: list[tuple[Iterator[int], tuple[str, str, int] | None]]
    levels = [(iter(sorted(children.get(0, ()))), None)]
    while levels:
        siblings, owner = levels[-1]
        pid = next(siblings, None)
        if pid is None:
            levels.pop()
            continue
        yield
        info = infos[pid]
        rule, own = verdicts[pid]
        if own:
            owner = None
        elif rule is not None and (owner is None or owners[owner][0] is not rule):
            cgroup = rule.group_of(info)
            owner = (rule.name, cgroup or "", 0 if cgroup else pid)
            kept = owners.get(owner)
            if kept is None or info.starttime < kept[1].starttime:
                owners[owner] = (rule, info, cgroup)
        if owner is not None:
            members.setdefault(owner, []).append(pid)
        if below := children.get(pid):
            levels.append((iter(sorted(below)), owner))
    found = []
    for key, (rule, info, cgroup) in owners.items():
        yield
        rest = [pid for pid in members[key] if pid != info.pid]
        pids = (info.pid, *rest)
        found.append(Found(rule, rule.name_of(info), info.pid, info.starttime, pids, cgroup))
    return sorted(found, key=lambda f: (f.starttime, f.root))


class ExecFilter:
    """Decides at an exec edge whether the process has become (part of) an agent."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._root = str(paths.proc())

    def check(self, pid: int) -> Found | None:
        """The agent that process ``pid`` now belongs to by a rule of its own, or None.

        None says nothing about a tree that it was born into: that is
        inherited at fork and stays. ``Found.key`` equals that of a known
        agent when the process only joins it.
        """
        info = self.rules.read(pid, self._root)
        rule = self.rules.match(info) if info else None
        if info is None or rule is None:
            return None
        top = self._topmost(info, rule)
        return Found(rule, rule.name_of(top), top.pid, top.starttime, (pid,), rule.group_of(info))

    def _topmost(self, info: ProcInfo, rule: Rule) -> ProcInfo:
        """Where the tree of a match begins: its furthest ancestor of the same rule.

        An ancestor of another rule, or agenttop itself, lies between trees.
        """
        top, here = info, info
        for _ in range(64):
            parent = self.rules.read(here.ppid, self._root) if here.ppid > 1 else None
            if parent is None:
                return top
            theirs, own = self.rules.judge(parent)
            if theirs is rule:
                top = parent
            elif theirs is not None or own:
                return top
            here = parent
        return top

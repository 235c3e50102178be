"""What a command line really runs: the program's name behind interpreters and package runners.

``python3 -m vllm.entrypoints.api_server`` runs ``vllm``, ``node
/usr/lib/node_modules/@openai/codex/bin/codex.js`` runs ``@openai/codex`` and
``codex``; ``vim claude.md`` runs ``vim`` and nothing else. Rules look at these
names, never at any argument.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_PYTHON: Final = re.compile(r"(python|pypy)[\d.]*t?")
_NODE: Final = frozenset({"node", "nodejs", "bun", "deno", "tsx", "ts-node", "electron"})
_SHELL: Final = frozenset({"sh", "bash", "dash", "zsh", "ash", "busybox"})
_SCRIPTED: Final = frozenset({"ruby", "perl"})
#: Programs that serve a Python module: ``uvicorn package.module:app``.
_SERVERS: Final = frozenset({"uvicorn", "gunicorn", "hypercorn", "granian"})
#: Programs that run another: name -> its commands that do (none: it always does).
_RUNNERS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "uvx": ((),),
    "npx": ((),),
    "bunx": ((),),
    "uv": (("tool", "uvx"), ("tool", "run"), ("run",), ("x",)),
    "npm": (("exec",), ("x",)),
    "pnpm": (("dlx",), ("exec",)),
    "yarn": (("dlx",), ("exec",)),
    "bun": (("x",),),
    "pipx": (("run",),),
    "poetry": (("run",),),
    "pdm": (("run",),),
    "hatch": (("run",),),
}
#: Options that take the next word as their value.
_VALUED: Final = frozenset(
    {
        "-W",
        "-X",
        "-r",
        "--require",
        "--import",
        "--loader",
        "--experimental-loader",
        "-C",
        "--conditions",
        "--env-file",
        "--directory",
        "--project",
        "--with",
        "--with-editable",
        "--with-requirements",
        "--from",
        "--python",
        "--package",
        "--index-url",
        "--cache-dir",
        "--host",
        "--port",
        "--workers",
        "--app-dir",
        "--log-level",
        "-b",
        "--bind",
        "-w",
        "-k",
        "--config",
        "--cwd",
        "--filter",
        "--prefix",
        "--spec",
    }
)
_PYTHON_EVAL: Final = frozenset({"-c", "-"})
_NODE_EVAL: Final = frozenset({"-e", "--eval", "-p", "--print", "-pe", "-"})
#: Folders between a project and its main script that say nothing about it.
_DULL: Final = frozenset(["dist", "build", "src", "bin", "lib", "out", "esm", "cjs", ".bin"])
_PACKAGES: Final = ("node_modules", "site-packages", "dist-packages")
_SUFFIX: Final = re.compile(r"\.(py|pyz|js|mjs|cjs|ts|mts|sh|rb|pl)$")
_VERSION: Final = re.compile(r"(?<=.)(@[^/]*|(==|>=|~=).*|\[.*\])$")


class Program(NamedTuple):
    """One name under which a process may be known."""

    name: str
    #: The first word after it that is no option ("serve" of ``ollama serve``), or "".
    command: str = ""


def programs(argv: tuple[str, ...] | list[str], comm: str = "") -> list[Program]:
    """The names a process may be known by, the most general first, each once.

    ``comm`` is the kernel's name for it: that of the file it was started from,
    or what it has called itself since.
    """
    found: list[Program] = []
    words = list(argv)
    _collect(words, found, 4)
    if len(words) == 1 and " " in words[0]:
        # A rewritten title ("npm exec @scope/package") lies in one argument.
        _collect(words[0].split(), found, 4)
    if comm and not any(p.name == comm for p in found):
        found.insert(0, Program(comm, found[0].command if found else ""))
    return list(dict.fromkeys(found))


def _collect(argv: list[str], found: list[Program], depth: int) -> None:
    if not argv or depth == 0:
        return
    name, rest = basename(argv[0]).lstrip("-"), argv[1:]
    if not name:
        return
    stripped = _SUFFIX.sub("", name)
    found.append(Program(name, _first_word(rest)))
    if _PYTHON.fullmatch(name):
        _python(rest, found, depth)
    elif name in _RUNNERS and (after := _behind_runner(name, rest)):
        after[0] = _VERSION.sub("", after[0])
        if after[0].startswith("@"):
            found.append(Program(after[0], _first_word(after[1:])))
        _collect(after, found, depth - 1)
    elif name in _NODE:
        _node(rest, found)
    elif name in _SHELL:
        _shell(rest, found)
    elif name in _SCRIPTED:
        _script(_skip_options(rest), found)
    elif stripped != name:
        _script(argv, found)
    if stripped in _SERVERS:
        _server(rest, found)


def _python(rest: list[str], found: list[Program], depth: int) -> None:
    for i, word in enumerate(rest):
        if word in _PYTHON_EVAL or (word.startswith("-c") and len(word) > 2):
            return
        if word == "-m" or (word.startswith("-m") and len(word) > 2):
            after = rest[i + 1 :] if word == "-m" else [word[2:], *rest[i + 1 :]]
            _module(after, found)
            if after and basename(after[0]) in _SERVERS | {"pipx", "uv"}:
                _collect(after, found, depth - 1)
            return
        if not word.startswith("-"):
            if i and rest[i - 1] in _VALUED:
                continue
            _script(rest[i:], found)
            if basename(word) in _SERVERS:
                _server(rest[i + 1 :], found)
            return


def _node(rest: list[str], found: list[Program]) -> None:
    if any(word in _NODE_EVAL for word in _options(rest)):
        return
    words = _skip_options(rest)
    if words and words[0] == "run":
        words = _skip_options(words[1:])
    _script(words, found)


def _shell(rest: list[str], found: list[Program]) -> None:
    if any(not w.startswith("--") and "c" in w for w in _options(rest)):
        return
    _script(_skip_options(rest), found)


def _server(rest: list[str], found: list[Program]) -> None:
    for word in _skip_options(rest)[:1]:
        if ":" in word:
            _module([word.partition(":")[0]], found)


def _module(words: list[str], found: list[Program]) -> None:
    if not words:
        return
    command = _first_word(words[1:])
    found.append(Program(words[0], command))
    found.append(Program(words[0].partition(".")[0], command))


def _script(words: list[str], found: list[Program]) -> None:
    """Names of a script: its file, without suffix, its package, and its project's main."""
    if not words:
        return
    parts = words[0].split("/")
    command = _first_word(words[1:])
    found.append(Program(parts[-1], command))
    found.append(Program(_SUFFIX.sub("", parts[-1]), command))
    folders = parts[:-1]
    for i in range(len(folders) - 1, -1, -1):
        if folders[i] in _PACKAGES:
            below = folders[i + 1 :]
            if below and below[0].startswith("@"):
                found.append(Program("/".join(below[:2]), command))
            elif below and below[0] not in _DULL:
                found.append(Program(below[0], command))
            return
    project = next((f for f in reversed(folders) if f and f not in _DULL), "")
    if project:
        found.append(Program(f"{project}/{parts[-1]}", command))


def _behind_runner(name: str, rest: list[str]) -> list[str]:
    """The command line that a package runner will run; empty if it does something else."""
    for command in _RUNNERS[name]:
        words = rest
        for word in command:
            words = _skip_options(words)
            if words[:1] != [word]:
                break
            words = words[1:]
        else:
            return _skip_options(words, extra=("-p",))
    return []


def _options(words: list[str]) -> list[str]:
    """The options before the first other word."""
    return [w for w in words[: len(words) - len(_skip_options(words))] if w.startswith("-")]


def _skip_options(words: list[str], extra: tuple[str, ...] = ()) -> list[str]:
    """``words`` from the first that is neither an option nor an option's value."""
    i = 0
    while i < len(words) and words[i].startswith("-"):
        if words[i] == "--":
            return words[i + 1 :]
        i += 2 if words[i] in _VALUED or words[i] in extra else 1
    return words[i:]


def _first_word(words: list[str]) -> str:
    return next((w for w in words[:8] if w and not w.startswith("-")), "")


def basename(path: str) -> str:
    """What follows the last slash; a scoped package (@scope/name) stays whole."""
    return path if path.startswith("@") else path.rstrip("/").rpartition("/")[2]

"""YAML files that people write: read, checked against a type, every error with file and line."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import yaml

from agenttop.errors import UserError
from agenttop.linux.process import printable

T = TypeVar("T")

#: A larger file is not one of ours.
MAX_BYTES: Final = 1 << 20
#: Values and collections: a node takes the parser about a kilobyte.
MAX_NODES: Final = 20_000
#: Characters of one value: YAML 1.1's numbers to base 60 take the square of it.
MAX_SCALAR: Final = 10_000
#: Ours need four.
MAX_DEPTH: Final = 32
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[\.\.\.\]")
_PATH: Final = re.compile(r" - at `(.*)`$")

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Document:
    """A parsed file that knows the line of each of its values."""

    def __init__(self, text: str, name: str) -> None:
        """Raises UserError if ``text`` is no YAML; ``name`` is the file's, for the errors."""
        self.name = name
        try:
            self._check_events(text)
            self._root = yaml.compose(text, _Loader)
            self.data: object = yaml.load(text, _Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            problem = error.problem or error.context or "not YAML"
            raise UserError(f"{name}{line}: {printable(problem, 200)}") from None
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            # Not YAML's own: a date or a number that Python cannot hold.
            raise UserError(f"{name}: not YAML: {printable(str(error), 200)}") from None
        except RecursionError:
            raise UserError(f"{name}: nested too deeply") from None
        self._check_keys(self._root)

    def _check_events(self, text: str) -> None:
        """Aliases grow without bound; nesting costs the parser the square of its depth.

        What a tag (``!!bool x``) makes of a value that it does not fit is no YAML error.
        """
        depth = nodes = 0
        for event in yaml.parse(text, _Loader):
            place = f"{self.name}:{event.start_mark.line + 1}" if event.start_mark else self.name
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{place}: aliases (*name) are not supported here")
            nodes += isinstance(event, yaml.NodeEvent)
            if nodes > MAX_NODES:
                raise UserError(f"{place}: more than {MAX_NODES} values")
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_SCALAR:
                raise UserError(f"{place}: a value of more than {MAX_SCALAR} characters")
            if getattr(event, "tag", None) is not None:
                raise UserError(f"{place}: tags (!!name) are not supported here")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise UserError(f"{place}: nested deeper than {MAX_DEPTH} levels")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1

    def _check_keys(self, node: yaml.Node | None) -> None:
        """YAML's last of two equal keys wins silently; here that is an error."""
        stack = [node] if node else []
        while stack:
            here = stack.pop()
            if isinstance(here, yaml.SequenceNode):
                stack += here.value
            elif isinstance(here, yaml.MappingNode):
                seen: set[str] = set()
                for key, value in here.value:
                    stack.append(value)
                    if isinstance(key, yaml.ScalarNode):
                        if key.value in seen:
                            line = key.start_mark.line + 1
                            shown = printable(key.value)
                            raise UserError(f"{self.name}:{line}: '{shown}' is given twice")
                        seen.add(key.value)

    def line(self, path: str) -> int | None:
        """The line (from 1) of the value at a msgspec path such as ``$.rules[2].match``."""
        node = self._root
        found = node.start_mark.line + 1 if node else None
        for key, index in _STEP.findall(path):
            below = self._below(node, key, index)
            if below is None:
                break
            node = below
            found = node.start_mark.line + 1
        return found

    @staticmethod
    def _below(node: yaml.Node | None, key: str, index: str) -> yaml.Node | None:
        if isinstance(node, yaml.MappingNode) and key:
            for name, value in node.value:
                if name.value == key and isinstance(value, yaml.Node):
                    return value
        if isinstance(node, yaml.SequenceNode) and index and int(index) < len(node.value):
            item = node.value[int(index)]
            return item if isinstance(item, yaml.Node) else None
        return None

    def error(self, path: str, message: str) -> UserError:
        """An error about the value at ``path``, to be raised."""
        line = self.line(path)
        place = f"{self.name}:{line}" if line else self.name
        where = f"{path.removeprefix('$').removeprefix('.')}: " if path != "$" else ""
        return UserError(f"{place}: {printable(where + message, 300)}")

    def convert(self, type_: type[T]) -> T:
        """The data as ``type_``; UserError with file, line and path where it does not fit."""
        try:
            return msgspec.convert(self.data, type_)
        except msgspec.ValidationError as error:
            text = str(error)
            path = _PATH.search(text)
            raise self.error(path[1] if path else "$", _PATH.sub("", text)) from None
        except RecursionError:
            raise UserError(f"{self.name}: nested too deeply") from None


def _open_at_once(path: str, flags: int) -> int:
    """A FIFO that nobody writes to does not hold us up."""
    return os.open(path, flags | os.O_NONBLOCK)


def read(file: str | Path) -> Document:
    """Reads and parses a file. Raises UserError with one line about what is wrong."""
    try:
        with open(file, "rb", opener=_open_at_once) as stream:
            # Read more than once (by the engine too), and without waiting for anybody.
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise UserError(f"{file}: is not a regular file")
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{printable(str(file))}: {error}") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"{file}: larger than {MAX_BYTES >> 20} MB, not one of agenttop's files")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{line}: not UTF-8 text") from None
    return Document(text, str(file))

"""Regular expressions whose time is linear in the text, for names that anybody can choose.

Python's re tries one way after the other: ``(a{0,32}){0,32}b`` takes for ever
on some 30 characters, and so do a few ``.*`` on a long command line. Here all
ways are followed at once (Thompson's construction); the sets of places met are
kept, so that most characters cost one look-up. Only whether there is a match
is told. What the pattern and each of its characters mean is asked of re
itself, so both agree; look-around, references to groups and what needs an
order of trying (atomic groups, possessive repeats) are refused.
"""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from typing import Any, Final, NamedTuple

#: Places of a pattern with its repeats written out: bounds time by character and memory.
MOST_PLACES: Final = 512
#: Places in all sets that are kept; then they are forgotten and made anew.
_MOST_KEPT: Final = 20_000

#: Codes that are kept: most patterns use the same few characters.
_MOST_CODES: Final = 500
_codes: Final[dict[tuple[str, str, int], re.Pattern[str]]] = {}

_ALPHABETS: Final = int(re.ASCII | re.LOCALE | re.UNICODE)
_MATCH: Final = -1
_REPEATS: Final = frozenset({"MAX_REPEAT", "MIN_REPEAT"})
_REFUSED: Final = frozenset(
    {
        "ASSERT",
        "ASSERT_NOT",
        "ATOMIC_GROUP",
        "FAILURE",
        "GROUPREF",
        "GROUPREF_EXISTS",
        "POSSESSIVE_REPEAT",
    }
)
_CHARACTERS: Final = frozenset({"LITERAL", "NOT_LITERAL", "ANY", "IN"})


class TooComplexError(ValueError):
    """The pattern needs what is not offered here, in a few words."""


class UnknownPythonError(Exception):
    """This Python's re is not built as the ones that are known; one line."""


class _Place(NamedTuple):
    """A character or an assertion (with re's own code for it), or a fork without one."""

    kind: str
    code: re.Pattern[str] | None
    next: tuple[int, ...]


class Linear:
    """A compiled pattern.

    Raises re.error, TooComplexError, RecursionError, OverflowError, UnknownPythonError.
    """

    def __init__(self, pattern: str, most: int = MOST_PLACES) -> None:
        try:
            self._build(pattern, most)
        except (re.error, TooComplexError, RecursionError, OverflowError, MemoryError):
            raise
        except Exception as error:
            # Of modules that are Python's own nothing is promised.
            version = ".".join(map(str, sys.version_info[:3]))
            raise UnknownPythonError(
                f"Python {version} takes regular expressions apart in a way that is not known"
                f" here ({type(error).__name__}: {error})"
            ) from None

    def _build(self, pattern: str, most: int) -> None:
        self._parser: Any = importlib.import_module("re._parser")
        self._compiler: Any = importlib.import_module("re._compiler")
        with warnings.catch_warnings():
            # "[[a]" will mean something else in some later Python: nothing for a user to see.
            warnings.simplefilter("ignore", FutureWarning)
            tree = self._parser.parse(pattern)
        if _size(self._parser, tree) > most:
            raise TooComplexError("too large with its repeats written out")
        self._state = tree.state
        self._places: list[_Place] = []
        self._asserts = False
        self._start = self._sequence(tree, _MATCH, tree.state.flags)
        #: (places, character before, character after, search?) -> the places behind it.
        self._known: dict[tuple[frozenset[int], str, str, bool], frozenset[int]] = {}
        self._kept = 0

    def search(self, text: str) -> bool:
        """Does it match anywhere?"""
        return self._run(text, search=True)

    def fullmatch(self, text: str) -> bool:
        """Does it match the whole text?"""
        return self._run(text, search=False)

    # ---------------------------------------------------------------- running

    def _run(self, text: str, search: bool) -> bool:
        here = frozenset((self._start,))
        before, last = "", len(text) - 1
        for i, character in enumerate(text):
            # What an assertion can see of the text behind: is there more?
            after = character if i == last or not self._asserts else character + "x"
            key = (here, before, after, search)
            found = self._known.get(key)
            if found is None:
                found = self._step(here, before, after, search)
                self._keep(key, found)
            if search and _MATCH in found:
                return True
            if not found:
                return False
            here = found
            if self._asserts:
                before = character
        return _MATCH in self._closed(here, before, "")

    def _step(self, here: frozenset[int], before: str, after: str, search: bool) -> frozenset[int]:
        """Over one character; with _MATCH in it: a search ended before that."""
        places = self._closed(here, before, after)
        if search and _MATCH in places:
            return frozenset((_MATCH,))
        found = {self._start} if search else set()
        for at in places:
            if at != _MATCH:
                code = self._places[at].code
                assert code is not None
                if code.match(after[0]):
                    found.update(self._places[at].next)
        return frozenset(found)

    def _closed(self, here: frozenset[int], before: str, after: str) -> set[int]:
        """Characters (and _MATCH) that can be reached without one; assertions are asked."""
        stack, seen, found = list(here), set(here), set[int]()
        while stack:
            at = stack.pop()
            if at == _MATCH:
                found.add(at)
                continue
            place = self._places[at]
            if place.kind == "character":
                found.add(at)
                continue
            if place.code is not None and not place.code.match(before + after, len(before)):
                continue
            new = [to for to in place.next if to not in seen]
            seen.update(new)
            stack += new
        return found

    def _keep(self, key: tuple[frozenset[int], str, str, bool], found: frozenset[int]) -> None:
        self._kept += len(found) + 4
        if self._kept > _MOST_KEPT:
            self._known.clear()
            self._kept = 0
        self._known[key] = found

    # ---------------------------------------------------------------- building, from the end

    def _add(self, kind: str, code: re.Pattern[str] | None, *to: int) -> int:
        self._places.append(_Place(kind, code, to))
        return len(self._places) - 1

    def _sequence(self, tree: Any, after: int, flags: int) -> int:
        for op, argument in reversed(list(tree)):
            after = self._one(op, argument, after, flags)
        return after

    def _one(self, op: Any, argument: Any, after: int, flags: int) -> int:
        name = str(op)
        if name in _CHARACTERS:
            return self._add("character", self._ask(op, argument, flags), after)
        if name == "AT":
            self._asserts = True
            return self._add("assertion", self._ask(op, argument, flags), after)
        if name == "SUBPATTERN":
            _, added, removed, tree = argument
            if added & _ALPHABETS:  # One takes the place of the other.
                flags &= ~_ALPHABETS
            return self._sequence(tree, after, (flags | added) & ~removed)
        if name == "BRANCH":
            ways = [self._sequence(tree, after, flags) for tree in argument[1]]
            return self._add("fork", None, *ways)
        assert name in _REPEATS
        least, most, tree = argument
        if most is self._parser.MAXREPEAT:
            loop = self._add("fork", None)
            again = self._sequence(tree, loop, flags)
            self._places[loop] = _Place("fork", None, (again, after))
            after = loop
        else:
            end = after
            for _ in range(most - least):
                after = self._add("fork", None, self._sequence(tree, after, flags), end)
        for _ in range(least):
            after = self._sequence(tree, after, flags)
        return after

    def _ask(self, op: Any, argument: Any, flags: int) -> re.Pattern[str]:
        """re's own code of one character or assertion, made once for each."""
        key = (str(op), repr(argument), flags)
        if (known := _codes.get(key)) is not None:
            return known
        state = self._parser.State()
        state.flags = flags
        state.str = ""
        one = self._parser.SubPattern(state, [(op, argument)])
        compiled: re.Pattern[str] = self._compiler.compile(one, flags)
        if len(_codes) < _MOST_CODES:
            _codes[key] = compiled
        return compiled


def _size(parser: Any, tree: Any) -> int:
    """Places that a pattern takes. Raises TooComplexError for what has no such form."""
    size = 0
    for op, argument in tree:
        name = str(op)
        size += 1
        if name == "SUBPATTERN":
            size += _size(parser, argument[3])
        elif name == "BRANCH":
            size += sum(_size(parser, way) for way in argument[1])
        elif name in _REPEATS:
            least, most, inner = argument
            times = least + 1 if most is parser.MAXREPEAT else most
            size += times * (_size(parser, inner) + 1)
        elif name in _REFUSED:
            what = name.lower().replace("_", " ").replace("assert", "look-around")
            raise TooComplexError(f"{what} is not supported: it can take for ever")
        elif name not in _CHARACTERS and name != "AT":
            raise LookupError(name)
    return size

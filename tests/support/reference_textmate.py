"""Splits text by a TextMate grammar of plain patterns, as editors do, with Python's `re` in the place of Oniguruma.

At each position the pattern that matches first wins, and of two that match at the same place the earlier one. Only
`match`, `name`, `captures` and `include` are known, which is all that the grammar of the language uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypeAlias, TypedDict

__all__ = ["Grammar", "ScopeRule", "Token"]

Token: TypeAlias = "tuple[str, str]"
"""Some text and its scope; the scope is empty where no pattern has one for it."""


class Pattern(TypedDict):
    """One pattern of the file, or the inclusion of a group."""

    match: NotRequired[str]
    name: NotRequired[str]
    captures: NotRequired[Mapping[str, Mapping[str, str]]]
    include: NotRequired[str]


class Group(TypedDict):
    """Patterns that belong together."""

    patterns: Sequence[Pattern]


class Document(TypedDict):
    """The file."""

    scopeName: str
    patterns: Sequence[Pattern]
    repository: Mapping[str, Group]


@dataclass(frozen=True, slots=True)
class ScopeRule:
    """One pattern. `captures` is empty where the whole of what it matches has one scope."""

    pattern: re.Pattern[str]
    name: str
    captures: Mapping[int, str]

    def tokens(self, match: re.Match[str]) -> Iterator[Token]:
        """What was matched, piece by piece."""
        if not self.captures:
            yield match[0], self.name
            return
        position = match.start()
        for number, scope in self.captures.items():
            yield match.string[position : match.start(number)], ""
            yield match[number], scope
            position = match.end(number)
        yield match.string[position : match.end()], ""


class Grammar:
    """A grammar in TextMate's JSON form.

    Raises:
        KeyError: it uses what isn't known here.
        re.error: Python can't read one of its patterns.
    """

    def __init__(self, text: str) -> None:
        document: Document = json.loads(text)
        self.scope_name = document["scopeName"]
        self.rules = [rule for pattern in document["patterns"] for rule in _rules(pattern, document)]

    def tokens(self, text: str) -> list[Token]:
        """The text without blanks, piece by piece."""
        pieces = (piece for line in text.splitlines() for piece in self._line(f"{line}\n"))
        return [(words.strip(), scope) for words, scope in pieces if words.strip()]

    def _line(self, line: str) -> Iterator[Token]:
        position = 0
        while position < len(line):
            first: tuple[re.Match[str], ScopeRule] | None = None
            for rule in self.rules:
                match = rule.pattern.search(line, position)
                if match and (first is None or match.start() < first[0].start()):
                    first = match, rule
            if first is None:
                break
            match, rule = first
            yield line[position : match.start()], ""
            yield from rule.tokens(match)
            position = match.end()
        yield line[position:], ""


def _rules(pattern: Pattern, document: Document) -> Iterator[ScopeRule]:
    if "include" in pattern:
        for inner in document["repository"][pattern["include"].removeprefix("#")]["patterns"]:
            yield from _rules(inner, document)
        return
    captures = {int(number): capture["name"] for number, capture in pattern.get("captures", {}).items()}
    yield ScopeRule(re.compile(pattern["match"]), pattern.get("name", ""), captures)

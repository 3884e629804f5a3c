"""Colours text by a TextMate grammar of plain patterns, as editors do, with Python's `re` in the place of Oniguruma.

At each position the pattern that matches first wins, the earlier one of two that match at the same place. Only `match`,
`name`, `captures` and `include` are known, which is all that the grammar of the language uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Colour", "Grammar"]

Colour: TypeAlias = "tuple[str, str]"
"""Some text and its scope; the scope is empty where no pattern has one for it."""

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

KNOWN = frozenset({"match", "name", "captures"})


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern. `captures` is empty where the whole of what it matches has one scope."""

    pattern: re.Pattern[str]
    name: str
    captures: dict[int, str]

    def colours(self, match: re.Match[str]) -> Iterator[Colour]:
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
        ValueError: it uses what isn't known here.
        re.error: Python can't read one of its patterns.
    """

    def __init__(self, text: str) -> None:
        document = json.loads(text)
        self.scope_name: str = document["scopeName"]
        self.rules: Sequence[Rule] = [rule for pattern in document["patterns"] for rule in _rules(pattern, document)]

    def colours(self, text: str) -> list[Colour]:
        """The text without blanks, piece by piece."""
        return [
            (piece.strip(), scope)
            for line in text.splitlines()
            for piece, scope in self._line(f"{line}\n")
            if piece.strip()
        ]

    def _line(self, line: str) -> Iterator[Colour]:
        position = 0
        while position < len(line):
            found = [
                (match.start(), number, match)
                for number, rule in enumerate(self.rules)
                if (match := rule.pattern.search(line, position))
            ]
            if not found:
                break
            start, number, match = min(found, key=lambda one: one[:2])
            yield line[position:start], ""
            yield from self.rules[number].colours(match)
            position = match.end()
        yield line[position:], ""


def _rules(pattern: dict[str, str], document: dict[str, dict[str, dict[str, list[dict[str, str]]]]]) -> Iterator[Rule]:
    if "include" in pattern:
        for inner in document["repository"][pattern["include"].removeprefix("#")]["patterns"]:
            yield from _rules(inner, document)
        return
    if not set(pattern) <= KNOWN:
        raise ValueError(f"not known here: {sorted(set(pattern) - KNOWN)}")
    captures: dict[str, dict[str, str]] = pattern.get("captures", {})
    yield Rule(
        re.compile(pattern["match"]),
        pattern.get("name", ""),
        {int(number): capture["name"] for number, capture in captures.items()},
    )

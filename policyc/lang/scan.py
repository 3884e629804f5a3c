"""Splits text into words without regard to the grammar, by the grammar's own patterns.

Lark's lexer asks the grammar at each word which ones could follow. Finding statements, explaining mistakes and keeping
comments need the words of text that may be wrong anywhere, so this scanner knows no grammar and takes any text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["GLUED", "MALFORMED_NUMBER", "STRAY", "Lexeme", "Scanner"]

GLUED: Final = "GLUED"
"""A name that runs into a section: `kernel.text`."""

MALFORMED_NUMBER: Final = "MALFORMED_NUMBER"
"""What begins with a digit and is no number: `12abc`."""

STRAY: Final = "STRAY"
"""A character that begins nothing."""

WORD_KINDS: Final = ("BLANK", "COMMENT", "STRING", "LABEL", "SYMBOL", "DATE", "DURATION", "NUMBER", "SECTION", "NAME")
"""The terminals with more than one spelling, those first that win over later ones."""

SIGNS: Final = ("_ARROW", "_DOTS", "COMPARISON")
"""The terminals of more than one sign. All other signs are one character."""


@dataclass(frozen=True, slots=True)
class Lexeme:
    """One word or sign: the terminal it looks like, its text, and its offsets."""

    kind: str
    text: str
    start: int
    end: int


class Scanner:
    """Splits text by the patterns of the grammar's terminals."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        rows = [(kind.strip("_"), patterns[kind]) for kind in (*WORD_KINDS, *SIGNS)]
        rows += [
            (GLUED, r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_.$-]*)+"),
            (MALFORMED_NUMBER, "[0-9][A-Za-z0-9_]*"),
            ("SIGN", r"[=,/|&~(){}+-]"),
            (STRAY, r"(?s:.)"),
        ]
        self._regex = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in rows))

    def lexemes(self, text: str, start: int = 0, end: int | None = None) -> Iterator[Lexeme]:
        """All of `text[start:end]`, blanks and comments too, without gaps."""
        for match in self._regex.finditer(text, start, len(text) if end is None else end):
            yield Lexeme(match.lastgroup or STRAY, match.group(), match.start(), match.end())

    def words(self, text: str, start: int = 0, end: int | None = None) -> list[Lexeme]:
        """The words and signs of `text[start:end]`, without blanks and comments."""
        return [lexeme for lexeme in self.lexemes(text, start, end) if lexeme.kind not in ("BLANK", "COMMENT")]

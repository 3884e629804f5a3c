"""The leaves of the syntax tree: words, texts, numbers, times and days, with their places.

`Leaves` reads them from branches of the parser's tree and collects what is wrong with them.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Final, TypeAlias

from policyc.diagnostics import Diagnostic, Span
from policyc.lang import ast
from policyc.lang.limits import MAX_DEPTH, MAX_DURATION_MS, MAX_NUMBER

if TYPE_CHECKING:
    from lark.lexer import Token
    from lark.tree import Tree

    from policyc.diagnostics import Source

    TokenTree: TypeAlias = Tree[Token]
    Branch: TypeAlias = TokenTree | Token
    """A rule's tree, or a word."""

__all__ = ["Leaves", "children", "date_value", "duration_value", "kind", "number_value"]

FACTORS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
MILLISECONDS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}

MAX_DIGITS: Final = 20
"""Digits that a number within limits can have, leading zeros apart; more are refused before they are converted."""

MAX_SHOWN: Final = 40
"""Characters of a number that a message repeats."""


class Leaves:
    """Reads the leaves of one piece of a source, which begins at offset `base`."""

    def __init__(self, source: Source, base: int, diagnostics: list[Diagnostic]) -> None:
        self.source = source
        self.base = base
        self.diagnostics = diagnostics

    def place(self, branch: Branch) -> tuple[int, int]:
        """The offsets of a branch in the source."""
        if isinstance(branch, str):
            return self.base + (branch.start_pos or 0), self.base + (branch.end_pos or 0)
        meta = branch.meta
        return (self.base, self.base) if meta.empty else (self.base + meta.start_pos, self.base + meta.end_pos)

    def span(self, branch: Branch) -> Span:
        """The place of a branch."""
        return Span(self.source, *self.place(branch))

    def word(self, branch: Branch) -> ast.Word:
        """A word, or a rule that is one."""
        token = branch if isinstance(branch, str) else children(branch)[0]
        return ast.Word(str(token), self.span(token))

    def text(self, branch: Branch) -> ast.Text:
        """A quoted text."""
        return ast.Text(str(branch)[1:-1], self.span(branch))

    def word_or_text(self, branch: Branch) -> ast.Word | ast.Text:
        """A word, or a quoted text."""
        return self.text(branch) if kind(branch) == "STRING" else self.word(branch)

    def word_or_number(self, branch: Branch) -> ast.Word | ast.Number:
        """A word, or a number."""
        return self.number(branch) if kind(branch) == "NUMBER" else self.word(branch)

    def number(self, branch: Branch) -> ast.Number:
        """A number; one that is too large is reported."""
        text, span = str(branch), self.span(branch)
        value = number_value(text)
        if value is None:
            shown = text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
            self.report("P112", f"`{shown}` is larger than 2**64", span)
        return ast.Number(value or 0, text, span)

    def duration(self, branch: Branch) -> ast.Duration:
        """A time; one out of range is reported."""
        text, span = str(branch), self.span(branch)
        value = duration_value(text)
        if value is None:
            self.report("P112", f"`{text[:MAX_SHOWN]}` isn't a time between 1ms and a year", span)
        return ast.Duration(value or 1, text, span)

    def date(self, branch: Branch) -> ast.Date:
        """A day; one that doesn't exist is reported."""
        text, span = str(branch), self.span(branch)
        value = date_value(text)
        if value is None:
            self.report("P114", f"`{text}` is no day of the calendar", span, "a date is written YEAR-MONTH-DAY")
        return ast.Date(value or datetime.date.min, span)

    def too_deep(self, depth: int, span: Span) -> bool:
        """Whether a node lies too deep to follow; if so, it is reported."""
        if depth < MAX_DEPTH:
            return False
        begin = Span(self.source, span.start, span.start + 1)
        self.report("P124", f"this is nested more than {MAX_DEPTH} deep", begin)
        return True

    def report(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Collect a diagnostic."""
        self.diagnostics.append(Diagnostic(code, message, span, help))


def kind(branch: Branch) -> str:
    """The rule or terminal that a branch stands for."""
    return branch.type if isinstance(branch, str) else str(branch.data)


def children(branch: Branch) -> list[Branch]:
    """The branches of a rule's tree; a word has none."""
    return [] if isinstance(branch, str) else branch.children


def number_value(text: str) -> int | None:
    """The value of a number's spelling, or None if it is larger than 2**64."""
    digits, factor = (text[:-1], FACTORS[text[-1]]) if text[-1] in FACTORS else (text, 1)
    digits, base = (digits[2:], 16) if digits.startswith("0x") else (digits, 10)
    if len(digits) > MAX_DIGITS or "_" in digits:
        digits = digits.replace("_", "").lstrip("0") or "0"
        if len(digits) > MAX_DIGITS:
            return None
    value = int(digits, base) * factor
    return value if value <= MAX_NUMBER else None


def duration_value(text: str) -> int | None:
    """The milliseconds of a duration's spelling, or None if it is nothing or more than a year."""
    digits = text.rstrip("msh")
    unit = text[len(digits) :]
    digits = digits.lstrip("0")
    if not digits or len(digits) > MAX_DIGITS:
        return None
    value = int(digits) * MILLISECONDS[unit]
    return value if value <= MAX_DURATION_MS else None


def date_value(text: str) -> datetime.date | None:
    """The day of a date's spelling, or None if there is no such day."""
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None

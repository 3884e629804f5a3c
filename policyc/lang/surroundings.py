"""A syntax error with the words around it: what the explanations of mistakes look at."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from policyc.diagnostics import Diagnostic, Span
from policyc.lang.expected import CLAUSES
from policyc.lang.scan import STRAY, Lexeme

if TYPE_CHECKING:
    from policyc.diagnostics import Source
    from policyc.lang.text_to_tree import Failure, Parser

__all__ = ["Surroundings", "quoted"]

MAX_QUOTED: Final = 40
"""Characters of the author's text that a message repeats."""


class Surroundings:
    """A failure and the words around it.

    Attributes:
        start: the offset in the source of what is wrong.
        found: the word or sign that stands there; at the end of the piece, an empty one.
        before: the words of the piece before it.
        expected: the terminals that could have stood there.
        at_end: whether the piece is right as far as it goes.
    """

    def __init__(self, source: Source, parser: Parser, start: int, end: int, failure: Failure) -> None:
        self.source = source
        self.parser = parser
        self.expected = failure.expected
        self.at_end = failure.at_end
        self.start = start + failure.start
        self._end = end
        self.before = parser.scanner.words(source.text, start, self.start)
        self.found = Lexeme("END", "", self.start, self.start)
        if not failure.at_end:
            self.found = next(parser.scanner.lexemes(source.text, self.start, end), self.found)

    @functools.cached_property
    def after(self) -> list[Lexeme]:
        """The words behind the place on the same line."""
        line_end = self.source.text.find("\n", self.found.end, self._end)
        return self.parser.scanner.words(self.source.text, self.found.end, self._end if line_end < 0 else line_end)

    @property
    def previous(self) -> Lexeme:
        """The word before the place; an empty one if there is none."""
        return self.before[-1] if self.before else Lexeme(STRAY, "", self.start, self.start)

    @property
    def begins_line(self) -> bool:
        """Whether nothing stands before the place on its line."""
        line, column = self.source.position(self.start)
        return not self.source.line_text(line)[: column - 1].strip()

    @property
    def complete(self) -> bool:
        """Whether what comes before the place could have ended there."""
        return "$END" in self.expected

    @functools.cached_property
    def sentence(self) -> list[Lexeme]:
        """The words before the place from where its statement seems to begin, without a label."""
        starts = {*self.parser.effect_words, *self.words_of(self.parser.statement_starts)}
        for index in range(len(self.before) - 1, -1, -1):
            word = self.before[index]
            if word.kind == "LABEL":
                return self.before[index + 1 :]
            if word.text in starts and (index == 0 or self.source.position(word.start)[1] == 1):
                return self.before[index:]
        return self.before

    @functools.cached_property
    def begins_something_else(self) -> bool:
        """Whether the word found begins a clause, an effect or a statement, so that what is open stays open."""
        return self.found.kind == "LABEL" or self.found.text in self.words_of(CLAUSES | self.parser.statement_starts)

    def words_of(self, terminals: frozenset[str]) -> list[str]:
        """The words that these terminals stand for."""
        keywords = [word for terminal, word in self.parser.keywords.items() if terminal in terminals]
        return [*keywords, *(self.parser.effect_words if "EFFECT" in terminals else ())]

    def is_effect(self, word: Lexeme) -> bool:
        """Whether a word is an effect without argument."""
        return word.text in self.parser.effect_words

    def span(self, first: Lexeme, last: Lexeme | None = None) -> Span:
        """The place of a word, or that from one to another."""
        return Span(self.source, first.start, (last or first).end)

    def report(self, code: str, message: str, help: str | None = None, span: Span | None = None) -> Diagnostic:
        """A diagnostic at the word found, or at `span`."""
        return Diagnostic(code, message, span or self.span(self.found), help)


def quoted(text: str) -> str:
    """The author's text in backticks, cut to a length fit for a message."""
    return f"`{text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + '…'}`"

"""Where statements begin, told by lines alone.

A policy is read in pieces: one piece is a statement, as a rule, and a mistake in one hides none in the next. A piece
begins where a line begins with a word that can begin a statement. Such a line may still be the middle of a statement
(`on cr4` and then `deny` on the next line); the first piece is then unfinished and is tried again together with the
next. No statement that is finished goes on with such a word, so pieces that are each right are right together.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyc.lang.limits import MAX_UNCLOSED
from policyc.lang.text_to_tree import WORD_END

if TYPE_CHECKING:
    from policyc.lang.text_to_tree import Parser, ParseStart

__all__ = ["Splitter"]


class Splitter:
    """Finds the lines of a text at which statements begin, by the words of one grammar."""

    def __init__(self, parser: Parser) -> None:
        openers = {parser.keywords[terminal] for terminal in parser.statement_starts if terminal in parser.keywords}
        words = "|".join(sorted({*openers, *parser.effect_words}))
        start = rf"^[ \t]*(?P<start>(?:{words}){WORD_END}|{parser.patterns['LABEL']})"
        others = sorted(set(parser.keywords.values()) - openers)
        self._start = re.compile(start, re.MULTILINE)
        self._start_or_brace = re.compile(rf'"[^"\n]*"|#[^\n]*|(?P<brace>[{{}}])|{start}', re.MULTILINE)
        self._unindented = re.compile(rf"^(?!(?:{'|'.join(others)}){WORD_END})[A-Za-z_]", re.MULTILINE)
        self._on = re.compile(f"on{WORD_END}")
        self._test = re.compile(r'(?:\s|#[^\n]*\n)*test\s*"[^"\n]*"\s*\{')
        self._line_of_case = re.compile(rf"^[ \t]*(?!(?:from|with){WORD_END})(?P<start>[A-Za-z_])", re.MULTILINE)

    def starts(self, text: str) -> list[int]:
        """The offsets at which pieces begin, ascending, the first 0. Lines in braces begin no piece."""
        if "{" not in text:
            found = [match.start("start") for match in self._start.finditer(text)]
        else:
            found, unclosed = self._starts_outside_braces(text, 0)
            for _ in range(MAX_UNCLOSED):
                # A brace never closes. What stands in the first column below it is taken for a statement again.
                after = None if unclosed is None else self._unindented.search(text, unclosed)
                if after is None:
                    break
                more, unclosed = self._starts_outside_braces(text, after.start())
                found += more
        return found if found and found[0] == 0 else [0, *found]

    def starts_of_cases(self, text: str, start: int, end: int) -> list[int]:
        """The offsets in `text[start:end]` at which the cases of a test block may begin, ascending."""
        return [match.start("start") for match in self._line_of_case.finditer(text, start, end)]

    def kind_of_case(self, text: str, start: int) -> ParseStart:
        """What the case of a test block that begins at `start` is."""
        return "event_case" if self._on.match(text, start) else "access_case"

    def test_block(self, text: str, start: int, end: int) -> tuple[int, int] | None:
        """The offsets behind the `{` and before the `}` of the piece `text[start:end]`, if it is a test block."""
        match = self._test.match(text, start, end)
        close = text.rfind("}", start, end)
        return (match.end(), close) if match and close >= match.end() else None

    def resume(self, text: str, start: int, end: int) -> int:
        """Where to go on behind a mistake at `start`: the next unindented line in the piece, else the piece's end."""
        line_end = text.find("\n", start, end)
        match = self._unindented.search(text, line_end + 1, end) if line_end >= 0 else None
        return match.start() if match else end

    def _starts_outside_braces(self, text: str, offset: int) -> tuple[list[int], int | None]:
        """The starts from `offset` on, and the place of a brace that never closes."""
        found: list[int] = []
        depth, opened = 0, None
        for match in self._start_or_brace.finditer(text, offset):
            if match["brace"] == "{":
                opened = match.start() if depth == 0 else opened
                depth += 1
            elif match["brace"]:
                depth = max(0, depth - 1)
            elif match["start"] and depth == 0:
                found.append(match.start("start"))
        return found, opened if depth else None

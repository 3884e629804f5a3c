"""From text to the parser's tree: loads the grammar and runs Lark over one piece of text.

Lark is the only authority on what is a policy. It is imported when a grammar is first loaded, so a command that never
parses doesn't pay for it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from policyc.lang.scan import Scanner
from policyc.lang.shapes import Shapes

if TYPE_CHECKING:
    from lark import Lark
    from lark.lexer import TerminalDef, Token
    from lark.parsers.lalr_interactive_parser import InteractiveParser
    from lark.tree import Tree

    TokenTree: TypeAlias = Tree[Token]

__all__ = ["END_OF_TEXT", "Failure", "ParseStart", "Parser", "grammar_text", "load_parser"]

ParseStart: TypeAlias = Literal["policy_file", "access_case", "event_case"]
"""What a piece of text is to be: whole statements, or one case of a test block."""

STARTS: Final[tuple[ParseStart, ...]] = ("policy_file", "access_case", "event_case")

END_OF_TEXT: Final = "$END"
"""The name of the terminal that stands for the end of the text, in Lark's words."""

WORD_END: Final = "(?![A-Za-z0-9_-])"
"""What follows a word. Without it Lark would read `tokernel` as `to` and `kernel`."""

KEYWORD_PRIORITY: Final = 1
"""Above names, which have none, and below labels and symbols."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a piece of text stops being a policy.

    `start` and `end` are offsets into the piece. At the end of the text they are equal: both lie behind the last word.
    `terminal` is what Lark took the text for, None if it is nothing at all. `expected` names the terminals that could
    have stood there.
    """

    start: int
    end: int
    terminal: str | None
    expected: frozenset[str]

    @property
    def at_end(self) -> bool:
        """Whether the text is fine as far as it goes, and only ends too early."""
        return self.terminal == END_OF_TEXT


class Parser:
    """The grammar, loaded with one list of effects.

    Attributes:
        effect_words: the effects without argument.
        patterns: the regular expression of each terminal.
        keywords: the word of each keyword's terminal.
        statement_starts: the terminals that can begin a statement, and so the first ones of a file.
        scanner: splits text into the terminals, without regard to the grammar.
        shapes: the shapes of statements that this grammar has been found to accept.
    """

    def __init__(self, lark: Lark, effect_words: tuple[str, ...]) -> None:
        self._lark = lark
        self.effect_words = effect_words
        self.patterns: dict[str, str] = {terminal.name: terminal.pattern.to_regexp() for terminal in lark.terminals}
        self.keywords: dict[str, str] = {
            terminal.name: word for terminal in lark.terminals if (word := _keyword(terminal)) is not None
        }
        self.statement_starts = _accepts(lark.parse_interactive("", start="policy_file")) - {END_OF_TEXT}
        self.scanner = Scanner(self.patterns)
        self.shapes = Shapes(self.patterns, [*self.keywords.values(), *effect_words])

    def to_tree(self, text: str, start: ParseStart = "policy_file") -> TokenTree | Failure:
        """The tree of `text`, or the place where it fails; offsets in both count from the start of `text`."""
        from lark.exceptions import UnexpectedCharacters, UnexpectedToken

        try:
            return self._lark.parse(text, start=start)
        except UnexpectedToken as error:
            terminal, first, last = error.token.type, error.token.start_pos or 0, error.token.end_pos or 0
            # Lark lends the end of the text the place of the last word.
            first = last if terminal == END_OF_TEXT else first
            return Failure(first, last, terminal, self._expected(text[:first], start))
        except UnexpectedCharacters as error:
            position: object = error.pos_in_stream  # Lark's annotation says None
            first = position if isinstance(position, int) else 0
            return Failure(first, first + 1, None, self._expected(text[:first], start))

    def _expected(self, text: str, start: ParseStart) -> frozenset[str]:
        """The terminals that can follow `text`, which is right as far as it goes.

        What Lark's own exceptions carry is less: by then the wrong word has closed rules that others could go on with.
        """
        from lark.exceptions import UnexpectedInput

        interactive = self._lark.parse_interactive(text, start=start)
        with contextlib.suppress(UnexpectedInput):
            interactive.exhaust_lexer()
        return _accepts(interactive)


@functools.lru_cache(maxsize=8)
def load_parser(effect_words: tuple[str, ...]) -> Parser:
    """The parser of the language with these effects without argument; the same words give the same object.

    Raises:
        ValueError: an effect isn't a word, or there is none.
    """
    from lark import Lark
    from lark.lexer import PatternRE

    if not effect_words or not all(re.fullmatch("[a-z][a-z_]*", word) for word in effect_words):
        raise ValueError(f"not a list of effects: {effect_words!r}")
    alternatives = "|".join(sorted(effect_words, key=lambda word: (-len(word), word)))

    def edit(terminal: TerminalDef) -> None:
        # Lark ignores what this returns and keeps the terminal it handed in.
        if terminal.name == "EFFECT":
            terminal.pattern = PatternRE(f"(?:{alternatives}){WORD_END}")
        elif terminal.pattern.type == "str" and terminal.pattern.value.isalpha():
            terminal.pattern = PatternRE(terminal.pattern.value + WORD_END)
            terminal.priority = KEYWORD_PRIORITY

    lark = Lark(
        grammar_text(),
        parser="lalr",
        start=list(STARTS),
        edit_terminals=edit,
        propagate_positions=True,
        maybe_placeholders=False,
    )
    return Parser(lark, effect_words)


def grammar_text() -> str:
    """The text of `policy.lark`, from the installed package."""
    return importlib.resources.files("policyc.grammar").joinpath("policy.lark").read_text(encoding="utf-8")


def _keyword(terminal: TerminalDef) -> str | None:
    """The word that a keyword's terminal stands for."""
    word = terminal.pattern.value.removesuffix(WORD_END)
    return word if word.isalpha() and word != terminal.pattern.value else None


def _accepts(interactive: InteractiveParser) -> frozenset[str]:
    return frozenset(interactive.accepts())  # type: ignore[no-untyped-call]  # Lark leaves it without annotation

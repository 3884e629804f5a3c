"""Statements that differ in their names and numbers alone are put through Lark once.

A large policy has few shapes: thousands of rules are alike but for a label, a symbol, an address or a text. The shape
of a text is its words with each literal replaced by its class and each run of blanks and comments by one sign.
Keywords, effects and signs stay as they are, so two texts of one shape are one text to the grammar. When Lark has
accepted a shape, a template of the tree that came of it builds the trees of later texts of that shape, with their own
literals and places. A text whose shape is new, wrong, or not exactly understood goes through Lark.

INVARIANT (same tree): for every text, a template gives exactly the tree that Lark and `tree_to_ast` give, places
included. See `template` for what makes it so.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

from policyc.lang.template import NotUnderstoodError, template

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from policyc.diagnostics import Source
    from policyc.lang import ast
    from policyc.lang.template import Template

__all__ = ["Shapes"]

MAX_SHAPES: Final = 4096
"""Shapes that are remembered; when there are more, they go through Lark each time."""

MAX_WORDS: Final = 400
"""Words of a text whose shape is remembered. Longer ones are lists, and hardly two are as long as each other."""

MAX_LENGTH: Final = 16 * 1024
"""Characters of such a text, with blanks and comments."""

MAX_CLASSIFIED: Final = 100_000
"""Different words whose class is remembered."""

MAX_CLASSIFIED_LENGTH: Final = 64
"""Characters of such a word; comments and texts may be longer."""

LITERALS: Final = ("STRING", "DATE", "DURATION", "NUMBER", "SECTION", "NAME")
"""The terminals with more than one spelling, those first that win over later ones."""

SIGNS: Final = ("_ARROW", "_DOTS", "COMPARISON")
"""The terminals of two signs. All other signs are one character."""

SYMBOL_TAIL: Final = "[A-Za-z_.?@$*][A-Za-z0-9_.$@?*]*"
"""What stands behind the colon of a symbol; image, colon and tail are three words here."""

BLANK: Final = r"(?:[ \t\r\n]+|#[^\n]*)+"


class Shapes:
    """The shapes seen so far, of one grammar."""

    def __init__(self, patterns: Mapping[str, str], reserved: Collection[str]) -> None:
        alternatives = [BLANK, f"(?<=:){SYMBOL_TAIL}", *(patterns[name] for name in (*LITERALS, *SIGNS)), "(?s:.)"]
        self._words = re.compile("|".join(_without_groups(pattern) for pattern in alternatives))
        self._classes = _Classes(patterns, reserved)
        self._templates: dict[tuple[str, ...], Template | None] = {}

    def build(self, source: Source, start: int, end: int) -> tuple[ast.Statement, ...] | None:
        """The statements of a piece of the source, or None if Lark has to be asked."""
        if end - start > MAX_LENGTH:
            return None
        words = self._words.findall(source.text, start, end)
        made = self._templates.get(self._shape(words))
        if made is None:
            return None
        try:
            return made.build(words, list(itertools.accumulate(map(len, words), initial=start)), source)
        except NotUnderstoodError:
            return None

    def learn(self, source: Source, start: int, end: int, statements: list[ast.Statement]) -> None:
        """Remember the shape of a piece from which Lark made these statements, without any diagnostic.

        A shape that is seen for the first time is only noted. The template is made when it comes again.
        """
        if end - start > MAX_LENGTH:
            return
        words = self._words.findall(source.text, start, end)
        shape = self._shape(words)
        if shape not in self._templates:
            if len(self._templates) < MAX_SHAPES and len(words) <= MAX_WORDS:
                self._templates[shape] = None
            return
        offsets = list(itertools.accumulate(map(len, words), initial=start))
        self._templates[shape] = template(words, offsets, tuple(statements))

    def _shape(self, words: list[str]) -> tuple[str, ...]:
        return tuple(map(self._classes.__getitem__, words))


class _Classes(dict[str, str]):
    """The class of each word: for a literal its kind, which no word is spelled like; for others the word itself."""

    def __init__(self, patterns: Mapping[str, str], reserved: Collection[str]) -> None:
        super().__init__((word, word) for word in reserved)
        self._reserved = tuple(reserved)
        kinds = {"BLANK": BLANK, **{name: patterns[name] for name in LITERALS}, "SYMBOL": SYMBOL_TAIL}
        self._kind = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in kinds.items()))

    def __missing__(self, word: str) -> str:
        if len(self) > MAX_CLASSIFIED:
            self.clear()
            self.update((reserved, reserved) for reserved in self._reserved)
        match = self._kind.fullmatch(word)
        found = f" {match.lastgroup}" if match else word
        if len(word) <= MAX_CLASSIFIED_LENGTH:
            self[word] = found
        return found


def _without_groups(pattern: str) -> str:
    """The pattern without capturing groups, which `findall` would return instead of the match."""
    return re.sub(r"(?<!\\)\((?!\?)", "(?:", pattern)

"""Makes a tree again with other literals: what was made of the words of one text, as a function of the words.

Each word and each place of the tree is traced to the words of its text by their offsets. What comes of it is a flat
program: each of its steps makes one part of earlier ones, the words themselves being the first. A tree that doesn't fit
its words exactly makes no program.
"""

from __future__ import annotations

import dataclasses
from operator import itemgetter
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from policyc.diagnostics import Source, Span
from policyc.lang import ast
from policyc.lang.leaves import date_value, duration_value, number_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    T = TypeVar("T")

    Make: TypeAlias = Callable[..., object]
    """Makes a part of others: the class of a node, or a function."""

    Select: TypeAlias = Callable[[list[object]], tuple[object, ...]]
    """Takes the parts that one is made of from all that there are."""

__all__ = ["NotUnderstoodError", "Template", "template"]

CONSTANTS: Final = (None, (), "|", "&")
"""Parts that belong to the shape."""

SOURCE: Final = len(CONSTANTS)
"""The number of the source among the parts. The constants stand before it; the words and their offsets follow."""

FIELDS: Final[Mapping[type, tuple[str, ...]]] = {
    node: tuple(field.name for field in dataclasses.fields(node))
    for node in vars(ast).values()
    if isinstance(node, type) and dataclasses.is_dataclass(node)
}
"""The fields of each kind of node, in the order in which its class takes them."""


class NotUnderstoodError(Exception):
    """A tree doesn't fit its words, or a literal is out of range: Lark has to be asked."""


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """The steps that make statements of the words of one shape, and the number of the part that is all of them."""

    steps: tuple[tuple[Make, Select], ...]
    result: int

    def build(self, words: list[str], offsets: list[int], source: Source) -> tuple[ast.Statement, ...]:
        """The statements of these words, given their offsets (one more than words) and the source they stand in.

        Raises:
            NotUnderstoodError: a literal is out of range.
        """
        parts: list[object] = [*CONSTANTS, source, *words, *offsets]
        for make, select in self.steps:
            parts.append(make(*select(parts)))
        # What the steps were traced for is a tuple of statements, whatever the literals are.
        return cast("tuple[ast.Statement, ...]", parts[self.result])


def template(words: list[str], offsets: list[int], statements: tuple[ast.Statement, ...]) -> Template | None:
    """The template that makes `statements` of `words`, and others of other literals; or None if they don't fit."""
    tracer = _Tracer(words, offsets)
    try:
        result = tracer.part(statements)
    except NotUnderstoodError:
        return None
    return Template(tuple((make, _selector(numbers)) for make, numbers in tracer.steps), result)


class _Tracer:
    """Writes down, step by step, how the parts of a tree come of the words of its text.

    Attributes:
        steps: what each makes of the parts with which numbers, and the number of the part that comes of it.
    """

    def __init__(self, words: list[str], offsets: list[int]) -> None:
        self._words = words
        self._index = {offset: index for index, offset in enumerate(offsets)}
        self._first_word = SOURCE + 1
        self._first_offset = self._first_word + len(words)
        self._first_step = self._first_offset + len(offsets)
        self.steps: dict[tuple[Make, tuple[int, ...]], int] = {}

    def part(self, part: object) -> int:
        """The number of a part of the tree, once there are steps that make it."""
        match part:
            case None | () | "|" | "&":
                return CONSTANTS.index(part)
            case Span():
                return self._span(*self._bounds(part))
            case ast.Word():
                return self._leaf(ast.Word, part.span, part.text)
            case ast.Text():
                return self._leaf(_text, part.span, f'"{part.text}"')
            case ast.Number():
                return self._number(part)
            case ast.Duration():
                return self._leaf(_duration, part.span, part.text)
            case ast.Date():
                return self._leaf(_date, part.span, part.value.isoformat())
            case tuple():
                return self._step(_tuple, *map(self.part, part))
            case _ if type(part) in FIELDS:
                return self._step(type(part), *(self.part(getattr(part, name)) for name in FIELDS[type(part)]))
            case _:
                raise NotUnderstoodError

    def _step(self, make: Make, *numbers: int) -> int:
        """The number of what `make` makes of the parts with these numbers."""
        return self.steps.setdefault((make, numbers), self._first_step + len(self.steps))

    def _bounds(self, span: Span) -> tuple[int, int]:
        """The indexes of the first word of a place and of the one behind its last."""
        try:
            return self._index[span.start], self._index[span.end]
        except KeyError:
            raise NotUnderstoodError from None

    def _span(self, first: int, end: int) -> int:
        return self._step(Span, SOURCE, self._first_offset + first, self._first_offset + end)

    def _leaf(self, make: Make, span: Span, text: str) -> int:
        """A part that is made of the only word of a place, which is `text`."""
        first, end = self._bounds(span)
        if end != first + 1 or self._words[first] != text:
            raise NotUnderstoodError
        return self._step(make, self._first_word + first, self._span(first, end))

    def _number(self, number: ast.Number) -> int:
        """A number, which may stand behind its sign."""
        first, end = self._bounds(number.span)
        sign = self._words[first] if end > first + 1 else "+"
        if self._words[end - 1] != number.text or sign not in SIGNED:
            raise NotUnderstoodError
        return self._step(SIGNED[sign], self._first_word + end - 1, self._span(first, end))


def _selector(numbers: tuple[int, ...]) -> Select:
    """What takes the parts with these numbers. `itemgetter` gives a tuple only where there are several."""
    if len(numbers) > 1:
        return itemgetter(*numbers)
    (number,) = numbers
    return lambda parts: (parts[number],)


# ---- what steps make, where it isn't a node of what is there


def _tuple(*parts: object) -> tuple[object, ...]:
    return parts


def _text(word: str, span: Span) -> ast.Text:
    return ast.Text(word[1:-1], span)


def _positive(word: str, span: Span) -> ast.Number:
    return ast.Number(_in_range(number_value(word)), word, span)


def _negative(word: str, span: Span) -> ast.Number:
    return ast.Number(-_in_range(number_value(word)), word, span)


def _duration(word: str, span: Span) -> ast.Duration:
    return ast.Duration(_in_range(duration_value(word)), word, span)


def _date(word: str, span: Span) -> ast.Date:
    return ast.Date(_in_range(date_value(word)), span)


def _in_range(value: T | None) -> T:
    if value is None:
        raise NotUnderstoodError
    return value


SIGNED: Final[Mapping[str, Make]] = {"+": _positive, "-": _negative}
"""What makes a number that stands behind this sign."""

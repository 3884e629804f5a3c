"""Makes a tree again with other literals: what was made of the words of one text, as a function of the words.

Each word and each place of the tree is traced to the words of its text by their offsets, and written down as one Python
expression of constructor calls. A tree that doesn't fit the words exactly makes no template.

INVARIANT (no text of the author's in the expression): it consists of the names in `_NAMESPACE`, of indexes of words,
and of nothing else.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from policyc.diagnostics import Source, Span
from policyc.lang import ast
from policyc.lang.leaves import date_value, duration_value, number_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

    Template: TypeAlias = Callable[[list[str], list[int], Source], tuple[ast.Statement, ...]]
    """Makes statements of words, their offsets (one more than words), and the source they stand in."""

__all__ = ["NotUnderstoodError", "template"]

MAX_NESTING: Final = 40
"""Nodes inside each other that a template is made for; Python reads no more than 200 brackets inside each other."""


class NotUnderstoodError(Exception):
    """A tree doesn't fit its words, or a literal is out of range: Lark has to be asked."""


def template(words: list[str], offsets: list[int], statements: tuple[ast.Statement, ...]) -> Template | None:
    """The function that makes `statements` of `words`, and others of other literals; or None if they don't fit.

    Called with words of the same shape it raises `NotUnderstoodError` where a literal is out of range.
    """
    try:
        expression = _Tracer(words, offsets).written(statements)
    except NotUnderstoodError:
        return None
    return cast("Template", eval(f"lambda words, at, source: {expression}", _NAMESPACE))


class _Tracer:
    """Writes the parts of a tree as expressions of the words of its text."""

    def __init__(self, words: list[str], offsets: list[int]) -> None:
        self._words = words
        self._index = {offset: index for index, offset in enumerate(offsets)}
        self._spans: set[tuple[int, int]] = set()

    def written(self, part: object, depth: int = 0) -> str:
        """The expression that makes this part."""
        match part:
            case None:
                return "None"
            case Span():
                return self._span(part)
            case ast.Word():
                return f"Word(words[{self._one_word(part.span, part.text)}], {self._span(part.span)})"
            case ast.Text():
                quoted = f'"{part.text}"'
                return f"Text(words[{self._one_word(part.span, quoted)}][1:-1], {self._span(part.span)})"
            case ast.Number():
                return self._number(part)
            case ast.Duration():
                word = f"words[{self._one_word(part.span, part.text)}]"
                return f"Duration(duration({word}), {word}, {self._span(part.span)})"
            case ast.Date():
                word = f"words[{self._one_word(part.span, part.value.isoformat())}]"
                return f"Date(date({word}), {self._span(part.span)})"
            case tuple():
                return f"({''.join(f'{self.written(element, depth)}, ' for element in part)})"
            case ast.BitOp():
                # Signs belong to the shape.
                operands = self.written(part.operands, depth + 1)
                return f"BitOp({'OR' if part.operator == '|' else 'AND'}, {operands}, {self._span(part.span)})"
            case _ if type(part).__name__ in _NAMESPACE and dataclasses.is_dataclass(part) and depth < MAX_NESTING:
                values = (getattr(part, field.name) for field in dataclasses.fields(part))
                return f"{type(part).__name__}({', '.join(self.written(value, depth + 1) for value in values)})"
            case _:
                raise NotUnderstoodError

    def _bounds(self, span: Span) -> tuple[int, int]:
        """The indexes of the first word of a place and of the one behind its last."""
        try:
            return self._index[span.start], self._index[span.end]
        except KeyError:
            raise NotUnderstoodError from None

    def _one_word(self, span: Span, text: str) -> int:
        """The index of the only word of a place."""
        first, end = self._bounds(span)
        if end != first + 1 or self._words[first] != text:
            raise NotUnderstoodError
        return first

    def _span(self, span: Span) -> str:
        first, end = self._bounds(span)
        name = f"span_{first}_{end}"
        if (first, end) in self._spans:
            return name
        self._spans.add((first, end))
        return f"({name} := Span(source, at[{first}], at[{end}]))"

    def _number(self, number: ast.Number) -> str:
        first, end = self._bounds(number.span)
        word = f"words[{end - 1}]"
        if self._words[end - 1] != number.text or (end > first + 1 and self._words[first] not in ("+", "-")):
            raise NotUnderstoodError
        return f"Number({'-' if self._words[first] == '-' else ''}number({word}), {word}, {self._span(number.span)})"


def _number(text: str) -> int:
    return _in_range(number_value(text))


def _in_range(value: T | None) -> T:
    if value is None:
        raise NotUnderstoodError
    return value


_NODES: Final = (node for node in vars(ast).values() if dataclasses.is_dataclass(node) and isinstance(node, type))

_NAMESPACE: Final[dict[str, object]] = {
    **{node.__name__: node for node in _NODES},
    "Span": Span,
    "OR": "|",
    "AND": "&",
    "number": _number,
    "duration": lambda text: _in_range(duration_value(text)),
    "date": lambda text: _in_range(date_value(text)),
    "__builtins__": {},
}
"""All that a template can name."""

"""Conditions of a plan: typed expressions over the fields of one event.

The classes are data alone. Conditions are built by the functions of `policyc.plan.canonical`, which bring them into the
one form in which equal meaning looks equal; that form is part of a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "Bits",
    "Comparison",
    "Complement",
    "Condition",
    "Every",
    "Field",
    "Not",
    "Number",
    "Some",
    "Truth",
    "Value",
    "Within",
    "fields_of",
    "places_of",
    "text_of",
]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the event, by its word in the catalogue."""

    word: str


@dataclass(frozen=True, slots=True)
class Number:
    """A number of 64 bits."""

    value: int


@dataclass(frozen=True, slots=True)
class Bits:
    """Two or more values joined bit by bit; `operator` is `&` or `|`."""

    operator: str
    operands: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Complement:
    """All bits of a field turned over."""

    operand: Field


Value: TypeAlias = Field | Number | Bits | Complement


@dataclass(frozen=True, slots=True)
class Truth:
    """Always, or never."""

    value: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """`left OP right`, without sign."""

    left: Value
    operator: str
    right: Value


@dataclass(frozen=True, slots=True)
class Within:
    """An address lies in one of these places, given by their indices."""

    value: Value
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """An address lies in none of the places."""

    operand: Within


@dataclass(frozen=True, slots=True)
class Every:
    """Two or more conditions, all of them."""

    operands: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """Two or more conditions, any of them."""

    operands: tuple[Condition, ...]


Condition: TypeAlias = Truth | Comparison | Within | Not | Every | Some


def fields_of(condition: Condition) -> frozenset[str]:
    """The words of the fields that it reads."""
    return frozenset(node.word for node in _nodes(condition) if isinstance(node, Field))


def places_of(condition: Condition) -> frozenset[int]:
    """The indices of the places that it names."""
    return frozenset(index for node in _nodes(condition) if isinstance(node, Within) for index in node.places)


def text_of(condition: Condition, name_of: Callable[[int], str]) -> str:
    """The condition in the language's words; the same for equal meaning, whatever indices its places have."""
    match condition:
        case Truth(value):
            return "always" if value else "never"
        case Comparison(left, sign, right):
            return f"{_value_text(left)} {sign} {_value_text(right)}"
        case Within(value, places):
            return f"{_value_text(value)} in {', '.join(sorted(map(name_of, places)))}"
        case Not(operand):
            return f"not ({text_of(operand, name_of)})"
        case Every(operands):
            texts = (f"({t})" if isinstance(o, Some) else t for o in operands for t in [text_of(o, name_of)])
            return " and ".join(sorted(texts))
        case Some(operands):
            return " or ".join(sorted(text_of(operand, name_of) for operand in operands))


def _value_text(value: Value) -> str:
    match value:
        case Field(word):
            return word
        case Number(number):
            return hex(number)
        case Complement(operand):
            return f"~{operand.word}"
        case Bits(sign, operands):
            texts = (f"({t})" if isinstance(o, Bits) else t for o in operands for t in [_value_text(o)])
            return f" {sign} ".join(texts)


def _nodes(node: Condition | Value) -> Iterator[Condition | Value]:
    yield node
    match node:
        case Every(operands) | Some(operands):
            for condition in operands:
                yield from _nodes(condition)
        case Bits(_, values):
            for value in values:
                yield from _nodes(value)
        case Not(operand):
            yield from _nodes(operand)
        case Complement(field):
            yield field
        case Within(value):
            yield from _nodes(value)
        case Comparison(left, _, right):
            yield from _nodes(left)
            yield from _nodes(right)
        case _:
            pass

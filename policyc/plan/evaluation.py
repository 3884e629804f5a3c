"""Conditions as functions of an event: compiled once when a table is built, called while a vCPU stands still.

A field may have no value at run time, and then a condition may have no answer. `and`, `or` and `not` follow Kleene's
logic of three values: the answer is None only where the unknown value decides it. What None counts as is up to the one
who asks: true in a rule, false where it would make a verdict milder.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from policyc.catalog import FIELDS, Unknown
from policyc.plan.canonical import ALL_ONES, OPERATORS
from policyc.plan.conditions import (
    Bits,
    Comparison,
    Complement,
    Condition,
    Every,
    Field,
    Not,
    Number,
    Some,
    Truth,
    Value,
    Within,
)

__all__ = ["Addresses", "Fields", "Test", "compile_condition", "no_fields"]

Fields: TypeAlias = Callable[[str], "int | None"]
"""The value of an event's field by its word in the catalogue; None where it isn't known."""

Test: TypeAlias = Callable[[Fields], "bool | None"]
"""A compiled condition; None where the fields that decide it have no value."""

Reader: TypeAlias = Callable[[Fields], "int | None"]


class Addresses(Protocol):
    """A set of addresses."""

    def __contains__(self, address: int) -> bool: ...


def no_fields(word: str) -> int | None:
    """Fields of which none is known."""
    return None


def compile_condition(condition: Condition, ranges_of: Callable[[int], Addresses]) -> Test:
    """The condition as a function; `ranges_of` gives the addresses of a place by its index."""
    match condition:
        case Truth(truth):
            return lambda fields: truth
        case Comparison(left, sign, Number(number)):
            return _compared_with(_reader(left), OPERATORS[sign], number)
        case Comparison(left, sign, right):
            return _compared(_reader(left), OPERATORS[sign], _reader(right))
        case Within(value, places):
            return _within(_reader(value), [ranges_of(index) for index in places])
        case Not(operand):
            return _negated(compile_condition(operand, ranges_of))
        case Every(operands):
            return _joined([compile_condition(one, ranges_of) for one in operands], decisive=False)
        case Some(operands):
            return _joined([compile_condition(one, ranges_of) for one in operands], decisive=True)


def _compared_with(read: Reader, compare: Callable[[int, int], bool], number: int) -> Test:
    def test(fields: Fields) -> bool | None:
        value = read(fields)
        return None if value is None else compare(value, number)

    return test


def _compared(read_left: Reader, compare: Callable[[int, int], bool], read_right: Reader) -> Test:
    def test(fields: Fields) -> bool | None:
        left, right = read_left(fields), read_right(fields)
        return None if left is None or right is None else compare(left, right)

    return test


def _within(read: Reader, ranges: Sequence[Addresses]) -> Test:
    def test(fields: Fields) -> bool | None:
        address = read(fields)
        return None if address is None else any(address in one for one in ranges)

    return test


def _negated(positive: Test) -> Test:
    def test(fields: Fields) -> bool | None:
        answer = positive(fields)
        return None if answer is None else not answer

    return test


def _joined(tests: Sequence[Test], *, decisive: bool) -> Test:
    """`or`, which one true operand decides, and `and`, which one false one does."""

    def test(fields: Fields) -> bool | None:
        joined: bool | None = not decisive
        for one in tests:
            answer = one(fields)
            if answer is decisive:
                return decisive
            if answer is None:
                joined = None
        return joined

    return test


def _reader(value: Value) -> Reader:
    match value:
        case Number(number):
            return lambda fields: number
        case Field(word):
            return _field(word)
        case Complement(field):
            return _inverted(_field(field.word))
        case Bits(sign, operands):
            join = operator.and_ if sign == "&" else operator.or_
            return _bits([_reader(operand) for operand in operands], join)


def _field(word: str) -> Reader:
    if FIELDS[word].unknown is not Unknown.ALL_ONES:
        return lambda fields: fields(word)

    def read(fields: Fields) -> int | None:
        value = fields(word)
        return None if value == ALL_ONES else value

    return read


def _inverted(read: Reader) -> Reader:
    def inverted(fields: Fields) -> int | None:
        value = read(fields)
        return None if value is None else value ^ ALL_ONES

    return inverted


def _bits(readers: Sequence[Reader], join: Callable[[int, int], int]) -> Reader:
    def read(fields: Fields) -> int | None:
        joined: int | None = None
        for one in readers:
            value = one(fields)
            if value is None:
                return None
            joined = value if joined is None else join(joined, value)
        return joined

    return read

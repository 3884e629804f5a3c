"""Builds conditions in canonical form, so that policies of equal meaning give equal plans as far as that is cheap.

Operands of `and`, `or`, `&` and `|` are flat, sorted and without repetition; `not` and `~` stand at the leaves; a
number is on the right of its comparison, which then is one of `==`, `!=`, `<`, `>=`; a test of one single bit asks for
that bit alone. No rewriting changes the answer where every field is known.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence

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

__all__ = [
    "ALL_ONES",
    "OPERATORS",
    "bit_and",
    "bit_or",
    "compare",
    "complement",
    "every",
    "negate",
    "renumbered",
    "some",
    "within",
]

ALL_ONES = (1 << 64) - 1
"""The largest value: every field and every number has 64 bits and no sign."""

OPERATORS: Mapping[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

_FLIPPED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_NEGATED = {"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}


# --- values ---


def bit_and(values: Iterable[Value]) -> Value:
    """The bits that all values have."""
    mask, others = _joined("&", values, operator.and_, ALL_ONES)
    if mask == 0 or not others:
        return Number(mask)
    return _bits("&", [*others, *([Number(mask)] if mask != ALL_ONES else [])])


def bit_or(values: Iterable[Value]) -> Value:
    """The bits that any value has."""
    mask, others = _joined("|", values, operator.or_, 0)
    if mask == ALL_ONES or not others:
        return Number(mask)
    return _bits("|", [*others, *([Number(mask)] if mask else [])])


def complement(value: Value) -> Value:
    """All bits of the value turned over."""
    match value:
        case Number(number):
            return Number(number ^ ALL_ONES)
        case Complement(field):
            return field
        case Bits("&", operands):
            return bit_or(map(complement, operands))
        case Bits(_, operands):
            return bit_and(map(complement, operands))
        case Field():
            return Complement(value)


def _joined(
    sign: str, values: Iterable[Value], join: Callable[[int, int], int], neutral: int
) -> tuple[int, list[Value]]:
    """All numbers as one, and the other values sorted, each once."""
    number, others = neutral, set[Value]()
    for value in values:
        for part in value.operands if isinstance(value, Bits) and value.operator == sign else (value,):
            if isinstance(part, Number):
                number = join(number, part.value)
            else:
                others.add(part)
    return number, sorted(others, key=_key)


def _bits(sign: str, operands: Sequence[Value]) -> Value:
    return operands[0] if len(operands) == 1 else Bits(sign, tuple(operands))


# --- conditions ---


def compare(left: Value, sign: str, right: Value) -> Condition:
    """`left SIGN right`, where `sign` is a key of `OPERATORS`."""
    if isinstance(left, Number) or (not isinstance(right, Number) and _key(right) < _key(left)):
        left, sign, right = right, _FLIPPED[sign], left
    if not isinstance(right, Number):
        return Comparison(left, sign, right)
    if isinstance(left, Number):
        return Truth(OPERATORS[sign](left.value, right.value))
    sign, number = _narrowed(sign, right.value)
    mask = _single_bit(left)
    if mask and sign in ("==", "!=") and number in (0, mask):
        return _bit_test(left, mask, is_set=(sign == "!=") == (number == 0))
    return Comparison(left, sign, Number(number))


def within(value: Value, places: Iterable[int]) -> Condition:
    """The address lies in one of the places."""
    indices = tuple(sorted(set(places)))
    return Within(value, indices) if indices else Truth(False)


def negate(condition: Condition) -> Condition:
    """The opposite."""
    match condition:
        case Truth(value):
            return Truth(not value)
        case Comparison(left, sign, right):
            return compare(left, _NEGATED[sign], right)
        case Within():
            return Not(condition)
        case Not(operand):
            return operand
        case Every(operands):
            return some(map(negate, operands))
        case Some(operands):
            return every(map(negate, operands))


def every(conditions: Iterable[Condition]) -> Condition:
    """All of them; of none, always."""
    flat = [part for one in conditions for part in (one.operands if isinstance(one, Every) else (one,))]
    if Truth(False) in flat:
        return Truth(False)
    parts = _distinct(flat)
    return parts[0] if len(parts) == 1 else Every(parts) if parts else Truth(True)


def some(conditions: Iterable[Condition]) -> Condition:
    """Any of them; of none, never."""
    flat = [part for one in conditions for part in (one.operands if isinstance(one, Some) else (one,))]
    if Truth(True) in flat:
        return Truth(True)
    parts = _distinct(flat)
    return parts[0] if len(parts) == 1 else Some(parts) if parts else Truth(False)


def _distinct(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    return tuple(sorted({part for part in conditions if not isinstance(part, Truth)}, key=_key))


def _narrowed(sign: str, number: int) -> tuple[str, int]:
    """One of `==`, `!=`, `<`, `>=` that says the same of every number of 64 bits."""
    if sign == "<=":
        sign, number = ("<", number + 1) if number < ALL_ONES else (">=", 0)
    elif sign == ">":
        sign, number = (">=", number + 1) if number < ALL_ONES else ("<", 0)
    return {
        ("<", 1): ("==", 0),
        (">=", 1): ("!=", 0),
        ("<", ALL_ONES): ("!=", ALL_ONES),
        (">=", ALL_ONES): ("==", ALL_ONES),
    }.get((sign, number), (sign, number))


def _single_bit(value: Value) -> int:
    """The one bit that the value may have set, or 0 where it may have others."""
    if not isinstance(value, Bits) or value.operator != "&":
        return 0
    last = value.operands[-1]
    mask = last.value if isinstance(last, Number) else 0
    return mask if mask & (mask - 1) == 0 else 0


def _bit_test(value: Value, mask: int, *, is_set: bool) -> Condition:
    """Whether the value has its bit `mask` set, or clear: each operand is asked by itself."""
    match value:
        case Number(number):
            return Truth((number & mask != 0) == is_set)
        case Bits(sign, operands):
            join = every if (sign == "&") == is_set else some
            return join(_bit_test(operand, mask, is_set=is_set) for operand in operands)
        case Complement(field):
            return _bit_test(field, mask, is_set=not is_set)
        case Field():
            return Comparison(Bits("&", (value, Number(mask))), "!=" if is_set else "==", Number(0))


# --- whole conditions ---


def renumbered(condition: Condition, index_of: Callable[[int], int]) -> Condition:
    """The same with other indices of places, in canonical form again."""
    match condition:
        case Within(value, places):
            return within(_rebuilt(value), map(index_of, places))
        case Not(operand):
            return negate(renumbered(operand, index_of))
        case Every(operands):
            return every(renumbered(operand, index_of) for operand in operands)
        case Some(operands):
            return some(renumbered(operand, index_of) for operand in operands)
        case Comparison(left, sign, right):
            return compare(_rebuilt(left), sign, _rebuilt(right))
        case Truth():
            return condition


def _rebuilt(value: Value) -> Value:
    match value:
        case Bits(sign, operands):
            return (bit_and if sign == "&" else bit_or)(map(_rebuilt, operands))
        case Complement(operand):
            return complement(operand)
        case _:
            return value


def _key(node: Condition | Value) -> tuple[str, ...]:
    """What operands are sorted by: a number behind everything else, the rest by what they say."""
    match node:
        case Number(value):
            return ("~", f"{value:016x}")
        case Within(value, places):
            return ("in", *_key(value), *(f"{index:08}" for index in places))
        case Comparison(left, sign, right):
            return ("compare", *_key(left), *_key(right), sign)
        case Bits(sign, values):
            return ("bits", sign, *(word for value in values for word in _key(value)))
        case Complement(field):
            return ("complement", field.word)
        case Field(word):
            return ("", word)
        case Truth(truth):
            return ("truth", str(truth))
        case Not(operand):
            return ("not", *_key(operand))
        case Every(operands):
            return ("every", *(word for operand in operands for word in _key(operand)))
        case Some(operands):
            return ("some", *(word for operand in operands for word in _key(operand)))

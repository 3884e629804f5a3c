"""A naive interpreter of conditions as they are written, and conditions made up at random that are typed right."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from policyc.catalog import ACCESS_WORDS, CONTROL_BITS
from policyc.lang import ast

__all__ = ["PLACES", "conditions", "interpret", "values"]

ALL_ONES = (1 << 64) - 1

PLACES: Mapping[str, range] = {
    "virtual 0x10..0x20": range(0x10, 0x20),
    "virtual 0x18..0x40": range(0x18, 0x40),
    "virtual 0x0..0x8": range(8),
}
"""Places that the conditions name, and their addresses."""

_BITS = {word: mask for bits in CONTROL_BITS.values() for word, mask in bits.items()}
_COMPARE: Mapping[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Fields = Mapping[str, "int | None"]


def interpret(written: ast.Expression, fields: Fields) -> bool | None:
    """The condition's answer; None where a field without value leaves it open."""
    match written:
        case ast.Or(operands):
            answers = [interpret(operand, fields) for operand in operands]
            return True if True in answers else None if None in answers else False
        case ast.And(operands):
            answers = [interpret(operand, fields) for operand in operands]
            return False if False in answers else None if None in answers else True
        case ast.Not(operand):
            answer = interpret(operand, fields)
            return None if answer is None else not answer
        case ast.Compare(left, sign, right):
            one, other = _value(left, fields), _value(right, fields)
            return None if one is None or other is None else _COMPARE[sign.text](one, other)
        case ast.InPlace(value, place):
            address = _value(value, fields)
            return None if address is None else address in PLACES[place.span.text]
        case ast.Call(function, argument):
            old, new, mask = fields["old"], fields["new"], _value(argument, fields)
            if old is None or new is None or mask is None:
                return None
            before, after = (old, new) if function.text == "clears" else (new, old)
            return any(before >> bit & 1 and not after >> bit & 1 and mask >> bit & 1 for bit in range(64))
        case _:
            bits = _value(written, fields)
            return None if bits is None else bits != 0


def _value(written: ast.Expression, fields: Fields) -> int | None:
    match written:
        case ast.Number(number):
            return number
        case ast.Word(text) if text in fields:
            return fields[text]
        case ast.Word(text):
            return _BITS[text] if text in _BITS else int(ACCESS_WORDS[text])
        case ast.Complement(operand):
            value = _value(operand, fields)
            return None if value is None else ALL_ONES ^ value
        case ast.BitOp(sign, operands):
            joined = 0 if sign == "|" else ALL_ONES
            for operand in operands:
                value = _value(operand, fields)
                if value is None:
                    return None
                joined = joined | value if sign == "|" else joined & value
            return joined
        case _:
            raise AssertionError(f"{written} is no value")


def values(fields: SearchStrategy[str], masks: SearchStrategy[str]) -> SearchStrategy[str]:
    """Texts of values: fields and masks under `&`, `|` and `~`."""
    bits = st.recursive(
        masks,
        lambda inner: (
            inner.map(lambda one: f"~({one})") | st.tuples(inner, inner).map(lambda two: f"({two[0]} | {two[1]})")
        ),
        max_leaves=3,
    )
    masked = st.tuples(fields, bits).map(lambda two: f"{two[0]} & {two[1]}")
    turned = st.tuples(fields, fields, bits).map(lambda three: f"({three[0]} | ~{three[1]}) & {three[2]}")
    both = st.tuples(fields, fields).map(lambda two: f"{two[0]} & {two[1]}")
    return masked | turned | both


def conditions(
    fields: SearchStrategy[str],
    masks: SearchStrategy[str],
    addresses: SearchStrategy[str],
    numbers: SearchStrategy[int],
    calls: bool,
) -> SearchStrategy[str]:
    """Texts of conditions."""
    value = fields | values(fields, masks)
    signs = st.sampled_from(sorted(_COMPARE))
    places = st.sampled_from(sorted(PLACES))
    leaf = st.one_of(
        st.tuples(value, signs, numbers).map(lambda t: f"{t[0]} {t[1]} {t[2]:#x}"),
        st.tuples(numbers, signs, value).map(lambda t: f"{t[0]:#x} {t[1]} {t[2]}"),
        st.tuples(value, signs, value).map(" ".join),
        st.tuples(numbers, signs, numbers).map(lambda t: f"{t[0]:#x} {t[1]} {t[2]:#x}"),
        values(fields, masks),
        st.tuples(addresses, places).map(lambda t: f"{t[0]} in {t[1]}"),
        *(
            [st.tuples(st.sampled_from(["clears", "sets"]), masks).map(lambda t: f"{t[0]}({t[1]} | 0x2)")]
            if calls
            else []
        ),
        *([st.tuples(st.sampled_from(["clears", "sets"]), masks).map(lambda t: f"{t[0]}({t[1]})")] if calls else []),
    )
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            inner.map(lambda one: f"not ({one})"),
            st.lists(inner, min_size=2, max_size=3).map(lambda some: f"({' and '.join(some)})"),
            st.lists(inner, min_size=2, max_size=3).map(lambda some: f"({' or '.join(some)})"),
        ),
        max_leaves=6,
    )

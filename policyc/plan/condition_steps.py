"""Conditions in a plan file: a flat list in postfix order, such as `["old", "0x10000", "&", "0x0", "!="]`.

A flat list needs no recursion to read, so its limits can be checked before anything is built. What is read must be in
canonical form: two plan files never say the same in different ways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from policyc.catalog import FIELDS
from policyc.plan.canonical import OPERATORS, renumbered
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

__all__ = ["MAX_STEPS", "Step", "decode_condition", "encode_condition"]

Step: TypeAlias = "str | Mapping[str, Sequence[int]]"
"""A field, a number, a sign or word of the language, or `{"in": [place, ...]}`."""

MAX_STEPS = 2048
"""Steps of one condition."""

MAX_DEPTH = 128
"""How deep operands may stand in each other: evaluating one is a call within a call."""

_NUMBER = re.compile(r"0x(0|[1-9a-f][0-9a-f]{0,15})")
_TRUTHS = {"always": Truth(True), "never": Truth(False)}


def encode_condition(condition: Condition) -> list[Step]:
    """The condition as steps."""
    match condition:
        case Truth(truth):
            return ["always" if truth else "never"]
        case Comparison(left, sign, right):
            return [*_encode_value(left), *_encode_value(right), sign]
        case Within(value, places):
            return [*_encode_value(value), {"in": list(places)}]
        case Not(operand):
            return [*encode_condition(operand), "not"]
        case Every(operands):
            return _joined([encode_condition(operand) for operand in operands], "and")
        case Some(operands):
            return _joined([encode_condition(operand) for operand in operands], "or")


def decode_condition(steps: Sequence[Step]) -> Condition:
    """The condition that the steps build.

    Raises:
        ValueError: they build none, or one that is too deep or not in canonical form.
    """
    if len(steps) > MAX_STEPS:
        raise ValueError(f"a condition has {len(steps)} steps, at most {MAX_STEPS} are read")
    stack = _Stack()
    for step in steps:
        stack.take(step)
    condition = stack.whole()
    if renumbered(condition, lambda index: index) != condition:
        raise ValueError("a condition isn't in canonical form")
    return condition


def _encode_value(value: Value) -> list[Step]:
    match value:
        case Field(word):
            return [word]
        case Number(number):
            return [hex(number)]
        case Complement(field):
            return [field.word, "~"]
        case Bits(sign, operands):
            return _joined([_encode_value(operand) for operand in operands], sign)


def _joined(operands: Sequence[list[Step]], sign: str) -> list[Step]:
    first, *rest = operands
    return [*first, *(step for operand in rest for step in (*operand, sign))]


class _Stack:
    """Operands that no later step has taken up yet, each with its depth."""

    def __init__(self) -> None:
        self._operands: list[tuple[Value | Condition, int]] = []

    def take(self, step: Step) -> None:
        """Carry one step out."""
        if not isinstance(step, str):
            value, depth = self._pop_value()
            self._push(Within(value, tuple(step["in"])), depth)
        elif step in FIELDS:
            self._push(Field(step))
        elif _NUMBER.fullmatch(step):
            self._push(Number(int(step, 16)))
        elif step in OPERATORS:
            (right, below_right), (left, below_left) = self._pop_value(), self._pop_value()
            self._push(Comparison(left, step, right), max(below_left, below_right))
        elif step in ("&", "|"):
            self._join_values(step)
        elif step in ("and", "or"):
            self._join_conditions(Every if step == "and" else Some)
        elif step in ("~", "not"):
            self._turn_over(step)
        elif step in _TRUTHS:
            self._push(_TRUTHS[step])
        else:
            raise ValueError(f"a condition has the step `{step[:40]}`, which means nothing")

    def whole(self) -> Condition:
        """What is left in the end: one condition."""
        condition, _ = self._pop_condition()
        if self._operands:
            raise ValueError("a condition has a value that nothing takes up")
        return condition

    def _join_values(self, sign: str) -> None:
        (right, below_right), (left, below_left) = self._pop_value(), self._pop_value()
        if isinstance(left, Bits) and left.operator == sign:
            self._push(Bits(sign, (*left.operands, right)), max(below_left - 1, below_right))
        else:
            self._push(Bits(sign, (left, right)), max(below_left, below_right))

    def _join_conditions(self, kind: type[Every] | type[Some]) -> None:
        (right, below_right), (left, below_left) = self._pop_condition(), self._pop_condition()
        if isinstance(left, kind):
            self._push(kind((*left.operands, right)), max(below_left - 1, below_right))
        else:
            self._push(kind((left, right)), max(below_left, below_right))

    def _turn_over(self, sign: str) -> None:
        operand, below = self._pop()
        if sign == "~" and isinstance(operand, Field):
            self._push(Complement(operand), below)
        elif sign == "not" and isinstance(operand, Within):
            self._push(Not(operand), below)
        else:
            raise ValueError(f"in a condition `{sign}` has no {'field' if sign == '~' else 'test for a place'}")

    def _push(self, operand: Value | Condition, below: int = 0) -> None:
        if below >= MAX_DEPTH:
            raise ValueError(f"a condition is nested deeper than {MAX_DEPTH}")
        self._operands.append((operand, below + 1))

    def _pop(self) -> tuple[Value | Condition | None, int]:
        return self._operands.pop() if self._operands else (None, 0)

    def _pop_value(self) -> tuple[Value, int]:
        operand, depth = self._pop()
        if isinstance(operand, (Field, Number, Bits, Complement)):
            return operand, depth
        raise ValueError("in a condition a sign lacks a value")

    def _pop_condition(self) -> tuple[Condition, int]:
        operand, depth = self._pop()
        if isinstance(operand, (Truth, Comparison, Within, Not, Every, Some)):
            return operand, depth
        raise ValueError("a condition lacks an operand")

"""Conditions that can never hold: found by what each part says about the values, bits and addresses of one field.

The answer is "never" only where it is certain. What is not understood, such as how two fields depend on each other,
counts as possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, product

from policyc.plan.canonical import ALL_ONES, OPERATORS, every, negate
from policyc.plan.conditions import (
    Bits,
    Comparison,
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
from policyc.plan.places import Extent

__all__ = ["Facts", "always_holds", "excepts", "never_holds"]

MAX_CASES = 64
"""Ways in which `or` may come true that are looked at; a condition with more counts as possible."""

MAX_PAIRS = 10_000
"""Pairs of ranges that are compared."""

MAX_LISTED = 4096
"""Values of a field that are tried one by one."""

Literal = Comparison | Within | Not


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known before any condition is asked.

    Attributes:
        values: what a field can be, by its word, ascending; every field that isn't here has 64 bits.
        places: the bytes of the places that the condition numbers; None where they aren't known.
        changes: whether `old` and `new` always differ.
    """

    values: Mapping[str, Sequence[int]] = field(default_factory=dict)
    places: Sequence[tuple[Extent, ...] | None] = ()
    changes: bool = False


def never_holds(condition: Condition, facts: Facts) -> bool:
    """Whether no values of the fields make the condition true."""
    cases = _cases(condition)
    return cases is not None and all(_is_impossible(case, facts) for case in cases)


def always_holds(condition: Condition, facts: Facts) -> bool:
    """Whether every value of the fields makes the condition true."""
    return never_holds(negate(condition), facts)


def excepts(rule: Condition | None, exception: Condition | None, facts: Facts) -> tuple[bool, bool]:
    """Whether an exception under a condition lifts a rule under another never, and whether it always does."""
    applies = Truth(True) if rule is None else rule
    lifts = Truth(True) if exception is None else exception
    return never_holds(every([applies, lifts]), facts), never_holds(every([applies, negate(lifts)]), facts)


def _cases(condition: Condition) -> list[tuple[Literal, ...]] | None:
    """The ways in which the condition comes true, each as parts that all hold; None where there are too many."""
    match condition:
        case Truth(truth):
            return [()] if truth else []
        case Some(operands):
            found: list[tuple[Literal, ...]] = []
            for operand in operands:
                cases = _cases(operand)
                if cases is None or len(found) + len(cases) > MAX_CASES:
                    return None
                found += cases
            return found
        case Every(operands):
            choices = []
            count = 1
            for operand in operands:
                cases = _cases(operand)
                count *= 0 if cases is None else len(cases)
                if cases is None or count > MAX_CASES:
                    return None
                choices.append(cases)
            return [tuple(chain.from_iterable(choice)) for choice in product(*choices)]
        case _:
            return [(condition,)]


def _is_impossible(case: Sequence[Literal], facts: Facts) -> bool:
    about: dict[str, list[Comparison]] = {}
    for literal in case:
        if isinstance(literal, Comparison):
            if _never_compares(literal, facts):
                return True
            word = _field_of(literal)
            if word is not None:
                about.setdefault(word, []).append(literal)
    ranges = {word: _Range(facts.values.get(word)) for word in about}
    if any(ranges[word].excludes(comparisons) for word, comparisons in about.items()):
        return True
    old, new = ranges.get("old"), ranges.get("new")
    if facts.changes and old is not None and new is not None and old.only is not None and old.only == new.only:
        return True
    return _lies_nowhere([literal for literal in case if not isinstance(literal, Comparison)], facts)


def _never_compares(literal: Comparison, facts: Facts) -> bool:
    """Whether a comparison of two values is false whatever they are."""
    left, sign, right = literal.left, literal.operator, literal.right
    if left == right:
        return sign in ("!=", "<", ">")
    both = {left, right} == {Field("old"), Field("new")}
    if both and facts.changes and sign == "==":
        return True
    return isinstance(right, Number) and not _can_compare(left, sign, right.value)


def _can_compare(left: Value, sign: str, number: int) -> bool:
    """Whether a value can fit the comparison, by the bits that a mask leaves it or that are set in it anyway."""
    lowest, highest = 0, ALL_ONES
    if isinstance(left, Bits) and isinstance(left.operands[-1], Number):
        mask = left.operands[-1].value
        if left.operator == "&":
            highest = mask
            if sign == "==" and number & ~mask:
                return False
        else:
            lowest = mask
            if sign == "==" and mask & ~number:
                return False
    match sign:
        case "<":
            return lowest < number
        case ">=":
            return highest >= number
        case "==":
            return lowest <= number <= highest
        case _:
            return not lowest == highest == number


def _field_of(literal: Comparison) -> str | None:
    """The one field that is compared with a number, by itself or under a mask."""
    match literal:
        case Comparison(Field(word), _, Number()) | Comparison(Bits("&", (Field(word), Number())), _, Number()):
            return word
        case _:
            return None


class _Range:
    """What one field can still be."""

    def __init__(self, values: Sequence[int] | None) -> None:
        self._lowest, self._highest = (values[0], values[-1]) if values is not None else (0, ALL_ONES)
        self._listed = values if self._highest - self._lowest < MAX_LISTED else None
        self._ones = 0
        self._zeros = 0

    @property
    def only(self) -> int | None:
        """The one value that is left, if it is one."""
        if self._lowest == self._highest:
            return self._lowest
        return self._ones if self._ones | self._zeros == ALL_ONES else None

    def excludes(self, comparisons: Sequence[Comparison]) -> bool:
        """Whether no value fits all of the comparisons, which are about this field."""
        if self._listed is not None:
            return not any(all(_fits(value, one) for one in comparisons) for value in self._listed)
        for one in comparisons:
            self._narrow(one)
        if self._lowest > self._highest or self._ones & self._zeros:
            return True
        if self._ones > self._highest or ~self._zeros & ALL_ONES < self._lowest:
            return True
        only = self.only
        if only is not None:
            return not all(_fits(only, one) for one in comparisons)
        return any(self._misses(one) for one in comparisons)

    def _narrow(self, comparison: Comparison) -> None:
        number = _number(comparison.right)
        match comparison.left, comparison.operator:
            case Field(), "==":
                self._lowest, self._highest = max(self._lowest, number), min(self._highest, number)
            case Field(), "<":
                self._highest = min(self._highest, number - 1)
            case Field(), ">=":
                self._lowest = max(self._lowest, number)
            case Bits(_, (_, Number(mask))), "==":
                self._ones |= number
                self._zeros |= mask & ~number
            case Bits(_, (_, Number(mask))), "!=" if number == 0 and mask & (mask - 1) == 0:
                self._ones |= mask

    def _misses(self, comparison: Comparison) -> bool:
        """Whether bits that are known leave a masked value none but the one that it isn't."""
        match comparison:
            case Comparison(Bits(_, (_, Number(mask))), "!=", Number(number)):
                return mask & ~(self._ones | self._zeros) == 0 and self._ones & mask == number
            case _:
                return False


def _fits(value: int, comparison: Comparison) -> bool:
    left = comparison.left
    mask = _number(left.operands[-1]) if isinstance(left, Bits) else ALL_ONES
    return OPERATORS[comparison.operator](value & mask, _number(comparison.right))


def _number(value: Value) -> int:
    assert isinstance(value, Number), "only comparisons with a number are looked at one by one"
    return value.value


def _lies_nowhere(literals: Iterable[Within | Not], facts: Facts) -> bool:
    """Whether one address would have to lie in places that share no byte, or in and outside of one."""
    inside: dict[Value, list[Within]] = {}
    outside: dict[Value, set[int]] = {}
    for literal in literals:
        if isinstance(literal, Not):
            outside.setdefault(literal.operand.value, set()).update(literal.operand.places)
        else:
            inside.setdefault(literal.value, []).append(literal)
    for value, tests in inside.items():
        excluded = outside.get(value, set())
        if any(set(test.places) <= excluded for test in tests):
            return True
        known = [list(_extents(test, facts)) for test in tests]
        if any(not _meet(one, other) for one, other in combinations(known, 2)):
            return True
    return False


def _extents(test: Within, facts: Facts) -> Iterator[Extent | None]:
    for place in test.places:
        known = facts.places[place] if place < len(facts.places) else None
        yield from (None,) if known is None else known


def _meet(one: Sequence[Extent | None], other: Sequence[Extent | None]) -> bool:
    """Whether two sets of bytes may have one in common; where they lie may not be known."""
    if len(one) * len(other) > MAX_PAIRS:
        return True
    for a, b in product(one, other):
        if a is None or b is None or a.base is not b.base or (a.start < b.end and b.start < a.end):
            return True
    return False

"""Conditions in a plan file: every one read back as it was, and nothing read that no compiler would write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.plan.canonical import bit_and, bit_or, compare, complement, every, negate, renumbered, some, within
from policyc.plan.condition_steps import MAX_DEPTH, MAX_STEPS, Step, decode_condition, encode_condition
from policyc.plan.conditions import Condition, Field, Number, Value, fields_of, places_of, text_of
from policyc.plan.evaluation import compile_condition

OLD, NEW, RIP = Field("old"), Field("new"), Field("rip")

values = st.recursive(
    st.sampled_from([OLD, NEW, RIP]) | st.builds(Number, st.sampled_from([0, 1, 6, 8, (1 << 64) - 1])),
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map(bit_and)
        | st.lists(inner, min_size=2, max_size=3).map(bit_or)
        | inner.map(complement)
    ),
    max_leaves=5,
)
signs = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])


def canonical_conditions() -> st.SearchStrategy[Condition]:
    leaf = st.builds(compare, values, signs, values) | st.builds(
        within, st.sampled_from([RIP, NEW]), st.lists(st.integers(0, 3), max_size=3)
    )
    return st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=3).map(every) | st.lists(inner, max_size=3).map(some) | inner.map(negate)
        ),
        max_leaves=8,
    )


@given(canonical_conditions())
def test_steps__are_read_back_as_they_were(condition: Condition) -> None:
    assert decode_condition(encode_condition(condition)) == condition


@given(canonical_conditions())
def test_canonical__building_it_again_changes_nothing(condition: Condition) -> None:
    assert renumbered(condition, lambda index: index) == condition


@given(canonical_conditions())
def test_canonical__the_opposite_of_the_opposite_is_the_same(condition: Condition) -> None:
    assert negate(negate(condition)) == condition


@given(canonical_conditions(), st.permutations(range(4)))
def test_text__does_not_depend_on_the_places_numbers(condition: Condition, order: list[int]) -> None:
    moved = renumbered(condition, order.__getitem__)
    assert text_of(moved, lambda index: f"place{order.index(index)}") == text_of(condition, lambda i: f"place{i}")


@given(canonical_conditions(), st.permutations(range(4)))
def test_renumbered__moves_every_place_and_no_field(condition: Condition, order: list[int]) -> None:
    moved = renumbered(condition, order.__getitem__)
    assert places_of(moved) == {order[index] for index in places_of(condition)}
    assert fields_of(moved) == fields_of(condition)


TEXTS: list[tuple[Condition, str]] = [
    (compare(bit_and([OLD, Number(0x10)]), "!=", Number(0)), "old & 0x10 != 0x0"),
    (compare(bit_and([bit_or([OLD, NEW]), Number(6)]), "==", Number(2)), "(new | old) & 0x6 == 0x2"),
    (compare(bit_and([OLD, complement(NEW), Number(6)]), "!=", Number(0)), "old & ~new & 0x6 != 0x0"),
    (negate(within(RIP, [2, 1])), "not (rip in p1, p2)"),
    (
        every([some([compare(OLD, "==", Number(1)), compare(NEW, "<", Number(5))]), within(RIP, [0])]),
        "(new < 0x5 or old == 0x1) and rip in p0",
    ),
    (every([]), "always"),
    (some([]), "never"),
]


@pytest.mark.parametrize(("condition", "text"), TEXTS, ids=[text for _, text in TEXTS])
def test_text(condition: Condition, text: str) -> None:
    assert text_of(condition, lambda index: f"p{index}") == text


BAD: dict[str, tuple[list[Step], str]] = {
    "nothing": ([], "lacks an operand"),
    "a value alone": (["old"], "lacks an operand"),
    "a sign alone": (["=="], "a sign lacks a value"),
    "one side": (["old", "=="], "a sign lacks a value"),
    "a condition compared": (["old", "0x1", "==", "0x1", "=="], "a sign lacks a value"),
    "values joined by and": (["old", "new", "and"], "lacks an operand"),
    "something left over": (["old", "new", "0x1", "=="], "a value that nothing takes up"),
    "an unknown word": (["olde", "0x1", "=="], "the step `olde`, which means nothing"),
    "a number with leading zeros": (["old", "0x01", "=="], "the step `0x01`, which means nothing"),
    "a number without prefix": (["old", "1", "=="], "the step `1`, which means nothing"),
    "more than 64 bits": (["old", "0x10000000000000000", "=="], "which means nothing"),
    "not of a comparison": (["old", "0x1", "==", "not"], "`not` has no test for a place"),
    "complement of a number": (["0x1", "~", "old", "=="], "`~` has no field"),
    "a number on the left": (["0x1", "old", "=="], "isn't in canonical form"),
    "the wrong order": (["old", "0x1", "==", "new", "0x1", "==", "and"], "isn't in canonical form"),
    "the same twice": (["old", "0x1", "==", "old", "0x1", "==", "and"], "isn't in canonical form"),
    "places out of order": (["rip", {"in": [2, 1]}], "isn't in canonical form"),
    "numbers that could be joined": (["old", "0x1", "&", "0x1", "&", "0x0", "!="], "isn't in canonical form"),
    "a comparison that is decided": (["0x1", "0x1", "=="], "isn't in canonical form"),
    "too long": (["old"] * (MAX_STEPS + 1), "at most 2048 are read"),
    "too deep": (
        ["old", *(step for _ in range(MAX_DEPTH) for step in ("0x1", "&", "0x1", "|"))],
        "nested deeper than 128",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_decode__refuses(name: str) -> None:
    steps, expected = BAD[name]
    with pytest.raises(ValueError, match=r"(?s).*") as refused:
        decode_condition(steps)
    assert expected in str(refused.value)


@given(
    st.lists(
        st.sampled_from(["old", "new", "0x1", "0x6", "&", "|", "~", "==", "<", "and", "or", "not", "always"])
        | st.just({"in": [0]}),
        max_size=12,
    )
)
def test_decode__gives_a_canonical_condition_or_refuses(steps: list[Step]) -> None:
    try:
        condition = decode_condition(steps)
    except ValueError:
        return
    assert encode_condition(condition) == steps


def test_decode__a_chain_of_the_largest_depth_can_be_evaluated() -> None:
    value: Value = OLD
    for _ in range((MAX_DEPTH - 2) // 2):
        value = bit_or([Number(2), bit_and([Number(12), value, NEW]), RIP])
    deep = compare(value, "==", Number(6))
    assert decode_condition(encode_condition(deep)) == deep
    assert compile_condition(deep, lambda index: range(0))({"old": 4, "new": 12, "rip": 0}.get) is True


def test_decode__many_operands_side_by_side_are_not_deep() -> None:
    flat = some(compare(OLD, "==", Number(number)) for number in range(500))
    assert decode_condition(encode_condition(flat)) == flat

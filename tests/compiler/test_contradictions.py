"""Conditions that can't hold: never claimed of one that can, and found in the shapes that authors write."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.catalog import FIELDS
from policyc.compiler.contradictions import Facts, always_holds, excepts, never_holds
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.guest.readers import build_profile
from policyc.plan.canonical import bit_and, bit_or, compare, complement, every, negate, some, within
from policyc.plan.conditions import Condition, Field, Number
from policyc.plan.evaluation import compile_condition
from policyc.plan.places import Base, Extent
from tests.support.small_kernel import SYSTEM_MAP

PROFILE = build_profile(SYSTEM_MAP.encode())

LARGE = range(1 << 13)
"""More values than are tried one by one."""

PLACES = [(Extent(Base.IMAGE, 0, 8),), (Extent(Base.IMAGE, 4, 12),), (Extent(Base.IMAGE, 8, 16),), None]
ADDRESSES = [range(8), range(4, 12), range(8, 16), range(100, 200)]
FACTS = Facts(values={"rax": LARGE, "cpl": range(4), "old": range(8), "new": range(8)}, places=PLACES, changes=True)

numbers = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 12, 15, 4095, 8190, 8191, 8192]).map(Number)
rax, old, new, rip, cpl = (Field(word) for word in ("rax", "old", "new", "rip", "cpl"))
masked = st.builds(lambda mask: bit_and([rax, mask]), numbers)
terms = st.one_of(
    st.sampled_from([rax, cpl, old, new, complement(old)]),
    masked,
    st.builds(lambda mask: bit_or([rax, mask]), numbers),
    st.builds(lambda mask: bit_and([old, mask]), numbers),
)
leaves = st.one_of(
    st.builds(compare, terms, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), numbers),
    st.builds(compare, st.just(old), st.sampled_from(["==", "!=", "<"]), st.just(new)),
    st.builds(within, st.just(rip), st.lists(st.integers(0, 3), min_size=1, max_size=2)),
)
some_conditions = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, min_size=2, max_size=4).map(every)
        | st.lists(inner, min_size=2, max_size=3).map(some)
        | inner.map(negate)
    ),
    max_leaves=6,
)

ASSIGNMENTS = [
    {"rax": rax, "cpl": cpl, "old": old, "new": new, "rip": rip}
    for rax, cpl, (old, new), rip in itertools.product(
        [0, 1, 2, 3, 4, 5, 7, 8, 12, 13, 15, 16, 4094, 4095, 4096, 8190, 8191],
        range(4),
        [(old, new) for old in (0, 1, 3, 4, 7) for new in (0, 1, 2, 4, 7) if old != new],
        [0, 4, 8, 12, 100],
    )
]


@given(some_conditions, st.integers(0, 500))
def test_never_holds__is_never_said_of_a_condition_that_some_values_fit(condition: Condition, first: int) -> None:
    test = compile_condition(condition, ADDRESSES.__getitem__)
    never, always = never_holds(condition, FACTS), always_holds(condition, FACTS)
    if never or always:
        answers = {test(assignment.get) for assignment in ASSIGNMENTS[first % 7 :: 7]}
        assert answers == ({True} if always else {False})
    assert not (never and always)


def condition_of(text: str, event: str = "cr4") -> tuple[Condition, Facts]:
    """The condition as the compiler sees it, with the facts that it knows of such an event."""
    result = compile_policies([Source("a", f"on {event} when {text} log")], PROFILE)
    assert result.plan is not None, [d.message for d in result.diagnostics]
    (rule,) = result.plan.rules
    values = {word: spec.values for word, spec in FIELDS.items()}
    facts = Facts(values, [place.extents for place in result.plan.places], changes=True)
    return rule.when or every([]), facts


NEVER = [
    "cpl == 4",
    "cpl > 3",
    "bits == 8",
    "vcpu == 65536",
    "cpl == 0 and cpl == 3",
    "cpl != 0 and cpl != 1 and cpl != 2 and cpl != 3",
    "rax < 0",
    "rax < 5 and rax > 7",
    "rax == 5 and rax != 5",
    "rax == 5 and rax & 2",
    "rax & 2 and rax == 0x10",
    "new & smep and not (new & smep)",
    "new & (smep | smap) == 0 and new & smep",
    "new & 6 == 1",
    "new & 6 == 6 and new & 7 != 7 and new & 1",
    "new & 0xff > 0xff",
    "new | 4 == 3",
    "old == new",
    "old == 5 and new == 5",
    "old != old",
    "clears(smep) and sets(smep)",
    "rip in kernel .text and rip in kernel .data",
    "rip in kernel .text and not (rip in kernel .text)",
    "rip in kernel:schedule and not (rip in kernel:schedule or rip in kernel:memcpy)",
    "(cpl == 0 or cpl == 1) and (cpl == 2 or cpl == 3)",
    "new & smep == 5",
    "rax & 0x10 and rax < 0x10",
    "~old < 0",
]


@pytest.mark.parametrize("text", NEVER)
def test_never_holds(text: str) -> None:
    condition, facts = condition_of(text)
    assert never_holds(condition, facts)
    assert always_holds(negate(condition), facts)


POSSIBLE = [
    "cpl == 3",
    "new & 6 == 6 and new & 7 != 6",
    "clears(smep | smap) and sets(smep | smap)",
    "rip in kernel .text and not (rip in kernel:schedule)",
    "rip in kernel .text and rip in kernel:schedule",
    "rip in kernel .text and rsp in kernel .data",
    "rax < 5 and rbx > 7",
    "old == 5 and new == 6",
    "rax & 1 == rbx & 1",
    " or ".join(f"(rax == {n} and rbx == {n})" for n in range(40)),
]


@pytest.mark.parametrize("text", POSSIBLE)
def test_possible(text: str) -> None:
    condition, facts = condition_of(text)
    assert not never_holds(condition, facts)
    assert not always_holds(condition, facts)


def test_never_holds__a_condition_with_too_many_cases_counts_as_possible() -> None:
    condition, facts = condition_of(" and ".join(f"(rax & {1 << n} or rbx & {1 << n})" for n in range(8)))
    assert not never_holds(every([condition, compare(rax, "<", Number(0))]), facts)


EXCEPTIONS = [
    ("cpl == 3", "cpl == 0", (True, False)),
    ("cpl == 3", "cpl >= 2", (False, True)),
    ("cpl >= 2", "cpl == 3", (False, False)),
    ("1 == 1", "cpl < 4", (False, True)),
    ("1 == 1", "cpl == 7", (True, False)),
]


@pytest.mark.parametrize(("rule", "exception", "expected"), EXCEPTIONS)
def test_excepts(rule: str, exception: str, expected: tuple[bool, bool]) -> None:
    (one, facts), (other, _) = condition_of(rule), condition_of(exception)
    assert excepts(one, other, facts) == expected

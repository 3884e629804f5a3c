"""Which frames count as counters and which as page tables, against an oracle that looks at one word after the other."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.addresses import PAGE_SIZE
from policyc.runtime.doctor_counters import MAX_COUNTERS, MAX_STEP, looks_like_page_table, runs_counters_only

WORDS = PAGE_SIZE // 8
KERNEL_ADDRESS = 0xFFFF_8880_0010_0000

value = st.one_of(
    st.integers(0, 1 << 20),
    st.integers((1 << 63) - 4, (1 << 63) + 4),
    st.integers(0, (1 << 64) - 1),
    st.just(KERNEL_ADDRESS),
)
step = st.one_of(st.integers(0, 100), st.integers(-2, 2), st.integers(MAX_STEP - 2, MAX_STEP + 2))


def page(words: dict[int, int]) -> bytes:
    return struct.pack(f"<{WORDS}Q", *(words.get(at, 0) & ((1 << 64) - 1) for at in range(WORDS)))


@st.composite
def samples(draw: st.DrawFn) -> list[dict[int, int]]:
    """Three looks at a few words of a frame."""
    first = draw(st.dictionaries(st.integers(0, WORDS - 1), value, max_size=MAX_COUNTERS + 3))
    found = [first]
    for _ in range(2):
        changing = draw(st.sets(st.sampled_from(sorted(first)))) if first else set()
        found.append({at: found[-1][at] + (draw(step) if at in changing else 0) & ((1 << 64) - 1) for at in first})
    return [{at: word & ((1 << 64) - 1) for at, word in words.items()} for words in found]


def counts(before: dict[int, int], after: dict[int, int]) -> bool:
    changed = 0
    for at, old in before.items():
        new = after[at]
        if new == old:
            continue
        changed += 1
        if old == 0 or old >= 1 << 63 or not old < new < old + MAX_STEP:
            return False
    return 1 <= changed <= MAX_COUNTERS


@given(samples())
def test_counters__as_the_oracle_has_it(seen: list[dict[int, int]]) -> None:
    expected = all(counts(before, after) for before, after in pairwise(seen))
    assert runs_counters_only([page(words) for words in seen]) == expected


@pytest.mark.parametrize(
    ("before", "after", "is_counter"),
    [
        ({0: 5}, {0: 6}, True),
        ({0: 5}, {0: 5}, False),
        ({0: 6}, {0: 5}, False),
        ({0: 0}, {0: 1}, False),
        ({0: 5, 9: KERNEL_ADDRESS}, {0: 6, 9: KERNEL_ADDRESS}, True),
        ({0: 5, 9: KERNEL_ADDRESS}, {0: 6, 9: KERNEL_ADDRESS + 64}, False),
        ({0: 5}, {0: 5 + MAX_STEP}, False),
        (dict.fromkeys(range(1, 18), 5), dict.fromkeys(range(1, 18), 6), False),
    ],
)
def test_counters(before: dict[int, int], after: dict[int, int], is_counter: bool) -> None:
    assert runs_counters_only([page(before), page(after)]) == is_counter


@pytest.mark.parametrize(
    ("words", "is_table"),
    [
        ({0: 0x1003, 511: 0x2063}, True),
        ({0: 0x8000_0000_0000_3163}, True),
        ({0: 0x83}, True),
        ({0: 0x1002}, False),
        ({0: 0x1003, 1: 0x1002}, False),
        ({0: 0x8003}, False),
        ({0: KERNEL_ADDRESS | 1}, False),
    ],
)
def test_page_table(words: dict[int, int], is_table: bool) -> None:
    assert looks_like_page_table([page(words)], memory_end=0x8000) == is_table


def test_page_table__has_to_look_like_one_every_time() -> None:
    """A counter is odd every other time."""
    assert not looks_like_page_table([page({0: 0x11}), page({0: 0x12})], memory_end=0x8000)

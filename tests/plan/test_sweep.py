"""The sweep against a naive oracle that asks every byte."""

from __future__ import annotations

import itertools
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from policyc.plan.sweep import Segment, segment_tree, sweep

SPAN = 40

ranges = st.lists(
    st.tuples(st.integers(0, SPAN - 1), st.integers(1, SPAN), st.integers(0, 5)).filter(lambda r: r[0] < r[1]),
    max_size=12,
)


def members_at(pieces: list[tuple[int, int, int]], byte: int) -> tuple[int, ...]:
    return tuple(sorted({member for start, end, member in pieces if start <= byte < end}))


@given(ranges)
def test_sweep__every_byte_has_exactly_its_members(pieces: list[tuple[int, int, int]]) -> None:
    segments = sweep(pieces)
    found = {byte: segment.members for segment in segments for byte in range(segment.start, segment.end)}
    assert found == {byte: members for byte in range(SPAN) if (members := members_at(pieces, byte))}


@given(ranges)
def test_sweep__segments_are_disjoint_ascending_and_as_few_as_possible(pieces: list[tuple[int, int, int]]) -> None:
    segments = sweep(pieces)
    for left, right in itertools.pairwise(segments):
        assert left.end <= right.start
        assert left.end < right.start or left.members != right.members


@given(ranges, st.randoms())
def test_sweep__order_of_the_input_does_not_matter(pieces: list[tuple[int, int, int]], random: Random) -> None:
    shuffled = random.sample(pieces, len(pieces))
    assert sweep(shuffled) == sweep(pieces)


@given(ranges, st.integers(0, SPAN - 1))
def test_segment_tree__answers_as_the_segments_do(pieces: list[tuple[int, int, int]], byte: int) -> None:
    tree = segment_tree(sweep(pieces))
    found = [interval.data for interval in tree.at(byte)]
    expected = members_at(pieces, byte)
    assert found == ([expected] if expected else [])


def test_sweep__a_member_that_overlaps_itself_counts_once() -> None:
    assert sweep([(0, 10, 1), (5, 15, 1), (12, 20, 2)]) == (
        Segment(0, 12, (1,)),
        Segment(12, 15, (1, 2)),
        Segment(15, 20, (2,)),
    )

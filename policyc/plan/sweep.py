"""Interval algebra of the plan: overlapping ranges in, disjoint segments with the rules that meet there out.

One sweep over the sorted boundaries, in time proportional to boundaries and overlap depth: that is the size of what
comes out. `intervaltree` would do the same with `split_overlaps` and `merge_equals` in tens to hundreds of times that
(and its merging would depend on the order of the input); it serves for what it is good at, asking a finished table what
lies under a range.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from intervaltree import IntervalTree

__all__ = ["MAX_MEMBERSHIPS", "OverlapLimitError", "Segment", "segment_tree", "sweep"]

MAX_MEMBERSHIPS = 1 << 22
"""Members of all segments together. Ranges nested a thousand deep make a million; no policy means that."""


class OverlapLimitError(ValueError):
    """The ranges overlap so deeply that their segments would fill the memory."""


class Segment(NamedTuple):
    """The bytes `[start, end)` and the members that cover all of them, ascending."""

    start: int
    end: int
    members: tuple[int, ...]


def sweep(ranges: Iterable[tuple[int, int, int]]) -> tuple[Segment, ...]:
    """Split `(start, end, member)` ranges into disjoint ascending segments.

    Bytes that no range covers are in no segment. Neighbours with the same members are one segment. A member may come
    several times and overlap itself; it counts once. The result doesn't depend on the order of the input.

    Raises:
        OverlapLimitError: the segments would have more than `MAX_MEMBERSHIPS` members together.
    """
    edges: list[tuple[int, int, int]] = []
    for start, end, member in ranges:
        edges.append((start, 1, member))
        edges.append((end, -1, member))
    edges.sort()

    segments: list[Segment] = []
    depth: dict[int, int] = {}
    active: tuple[int, ...] = ()
    position = memberships = 0
    for address, here in groupby(edges, key=itemgetter(0)):
        if active:
            memberships += len(active)
            if memberships > MAX_MEMBERSHIPS:
                raise OverlapLimitError(f"rules overlap too deeply: over {MAX_MEMBERSHIPS} times on all bytes together")
            _append(segments, Segment(position, address, active))
        position = address
        active = _moved(active, depth, [(member, step) for _, step, member in here])
    return tuple(segments)


def _moved(active: tuple[int, ...], depth: dict[int, int], steps: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The members behind an address at which some come and go; `depth` counts how often each is there."""
    for member, step in steps:
        depth[member] = depth.get(member, 0) + step
    gone = {member for member, _ in steps if not depth[member]}
    for member in gone:
        del depth[member]
    come = {member for member, _ in steps if member in depth}.difference(active)
    if len(come) == 1 and not gone:
        (member,) = come
        index = bisect_left(active, member)
        return (*active[:index], member, *active[index:])
    if not come and not gone:
        return active
    stay = active if not gone else tuple(member for member in active if member not in gone)
    return stay if not come else tuple(sorted((*stay, *come)))


def segment_tree(segments: Sequence[Segment]) -> IntervalTree:
    """The same segments as an interval tree, for questions about ranges; each interval's data is its members."""
    # Imported here: most commands sweep, and few ask questions afterwards.
    from intervaltree import Interval, IntervalTree

    return IntervalTree(Interval(segment.start, segment.end, segment.members) for segment in segments)


def _append(segments: list[Segment], new: Segment) -> None:
    if segments and segments[-1].end == new.start and segments[-1].members == new.members:
        segments[-1] = Segment(segments[-1].start, new.end, new.members)
    else:
        segments.append(new)

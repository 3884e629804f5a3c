"""What `decide` looks at: the rules, and what lies over each byte of an address space."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from policyc.plan.evaluation import Test
from policyc.plan.model import EventKey, Rule
from policyc.plan.places import Base

__all__ = ["Cell", "CodeRanges", "Group", "Guard", "Space", "VerdictTable"]

Group = tuple[int, ...]
"""Rules that were written about the same bytes: an `allow` cuts its hole among these."""

Cell = tuple[Group, ...]
"""What lies over a segment. Two groups stand in one cell only where binding made two places meet on one frame."""


class CodeRanges:
    """Code that `from` names: sorted, disjoint ranges of virtual addresses; overlapping ones are joined."""

    __slots__ = ("ends", "starts")

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        for start, end in sorted(ranges):
            if self.ends and start <= self.ends[-1]:
                self.ends[-1] = max(self.ends[-1], end)
            else:
                self.starts.append(start)
                self.ends.append(end)

    def __contains__(self, address: int) -> bool:
        index = bisect_right(self.starts, address) - 1
        return index >= 0 and address < self.ends[index]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self.starts, self.ends, strict=True))


class Space:
    """The segments of one address space: sorted, disjoint, each with the index of its cell."""

    __slots__ = ("cells", "ends", "starts")

    def __init__(self, segments: Iterable[tuple[int, int, int]]) -> None:
        ordered = sorted(segments)
        self.starts = [start for start, _, _ in ordered]
        self.ends = [end for _, end, _ in ordered]
        self.cells = [cell for _, _, cell in ordered]

    def touched(self, start: int, end: int) -> tuple[int, ...]:
        """The cells of every segment that `[start, end)` meets, without repetition; -1 for bytes that none covers."""
        first = bisect_right(self.starts, start) - 1
        if first < 0 or self.ends[first] <= start:
            first += 1
        last = bisect_left(self.starts, end)
        cells: list[int] = []
        position = start
        for index in range(first, last):
            if self.starts[index] > position and -1 not in cells:
                cells.append(-1)
            if self.cells[index] not in cells:
                cells.append(self.cells[index])
            position = self.ends[index]
        if position < end and -1 not in cells:
            cells.append(-1)
        return tuple(cells)


@dataclass(frozen=True, slots=True)
class Guard:
    """The conditions of one rule, compiled.

    Attributes:
        when: the rule's own; None where it always applies.
        exemptions: one a clause, in the rule's order; None where the code alone counts.
        sized: whether one of them reads the size of the access.
    """

    when: Test | None
    exemptions: tuple[Test | None, ...]
    sized: bool = False


@dataclass(frozen=True, slots=True)
class VerdictTable:
    """Everything `decide` looks at.

    Attributes:
        rules: the plan's rules.
        policies: their policies' names, by index.
        cells: what lies over segments.
        spaces: the segments, by address space.
        events: the rules about each event.
        code: addresses of the places that `from` clauses and conditions name, by place index.
        copy_routines: leaf routines that store for their caller.
        guards: the conditions of every rule that isn't unconditional, by rule index.
    """

    rules: tuple[Rule, ...]
    policies: tuple[str, ...]
    cells: tuple[Cell, ...]
    spaces: Mapping[Base, Space]
    events: Mapping[EventKey, Group]
    code: Mapping[int, CodeRanges]
    copy_routines: CodeRanges
    guards: Mapping[int, Guard] = field(default_factory=dict)

"""The pages that a plan guards: their rights, the bytes that rules are about, and what else lies there."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policyc.addresses import Gva
from policyc.analysis.probes import linked
from policyc.guest.profile import Profile
from policyc.plan.model import Plan
from policyc.plan.pages import PageRun, denied_on, page_runs
from policyc.plan.places import Base, Extent
from policyc.plan.sweep import Segment, segment_tree
from policyc.plan.tables import segments_of

__all__ = ["MAX_NEIGHBOURS", "GuardedPages", "Neighbour", "page_map"]

MAX_NEIGHBOURS = 8
"""Symbols that are named for one run of pages; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A symbol that no rule guards on a page that is guarded: whoever touches it pays for what lies beside it."""

    name: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class GuardedPages:
    """Neighbouring pages with the same rights.

    Attributes:
        span: the bytes of the pages, at slide 0.
        rules: the rules about bytes on them.
        neighbours: symbols on them that no rule guards, at most `MAX_NEIGHBOURS`; empty without a profile.
        more_neighbours: how many further ones there are.
    """

    run: PageRun
    span: Extent
    rules: tuple[int, ...]
    neighbours: tuple[Neighbour, ...] = ()
    more_neighbours: int = 0

    def holds(self, base: Base, address: int) -> bool:
        """Whether the byte at slide 0 lies on these pages."""
        return self.span.base is base and self.span.start <= address < self.span.end


def page_map(plan: Plan, profile: Profile | None = None) -> tuple[GuardedPages, ...]:
    """The guarded pages in ascending order.

    Raises:
        UnresolvedPlaceError: a place of the plan has no extents before it is bound.
    """
    segments = segments_of(plan)
    trees = {base: segment_tree(of_base) for base, of_base in segments.items()}
    found = []
    for run in page_runs(segments, plan.rules, plan.cpu, plan.guest.code):
        inside = sorted(Segment(*interval) for interval in trees[run.base].overlap(run.start, run.end))
        span = linked(Extent(run.base, run.start, run.end), plan.guest.image_base)
        rules = sorted({index for segment in inside for index in segment.members})
        names: Sequence[Neighbour] = ()
        more = 0
        if profile is not None and span.base is Base.VIRTUAL:
            shift = span.start - run.start
            guarded = [segment for segment in inside if denied_on(plan.rules, segment.members)]
            gaps = _gaps(span, [(segment.start + shift, segment.end + shift) for segment in guarded])
            names, more = _neighbours(profile, gaps)
        found.append(GuardedPages(run, span, tuple(rules), tuple(names), more))
    return tuple(found)


def _gaps(span: Extent, taken: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of the span that none of the ascending ranges covers."""
    position = span.start
    for start, end in taken:
        if start > position:
            yield position, start
        position = max(position, end)
    if position < span.end:
        yield position, span.end


def _neighbours(profile: Profile, gaps: Iterator[tuple[int, int]]) -> tuple[list[Neighbour], int]:
    """The symbols with bytes in the gaps: the first ones, and the number of the rest."""
    named: list[Neighbour] = []
    seen: set[int] = set()
    addresses = profile.kernel.symbols.addresses
    for start, end in gaps:
        first, last = bisect_right(addresses, start), bisect_left(addresses, end)
        for address in (start, *addresses[first:last]):
            at = profile.kernel.symbol_at(Gva(address))
            if at is None or at[0].gva in seen:
                continue
            seen.add(at[0].gva)
            if len(named) < MAX_NEIGHBOURS:
                named.append(Neighbour(f"{profile.kernel.name}:{at[0].name}", at[0].gva, at[0].size))
    return named, len(seen) - len(named)

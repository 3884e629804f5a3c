"""A plan bound to one boot of one guest: rights by frame, verdicts by guest physical byte.

Everything the reply loop looks at is flat: sorted arrays of edges, and per segment the answer itself where it doesn't
depend on who makes the access.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from policyc.addresses import PAGE_SIZE, Gfn, Gpa, Gva, frame_start, gfn_of
from policyc.catalog import Access, EffectKind
from policyc.plan.accesses import FRAME_BELOW, NEAR_ZONE, MemoryAccess, Origin
from policyc.plan.places import Base
from policyc.plan.verdict_table import CodeRanges, Group, Space, VerdictTable
from policyc.plan.verdicts import Verdict, decide
from policyc.runtime.code_cache import CodeCache

__all__ = ["ALL_RIGHTS", "UNBOUND", "BoundPlan", "CodeFrames", "FreeableFrames", "UnboundPlace"]

WRITE = int(Access.W)
"""The access as the event has it: an enumeration's operators are too slow here."""

ALL_RIGHTS = Access.R | Access.W | Access.X

NOWHERE = Origin(rip=0)
"""Stands in where the verdict doesn't depend on the origin."""


class CodeFrames:
    """Where binding found guarded and trusted bytes: virtual runs, and the physical byte that each begins at."""

    __slots__ = ("_ends", "_gpas", "_starts")

    def __init__(self, runs: Sequence[tuple[int, int, int]]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._gpas: list[int] = []
        covered = 0
        for start, end, gpa in sorted(runs):
            # One address leads to one place, so what an earlier run covers needs no second one.
            first = max(start, covered)
            if first < end:
                self._starts.append(first)
                self._ends.append(end)
                self._gpas.append(gpa + first - start)
                covered = end

    def gpa_of(self, address: int) -> Gpa | None:
        """Where `address` led when the plan was bound; None if the plan doesn't name it."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._ends[index]:
            return None
        return Gpa(self._gpas[index] + address - self._starts[index])


class FreeableFrames:
    """Frames that the guest may use for something else one day, each with the pages that led to it.

    Args:
        runs: virtual start and end, and the physical byte that the start leads to.
    """

    __slots__ = ("_pages",)

    def __init__(self, runs: Iterable[tuple[Gva, Gva, Gpa]]) -> None:
        self._pages: dict[Gfn, tuple[Gva, ...]] = {}
        for start, end, gpa in runs:
            first = start & ~(PAGE_SIZE - 1)
            for page in range(first, end, PAGE_SIZE):
                gfn = gfn_of(Gpa(gpa - (start - first) + page - first))
                self._pages[gfn] = (*self._pages.get(gfn, ()), Gva(page))

    def pages_of(self, gfn: Gfn) -> tuple[Gva, ...]:
        """The pages that led to a frame when the plan was bound; none if it can't be freed."""
        return self._pages.get(gfn, ())


NOTHING_FREEABLE = FreeableFrames(())


@dataclass(frozen=True, slots=True)
class UnboundPlace:
    """Bytes of a place that lead nowhere in this guest, and why."""

    place: str
    gva_start: Gva
    gva_end: Gva
    reason: str


@dataclass(frozen=True)
class BoundPlan:
    """What is enforced on one guest.

    Attributes:
        table: verdicts over guest physical memory.
        rights: allowed accesses of every frame that isn't rwx.
        code: where trusted code lies.
        slide: what binding added to the profile's addresses.
        unbound: bytes that aren't mapped in this guest.
        notes: what was widened, in sentences.
        freeable: the frames that the guest may come to use for something else.
    """

    table: VerdictTable
    rights: Mapping[Gfn, Access]
    code: CodeFrames
    slide: int
    unbound: tuple[UnboundPlace, ...] = ()
    notes: tuple[str, ...] = ()
    freeable: FreeableFrames = NOTHING_FREEABLE
    _fixed: dict[tuple[int, int], Verdict | None] = field(default_factory=dict)

    def fixed_verdict(self, access: int, gpa: int) -> Verdict | None:
        """The verdict on an access that begins at `gpa`, where neither its size nor its origin can change it.

        This is the hot path: one bisection and one look-up. None means that `decide` has to be asked.
        """
        space = self.table.spaces[Base.PHYSICAL]
        starts = space.starts
        index = bisect_right(starts, gpa) - 1
        zone = min(gpa + NEAR_ZONE, (gpa | (PAGE_SIZE - 1)) + 1)
        # A frame is pushed downwards, from its first word on, by whoever the event doesn't say.
        below = max(gpa - FRAME_BELOW, gpa & ~(PAGE_SIZE - 1)) if access & WRITE else gpa
        if index >= 0 and gpa < space.ends[index]:
            if zone > space.ends[index] or below < starts[index]:
                return None
            cell = space.cells[index]
        else:
            if (index + 1 < len(starts) and starts[index + 1] < zone) or (index >= 0 and space.ends[index] > below):
                return None
            cell = -1
        key = (access, cell)
        try:
            return self._fixed[key]
        except KeyError:
            verdict = self._fixed[key] = self._fix(Access(access), cell, Gpa(gpa))
            return verdict

    def allowed(self, gfn: Gfn) -> Access:
        """The accesses that a frame allows."""
        return self.rights.get(gfn, ALL_RIGHTS)

    def keeps_unwritable(self, gpa: Gpa, size: int) -> bool:
        """Whether nobody but code that the plan trusts can write these bytes: what is decoded there stays so."""
        if gfn_of(gpa) in self.code_cache.exposed:
            return False
        cells = self.table.spaces[Base.PHYSICAL].touched(gpa, gpa + size)
        return all(cell >= 0 and any(map(self._denies_writes, self.table.cells[cell])) for cell in cells)

    @cached_property
    def code_cache(self) -> CodeCache:
        """Instructions that have been decoded where this plan keeps code unwritable."""
        return CodeCache(self.keeps_unwritable, self.rights)

    def rules_on(self, gfn: Gfn) -> tuple[int, ...]:
        """The rules about bytes of a frame, by number."""
        cells = self.table.spaces[Base.PHYSICAL].touched(frame_start(gfn), frame_start(gfn) + PAGE_SIZE)
        return tuple(sorted({i for cell in cells if cell >= 0 for group in self.table.cells[cell] for i in group}))

    def denied_spans(self, gfn: Gfn, access: Access) -> list[tuple[Gpa, Gpa]]:
        """The bytes of a frame on which a rule in enforce mode denies this access to anybody, half-open."""
        space, start = self.table.spaces[Base.PHYSICAL], frame_start(gfn)
        found = []
        for index in range(max(bisect_right(space.starts, start) - 1, 0), len(space.starts)):
            first, last = max(space.starts[index], start), min(space.ends[index], start + PAGE_SIZE)
            if space.starts[index] >= start + PAGE_SIZE:
                break
            if first < last and self._denies(space.cells[index], access):
                found.append((Gpa(first), Gpa(last)))
        return found

    def _denies(self, cell: int, access: Access) -> bool:
        rules = [self.table.rules[index] for group in self.table.cells[cell] for index in group]
        return any(rule.enforce and rule.access & access and rule.effect.kind >= EffectKind.SKIP for rule in rules)

    def runs(self) -> Iterator[tuple[Gfn, int, Access]]:
        """The rights as runs of neighbouring frames: first frame, count, allowed."""
        first, count, allowed = Gfn(0), 0, Access.NONE
        for gfn in sorted(self.rights):
            if count and gfn == first + count and self.rights[gfn] == allowed:
                count += 1
                continue
            if count:
                yield first, count, allowed
            first, count, allowed = gfn, 1, self.rights[gfn]
        if count:
            yield first, count, allowed

    def _fix(self, access: Access, cell: int, gpa: Gpa) -> Verdict | None:
        groups = self.table.cells[cell] if cell >= 0 else ()
        if any(not self.table.rules[index].unconditional for group in groups for index in group):
            return None
        verdict = decide(self.table, MemoryAccess(access, Base.PHYSICAL, gpa, 1, NOWHERE))
        return verdict if isinstance(verdict, Verdict) else None

    def _denies_writes(self, group: Group) -> bool:
        rules = [self.table.rules[index] for index in group if self.table.rules[index].access & Access.W]
        if any(rule.effect.kind is EffectKind.ALLOW and not rule.origin for rule in rules):
            return False
        return any(
            rule.enforce and rule.effect.kind >= EffectKind.SKIP and rule.spares_trusted_code_alone for rule in rules
        )


UNBOUND = BoundPlan(
    table=VerdictTable((), (), (), {Base.PHYSICAL: Space(())}, {}, {}, CodeRanges(())),
    rights={},
    code=CodeFrames(()),
    slide=0,
)
"""What is in force before a plan is: nothing."""

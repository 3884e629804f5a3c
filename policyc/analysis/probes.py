"""From a case of a test, or a question, to the accesses and events that `decide` is asked about.

Everything is at slide 0, where the profile's own addresses hold, and all facts that the runtime has to establish are
given: nobody has remapped code, and what calls a leaf copy routine is code that no rule names.

A case about one address is one access. A case about an area (a section, a whole symbol, a range) is about every byte
of it: one access to each of the parts over which different rules lie.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from policyc.addresses import PAGE_SIZE, page_offset
from policyc.compiler.resolved import ResolvedCase, ResolvedPlace
from policyc.plan.accesses import MemoryAccess, NoticedEvent, Origin
from policyc.plan.model import EventKey
from policyc.plan.places import Base, Extent
from policyc.plan.verdict_table import Space, VerdictTable

__all__ = ["MAX_PROBES", "Asked", "GivenFields", "Probe", "TooManyProbesError", "linked", "probes_of"]

MAX_PROBES = 100_000
"""Accesses that one case may come to: a glob of places times a glob of origins is quickly more than was meant."""

Asked = MemoryAccess | NoticedEvent


class TooManyProbesError(Exception):
    """A case comes to more than `MAX_PROBES` accesses."""


class GivenFields:
    """The fields that a case gives, for conditions to read; `missed` are those that were wanted and aren't given."""

    def __init__(self, fields: Mapping[str, int]) -> None:
        self._fields = fields
        self.missed: set[str] = set()

    def __call__(self, word: str) -> int | None:
        value = self._fields.get(word)
        if value is None:
            self.missed.add(word)
        return value


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that happens.

    Attributes:
        parts: what the tool is told of it: one access or event, or two accesses where it crosses into another page.
        spans: all bytes at which it would be decided the same way; empty for an event.
        fields: what conditions can read.
        rip: the code that acts; None where the case doesn't say.
    """

    parts: tuple[Asked, ...]
    fields: GivenFields
    spans: tuple[Extent, ...] = ()
    rip: int | None = None


def probes_of(case: ResolvedCase, table: VerdictTable, image_base: int) -> Iterator[Probe]:
    """What the case is about; of a `from` with several places, one after the other.

    Args:
        table: at link addresses, as `link_time_table` makes it.
        image_base: the link address that image extents count from.

    Raises:
        TooManyProbesError: there are more than `MAX_PROBES`; those have been given.
    """
    for number, probe in enumerate(_probes(case, table, image_base)):
        if number == MAX_PROBES:
            raise TooManyProbesError(f"the case comes to more than {MAX_PROBES} accesses")
        yield probe


def linked(extent: Extent, image_base: int) -> Extent:
    """The extent at slide 0: what counts from the image is where the image was linked."""
    if extent.base is not Base.IMAGE:
        return extent
    return Extent(Base.VIRTUAL, image_base + extent.start, image_base + extent.end)


def _probes(case: ResolvedCase, table: VerdictTable, image_base: int) -> Iterator[Probe]:
    stranger = _stranger(table)
    for rip in _origins(case, image_base):
        origin = Origin(stranger if rip is None else rip, stranger, rip_genuine=True, return_genuine=True)
        ask = _Asking(case, origin, rip)
        if case.event is not None:
            yield ask.event(case.event.key)
            continue
        for extent in _extents(case.places, image_base):
            if case.size is not None:
                yield ask.one_access(extent, case.size)
            else:
                yield from ask.every_byte(extent, table.spaces.get(extent.base))


class _Asking:
    """Makes the probes of one case and one actor."""

    def __init__(self, case: ResolvedCase, origin: Origin, rip: int | None) -> None:
        self._case = case
        self._origin = origin
        self._rip = rip

    def event(self, key: EventKey) -> Probe:
        fields = GivenFields(self._case.fields)
        return Probe((NoticedEvent(key, self._origin, fields),), fields, rip=self._rip)

    def one_access(self, extent: Extent, size: int) -> Probe:
        whole = Extent(extent.base, extent.start, extent.start + size)
        room = PAGE_SIZE - page_offset(whole.start)
        pieces = [(whole.start, min(size, room)), (whole.start + room, size - room)]
        return self._accesses([piece for piece in pieces if piece[1] > 0], (whole,))

    def every_byte(self, extent: Extent, space: Space | None) -> Iterator[Probe]:
        """One probe for all bytes over which the same rules lie, at the first of them."""
        by_cell: dict[int, list[Extent]] = {}
        for start, end, cell in _pieces(extent, space):
            by_cell.setdefault(cell, []).append(Extent(extent.base, start, end))
        for spans in by_cell.values():
            yield self._accesses([(spans[0].start, 1)], tuple(spans))

    def _accesses(self, pieces: Sequence[tuple[int, int]], spans: tuple[Extent, ...]) -> Probe:
        fields = GivenFields(self._case.fields)
        access, base = self._case.access, spans[0].base
        parts = (MemoryAccess(access, base, start, size, self._origin, fields=fields) for start, size in pieces)
        return Probe(tuple(parts), fields, spans, self._rip)


def _extents(places: Sequence[ResolvedPlace], image_base: int) -> Iterator[Extent]:
    for place in places:
        yield from (linked(extent, image_base) for extent in place.extents)


def _origins(case: ResolvedCase, image_base: int) -> Iterator[int | None]:
    """The addresses at which the acting code may stand: the first byte of each place of `from`."""
    if "rip" in case.fields:
        yield case.fields["rip"]
    elif case.origin:
        yield from (extent.start for extent in _extents(case.origin, image_base))
    else:
        yield None


def _stranger(table: VerdictTable) -> int:
    """An address in no code that a rule names."""
    named = [*table.code.values(), table.copy_routines]
    ends = (end for ranges in named for _, end in ranges)
    return next(address for address in (0, *ends) if not any(address in ranges for ranges in named))


def _pieces(extent: Extent, space: Space | None) -> Iterator[tuple[int, int, int]]:
    """The parts of the extent in ascending order, each with its cell; -1 where no rule lies."""
    position = extent.start
    if space is not None:
        first = max(bisect_right(space.starts, extent.start) - 1, 0)
        last = bisect_left(space.starts, extent.end)
        for index in range(first, last):
            start, end = max(space.starts[index], position), min(space.ends[index], extent.end)
            if start >= end:
                continue
            if start > position:
                yield position, start, -1
            yield start, end, space.cells[index]
            position = end
    if position < extent.end:
        yield position, extent.end, -1

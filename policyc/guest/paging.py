"""Where guest virtual addresses lead: the x86-64 page walk for many ranges at once, level by level.

One request per level asks for every table that any range needs, so a walk costs as many round trips as the paging has
levels, however many pages it translates. The tables belong to the guest and are hostile: they may point to themselves,
outside memory, or set bits that the processor reserves; each such entry becomes a hole with a reason, and what a walk
may cost is limited before it is spent.

Paging: Intel SDM volume 3A, chapter 4 (4-level and 5-level paging, tables 4-14 to 4-20); AMD APM volume 2, 5.3.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from policyc.addresses import PAGE_SIZE, Gpa, GpaRange, Gva, GvaRange, Range, gfn_of
from policyc.guest.errors import WalkLimitError
from policyc.guest.requests import PageReply, PageRequest, page_of, request

__all__ = [
    "MAX_ENTRIES",
    "MAX_TABLES",
    "MAX_WALK_BYTES",
    "AddressSpace",
    "HoleReason",
    "Translation",
    "Unmapped",
    "Walk",
    "walk",
]

MAX_WALK_BYTES = 1 << 40
"""Virtual bytes that one walk may cover, all ranges together: enough for 1 GiB pages, checked before anything else."""

MAX_ENTRIES = 1 << 18
"""Page-table entries that one walk may look at: those of almost 1 GiB in pages of 4 KiB."""

MAX_TABLES = 1 << 13
"""Page tables that one walk may ask for: 32 MiB of guest memory."""

PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
ACCESSED = 1 << 5
DIRTY = 1 << 6
LARGE = 1 << 7
NO_EXECUTE = 1 << 63
ADDRESS_BITS = 0x000F_FFFF_FFFF_F000
ADDRESS_END = 1 << 52

CR4_LA57 = 1 << 12
EFER_NXE = 1 << 11

ENTRIES = struct.Struct("<512Q")


@dataclass(frozen=True, slots=True)
class Level:
    """One level of tables: the lowest address bit that it decides, and whether an entry may be a page there."""

    number: int
    shift: int
    may_be_leaf: bool


LEVELS = (
    Level(number=5, shift=48, may_be_leaf=False),
    Level(number=4, shift=39, may_be_leaf=False),
    Level(number=3, shift=30, may_be_leaf=True),
    Level(number=2, shift=21, may_be_leaf=True),
    Level(number=1, shift=12, may_be_leaf=True),
)


class HoleReason(Enum):
    """Why an address leads nowhere."""

    NOT_CANONICAL = "not a canonical address"
    NOT_PRESENT = "not mapped"
    RESERVED_BITS = "reserved bits set in its page-table entry"
    NO_TABLE = "its page table lies where the guest has no memory"


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """A root of page tables, and how the processor reads them.

    Attributes:
        root: where the top table starts.
        levels: 4, or 5 with CR4.LA57.
        nx_enabled: EFER.NXE; without it, a no-execute bit is reserved.
        physical_bits: the processor's MAXPHYADDR: higher address bits in an entry are reserved.
    """

    root: Gpa
    levels: int = 4
    nx_enabled: bool = True
    physical_bits: int = 52

    def __post_init__(self) -> None:
        if self.levels not in (4, 5) or not 32 <= self.physical_bits <= 52:
            raise ValueError(f"no such paging: {self.levels} levels, {self.physical_bits} physical address bits")
        if self.root % PAGE_SIZE or not 0 <= self.root < ADDRESS_END:
            raise ValueError(f"no page table can start at {self.root:#x}")

    @classmethod
    def of_registers(cls, cr3: int, cr4: int, efer: int) -> AddressSpace:
        """The address space that a vCPU in long mode uses, from its control registers; any values are taken."""
        return cls(Gpa(cr3 & ADDRESS_BITS), 5 if cr4 & CR4_LA57 else 4, bool(efer & EFER_NXE))

    def at(self, root: Gpa) -> AddressSpace:
        """The same kind of paging from another root."""
        return AddressSpace(root, self.levels, self.nx_enabled, self.physical_bits)


@dataclass(frozen=True, slots=True)
class Translation:
    """Bytes that are contiguous in virtual and in physical space, with one page size and the same rights throughout.

    The rights are those of all levels together: `user` and `writable` need every level to say so, `executable` that
    none forbids it. CR0.WP, SMEP and SMAP are not part of them.
    """

    gva_range: GvaRange
    gpa_start: Gpa
    page_size: int
    writable: bool
    user: bool
    executable: bool

    @property
    def gpa_range(self) -> GpaRange:
        """The physical bytes."""
        return Range(self.gpa_start, Gpa(self.gpa_start + self.gva_range.size))


@dataclass(frozen=True, slots=True)
class Unmapped:
    """Addresses that lead nowhere: the level (5 to 1) whose entry or table said so, 0 if no table was asked."""

    gva_range: GvaRange
    level: int
    reason: HoleReason


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk found.

    Attributes:
        ranges: for each range asked for, in that order, the runs and holes that cover it exactly, ascending.
        entries: every page-table entry that was used, with the raw value it had.
    """

    ranges: tuple[tuple[Translation | Unmapped, ...], ...]
    entries: Mapping[Gpa, int]

    @property
    def is_complete(self) -> bool:
        """Whether every byte asked for is mapped."""
        return all(isinstance(piece, Translation) for pieces in self.ranges for piece in pieces)

    def tables(self) -> PageRequest:
        """The request for every table that the walk used, to compare them again with `changed`."""
        return request(gfn_of(gpa) for gpa in self.entries)

    def changed(self, reply: PageReply) -> tuple[Gpa, ...]:
        """The entries that no longer say what they said, ascending, given what `tables` asks for.

        The accessed and dirty bits don't count, since the processor sets them, nor does any change among values that
        are not present.
        """
        return tuple(sorted(gpa for gpa, value in self.entries.items() if _differs(value, _entry_in(reply, gpa))))


@dataclass(frozen=True, slots=True)
class _Step:
    """A part of a range whose table at the present level is known."""

    index: int
    table: Gpa
    start: int
    end: int
    rights: int


def walk(space: AddressSpace, ranges: Sequence[GvaRange]) -> Generator[PageRequest, PageReply, Walk]:
    """Translate `ranges`, asking for one set of table frames a level.

    The ranges may overlap and need no order. An answer of None for a table makes what it would map a hole.

    Raises:
        WalkLimitError: the ranges, or what the guest's tables make of them, exceed a limit named in this module.
    """
    if sum(wanted.size for wanted in ranges) > MAX_WALK_BYTES:
        raise WalkLimitError(f"a page walk may cover {MAX_WALK_BYTES:#x} bytes at most")
    pieces: list[list[Translation | Unmapped]] = [[] for _ in ranges]
    entries: dict[Gpa, int] = {}
    steps = list(_first_steps(space, ranges, pieces))
    looked_at = asked = 0
    for level in LEVELS[-space.levels :]:
        if not steps:
            break
        tables = {gfn_of(step.table) for step in steps}
        looked_at += sum(((step.end - 1) >> level.shift) - (step.start >> level.shift) + 1 for step in steps)
        asked += len(tables)
        if looked_at > MAX_ENTRIES:
            raise WalkLimitError(f"a page walk may look at {MAX_ENTRIES} page-table entries at most")
        if asked > MAX_TABLES:
            raise WalkLimitError(f"a page walk may ask for {MAX_TABLES} page tables at most")
        reply = yield request(tables)
        decoded = {gfn: ENTRIES.unpack(page) for gfn in tables if (page := page_of(reply, gfn)) is not None}
        steps = [
            deeper
            for step in steps
            for deeper in _descend(space, level, step, decoded.get(gfn_of(step.table)), pieces[step.index], entries)
        ]
    return Walk(tuple(tuple(_merged(found)) for found in pieces), entries)


def _first_steps(
    space: AddressSpace, ranges: Sequence[GvaRange], pieces: list[list[Translation | Unmapped]]
) -> Iterator[_Step]:
    half = 1 << (9 * space.levels + 11)
    thirds = ((0, half, True), (half, (1 << 64) - half, False), ((1 << 64) - half, 1 << 64, True))
    for index, wanted in enumerate(ranges):
        for low, high, canonical in thirds:
            start, end = max(wanted.start, low), min(wanted.end, high)
            if start >= end:
                continue
            if canonical:
                yield _Step(index, space.root, start, end, WRITABLE | USER)
            else:
                pieces[index].append(Unmapped(_gva_range(start, end), 0, HoleReason.NOT_CANONICAL))


def _descend(
    space: AddressSpace,
    level: Level,
    step: _Step,
    table: tuple[int, ...] | None,
    pieces: list[Translation | Unmapped],
    entries: dict[Gpa, int],
) -> Iterator[_Step]:
    """The steps one level down; what ends at this level goes to `pieces`, and every entry looked at to `entries`."""
    if table is None:
        pieces.append(Unmapped(_gva_range(step.start, step.end), level.number, HoleReason.NO_TABLE))
        return
    size = 1 << level.shift
    for slot in range(step.start >> level.shift, ((step.end - 1) >> level.shift) + 1):
        entry = table[slot % 512]
        entries[Gpa(step.table + slot % 512 * 8)] = entry
        start, end = max(step.start, slot << level.shift), min(step.end, (slot + 1) << level.shift)
        reason = _refusal(space, level, entry)
        if reason is not None:
            _append(pieces, Unmapped(_gva_range(start, end), level.number, reason))
            continue
        rights = (step.rights & entry) | ((step.rights | entry) & NO_EXECUTE)
        if level.number == 1 or entry & LARGE:
            gpa = Gpa((entry & ADDRESS_BITS & -size) + start % size)
            _append(pieces, _translation(start, end, gpa, size, rights))
        else:
            yield _Step(step.index, Gpa(entry & ADDRESS_BITS), start, end, rights)


def _refusal(space: AddressSpace, level: Level, entry: int) -> HoleReason | None:
    if not entry & PRESENT:
        return HoleReason.NOT_PRESENT
    reserved = ADDRESS_BITS & -(1 << space.physical_bits)
    if not space.nx_enabled:
        reserved |= NO_EXECUTE
    if not level.may_be_leaf:
        reserved |= LARGE
    elif level.number > 1 and entry & LARGE:
        # Bit 12 of a large page is a memory-type bit (PAT); the address bits between it and the page size must be 0.
        reserved |= (1 << level.shift) - (1 << 13)
    return HoleReason.RESERVED_BITS if entry & reserved else None


def _translation(start: int, end: int, gpa: Gpa, page_size: int, rights: int) -> Translation:
    return Translation(
        gva_range=_gva_range(start, end),
        gpa_start=gpa,
        page_size=page_size,
        writable=bool(rights & WRITABLE),
        user=bool(rights & USER),
        executable=not rights & NO_EXECUTE,
    )


def _gva_range(start: int, end: int) -> GvaRange:
    return Range(Gva(start), Gva(end))


def _merged(pieces: list[Translation | Unmapped]) -> Iterable[Translation | Unmapped]:
    runs: list[Translation | Unmapped] = []
    for piece in sorted(pieces, key=lambda piece: piece.gva_range.start):
        _append(runs, piece)
    return runs


def _append(runs: list[Translation | Unmapped], piece: Translation | Unmapped) -> None:
    """Add `piece` to ascending `runs`, joined to the last one where the two are one run."""
    joined = _joined(runs[-1], piece) if runs and runs[-1].gva_range.end == piece.gva_range.start else None
    if joined is None:
        runs.append(piece)
    else:
        runs[-1] = joined


def _joined(left: Translation | Unmapped, right: Translation | Unmapped) -> Translation | Unmapped | None:
    both = _gva_range(left.gva_range.start, right.gva_range.end)
    if isinstance(left, Unmapped) and isinstance(right, Unmapped):
        return (
            Unmapped(both, left.level, left.reason)
            if (left.level, left.reason) == (right.level, right.reason)
            else None
        )
    if isinstance(left, Translation) and isinstance(right, Translation):
        whole = Translation(both, left.gpa_start, left.page_size, left.writable, left.user, left.executable)
        continuing = Translation(
            both,
            Gpa(right.gpa_start - left.gva_range.size),
            right.page_size,
            right.writable,
            right.user,
            right.executable,
        )
        return whole if whole == continuing else None
    return None


def _entry_in(reply: PageReply, gpa: Gpa) -> int | None:
    page = page_of(reply, gfn_of(gpa))
    offset = gpa % PAGE_SIZE
    return None if page is None else int.from_bytes(page[offset : offset + 8], "little")


def _differs(before: int, now: int | None) -> bool:
    if now is None:
        return True
    if not (before | now) & PRESENT:
        return False
    return bool((before ^ now) & ~(ACCESSED | DIRTY))

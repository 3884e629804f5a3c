from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policyc.addresses import Gfn, Gpa, Gva, GvaRange, Range
from policyc.guest.errors import WalkLimitError
from policyc.guest.paging import (
    MAX_ENTRIES,
    MAX_TABLES,
    MAX_WALK_BYTES,
    AddressSpace,
    HoleReason,
    Translation,
    Unmapped,
    Walk,
    walk,
)
from policyc.guest.requests import PageReply, PageRequest, serve
from tests.support.guest_memory import LARGE, NX, PRESENT, USER, WRITABLE, GuestMemory, gva, transcript

RIGHTS = PRESENT | WRITABLE | USER
KERNEL_TEXT = 0xFFFF_FFFF_8100_0000


def span(start: int, size: int) -> GvaRange:
    return Range(Gva(start), Gva(start + size))


def walked(memory: GuestMemory, space: AddressSpace, *ranges: GvaRange) -> Walk:
    return serve(walk(space, ranges), memory.read)


def run(start: int, size: int, gpa: int, page_size: int = 4096, rights: str = "wx") -> Translation:
    return Translation(span(start, size), Gpa(gpa), page_size, "w" in rights, "u" in rights, "x" in rights)


def hole(start: int, size: int, level: int, reason: HoleReason = HoleReason.NOT_PRESENT) -> Unmapped:
    return Unmapped(span(start, size), level, reason)


def test_pages_of_each_size_and_the_holes_between_them() -> None:
    memory = GuestMemory()
    root = memory.new_page()
    memory.map(root, 0x1000, 0x5000, flags=PRESENT)
    memory.map(root, 0x2000, 0x6000, flags=PRESENT)
    memory.map(root, 0x3000, 0x7000, flags=RIGHTS | NX)
    memory.map(root, 2 << 20, 0x80_0000, size=2 << 20)
    memory.map(root, 1 << 30, 3 << 30, size=1 << 30)
    found = walked(memory, AddressSpace(root), span(0x1800, 0x40_0000), span((1 << 30) + 5, 10))
    assert found.ranges == (
        (
            run(0x1800, 0x1800, 0x5800, rights="x"),
            run(0x3000, 0x1000, 0x7000, rights="wu"),
            hole(0x4000, (2 << 20) - 0x4000, 1),
            run(2 << 20, 2 << 20, 0x80_0000, 2 << 20),
            hole(4 << 20, 0x1800, 2),
        ),
        (run((1 << 30) + 5, 10, (3 << 30) + 5, 1 << 30),),
    )
    assert not found.is_complete
    assert walked(memory, AddressSpace(root), span(0x1000, 0x3000)).is_complete


def test_neighbours_of_different_size_or_rights_or_frames_stay_apart() -> None:
    memory = GuestMemory()
    root = memory.new_page()
    for page, (gpa, flags) in enumerate(
        [
            (0x5000, RIGHTS),
            (0x6000, PRESENT | USER),
            (0x7000, PRESENT | WRITABLE),
            (0x8000, RIGHTS | NX),
            (0x5000, RIGHTS),
        ]
    ):
        memory.map(root, page * 4096, gpa, flags=flags)
    assert walked(memory, AddressSpace(root), span(0, 5 * 4096)).ranges == (
        (
            run(0, 4096, 0x5000, rights="wux"),
            run(0x1000, 4096, 0x6000, rights="ux"),
            run(0x2000, 4096, 0x7000, rights="wx"),
            run(0x3000, 4096, 0x8000, rights="wu"),
            run(0x4000, 4096, 0x5000, rights="wux"),
        ),
    )


def test_rights_are_those_of_all_levels_together() -> None:
    memory = GuestMemory()
    root = memory.new_page()
    memory.map(root, 0, 0x5000, flags=RIGHTS)
    top = memory.entry(root)
    for flags, rights in [(RIGHTS, "wux"), (PRESENT | USER, "ux"), (PRESENT | WRITABLE, "wx"), (RIGHTS | NX, "wu")]:
        memory.set_entry(root, top & ~(RIGHTS | NX) | flags)
        assert walked(memory, AddressSpace(root), span(0, 8)).ranges == ((run(0, 8, 0x5000, rights=rights),),)


@pytest.mark.parametrize(
    ("level", "indices", "bits", "space"),
    [
        (5, (0, 0, 0, 0, 0), LARGE, {"levels": 5}),
        (4, (0, 0, 0, 0), LARGE, {}),
        (3, (0, 0, 0, 0), LARGE | 1 << 13, {}),
        (3, (0, 0, 0, 0), LARGE | 1 << 29, {}),
        (2, (0, 0, 0, 0), LARGE | 1 << 20, {}),
        (1, (0, 0, 0, 0), 1 << 46, {"physical_bits": 46}),
        (4, (0, 0, 0, 0), 1 << 51, {"physical_bits": 51}),
        (2, (0, 0, 0, 0), NX, {"nx_enabled": False}),
    ],
)
def test_an_entry_with_reserved_bits_is_a_hole(
    level: int, indices: tuple[int, ...], bits: int, space: dict[str, int]
) -> None:
    memory = GuestMemory()
    root = memory.new_page()
    levels = space.get("levels", 4)
    memory.map(root, gva(*indices), 0x4000_0000, flags=RIGHTS, levels=levels)
    table = root
    for _ in range(levels - level):
        table = Gpa(memory.entry(table) & 0x000F_FFFF_FFFF_F000)
    paging = AddressSpace(root, levels, bool(space.get("nx_enabled", True)), space.get("physical_bits", 52))
    assert walked(memory, paging, span(0, 8)).is_complete
    memory.set_entry(table, memory.entry(table) | bits)
    assert walked(memory, paging, span(0, 8)).ranges == ((hole(0, 8, level, HoleReason.RESERVED_BITS),),)


def test_the_memory_type_bit_of_a_large_page_is_not_reserved() -> None:
    memory = GuestMemory()
    root = memory.new_page()
    memory.map(root, 0, 0x20_0000, size=2 << 20, flags=RIGHTS | 1 << 12)
    assert walked(memory, AddressSpace(root), span(0x1000, 8)).ranges == ((run(0x1000, 8, 0x20_1000, 2 << 20, "wux"),),)


def test_a_table_outside_memory_or_cut_short_is_a_hole() -> None:
    memory = GuestMemory()
    root = memory.new_page()
    memory.set_entry(root, 0x7_0000_0000 | RIGHTS)
    memory.set_entry(root + 8, root | RIGHTS)
    memory.frames[0x7_0000_0000 >> 12] = bytearray(4095)
    expected = ((hole(0, 1 << 20, 3, HoleReason.NO_TABLE),),)
    assert walked(memory, AddressSpace(root), span(0, 1 << 20)).ranges == expected
    del memory.frames[0x7_0000_0000 >> 12]
    assert walked(memory, AddressSpace(root), span(0, 1 << 20)).ranges == expected
    assert walked(memory, AddressSpace(Gpa(0x9000)), span(0, 8)).ranges == ((hole(0, 8, 4, HoleReason.NO_TABLE),),)


def test_a_table_that_points_to_itself_ends_after_its_levels() -> None:
    memory = GuestMemory()
    root = memory.new_page()
    memory.set_entry(root + 8 * 256, root | RIGHTS)
    for levels in (4, 5):
        there = gva(*[256] * levels)
        found = walked(memory, AddressSpace(root, levels), span(there, 16))
        assert found.ranges == ((run(there, 16, root, rights="wux"),),)
        assert found.entries == {root + 8 * 256: root | RIGHTS}


@pytest.mark.parametrize("levels", [4, 5])
def test_addresses_between_the_halves_are_not_canonical(levels: int) -> None:
    memory = GuestMemory()
    root = memory.new_page()
    half = 1 << (9 * levels + 11)
    low, high = half - 4096, (1 << 64) - half
    memory.map(root, low, 0x5000, levels=levels)
    memory.map(root, high, 0x6000, levels=levels)
    space = AddressSpace(root, levels)
    no = HoleReason.NOT_CANONICAL
    assert walked(memory, space, span(low + 4000, 200)).ranges == (
        (run(low + 4000, 96, 0x5000 + 4000), hole(half, 104, 0, no)),
    )
    assert walked(memory, space, span(high - 100, 200)).ranges == (
        (hole(high - 100, 100, 0, no), run(high, 100, 0x6000)),
    )
    assert walked(memory, space, span(1 << 60, 1 << 20)) == Walk(((hole(1 << 60, 1 << 20, 0, no),),), {})
    memory.map(root, (1 << 64) - 4096, 0x7000, levels=levels)
    assert walked(memory, space, span((1 << 64) - 1, 1)).ranges == ((run((1 << 64) - 1, 1, 0x7FFF),),)


def test_a_level_costs_one_request_whatever_the_ranges() -> None:
    memory = GuestMemory()
    root = memory.new_page()
    pages = [KERNEL_TEXT + index * (5 << 20) for index in range(100)]
    for index, page in enumerate(pages):
        memory.map(root, page, 0x100_0000 + index * 4096)
    wanted = [span(page, 4096) for page in [*pages, *reversed(pages)]]
    requests, found = transcript(walk(AddressSpace(root), wanted), memory.read)
    assert [len(gfns) for gfns in requests] == [1, 1, 1, 100]
    assert all(list(gfns) == sorted(set(gfns)) for gfns in requests)
    assert found.is_complete
    assert found.ranges == (*found.ranges[:100], *reversed(found.ranges[:100]))
    assert found.tables() == PageRequest(tuple(sorted({gfn for gfns in requests for gfn in gfns})))


def test_no_ranges_ask_for_nothing() -> None:
    assert serve(walk(AddressSpace(Gpa(0)), []), GuestMemory().read) == Walk((), {})


def mapped_image(pages: int = 8) -> tuple[GuestMemory, AddressSpace, Walk]:
    memory = GuestMemory()
    root = memory.new_page()
    for page in range(pages):
        memory.map(root, KERNEL_TEXT + page * 4096, 0x100_0000 + page * 4096)
    space = AddressSpace(root)
    return memory, space, walked(memory, space, span(KERNEL_TEXT, (pages + 2) * 4096))


def changes(memory: GuestMemory, before: Walk) -> tuple[Gpa, ...]:
    return before.changed({gfn: memory.read(gfn) for gfn in before.tables().gfns})


def test_used_entries_are_compared_again_but_for_what_the_processor_sets() -> None:
    memory, _, before = mapped_image()
    leaves = sorted(before.entries)[-10:]
    assert changes(memory, before) == ()
    for gpa in leaves[:8]:
        memory.set_entry(gpa, memory.entry(gpa) | 0x60)
    memory.set_entry(leaves[9], 0xDEAD_0000)
    assert changes(memory, before) == ()
    memory.set_entry(leaves[8], 0x5000 | PRESENT)
    memory.set_entry(leaves[0], memory.entry(leaves[0]) ^ 0x1000)
    memory.set_entry(leaves[1], memory.entry(leaves[1]) & ~PRESENT)
    memory.set_entry(leaves[2], memory.entry(leaves[2]) | NX)
    assert changes(memory, before) == (leaves[0], leaves[1], leaves[2], leaves[8])


def test_a_table_that_is_gone_counts_as_changed() -> None:
    memory, _, before = mapped_image()
    del memory.frames[before.tables().gfns[-1]]
    assert len(changes(memory, before)) == 10


def test_limits_hold_before_anything_is_asked() -> None:
    memory = GuestMemory()
    space = AddressSpace(memory.new_page())
    with pytest.raises(WalkLimitError, match="may cover"):
        next(walk(space, [span(0, MAX_WALK_BYTES // 2)] * 3))
    with pytest.raises(WalkLimitError, match="may look at"):
        next(walk(space, [span(0, 8)] * (MAX_ENTRIES + 1)))


def looping_memory() -> tuple[GuestMemory, AddressSpace]:
    """One table whose every entry is itself: the worst that a guest can make of a range."""
    memory = GuestMemory()
    root = memory.new_page()
    for index in range(512):
        memory.set_entry(root + 8 * index, root | RIGHTS)
    return memory, AddressSpace(root)


def test_hostile_tables_can_not_make_a_range_cost_more_than_the_limit() -> None:
    memory, space = looping_memory()
    with pytest.raises(WalkLimitError, match="may look at"):
        walked(memory, space, span(0, MAX_ENTRIES * 4096))
    assert len(walked(memory, space, span(0, 64 << 20)).ranges[0]) == (64 << 20) // 4096


def test_hostile_tables_can_not_name_more_tables_than_the_limit() -> None:
    root = Gpa(0x10_0000_0000)

    def fresh_tables(gfn: Gfn) -> bytes:
        first = 0x200_0000 if gfn == root >> 12 else (gfn << 9) & 0xFFF_FFFF
        return b"".join(((first + index) << 12 | RIGHTS).to_bytes(8, "little") for index in range(512))

    scattered_bytes = [span(index << 21, 1) for index in range(MAX_TABLES)]
    with pytest.raises(WalkLimitError, match="may ask for"):
        serve(walk(AddressSpace(root), scattered_bytes), fresh_tables)
    assert serve(walk(AddressSpace(root), scattered_bytes[:4096]), fresh_tables).is_complete


@pytest.mark.parametrize(
    ("root", "levels", "bits"), [(0x1001, 4, 52), (1 << 52, 4, 52), (-4096, 4, 52), (0, 3, 52), (0, 4, 53), (0, 4, 31)]
)
def test_no_such_paging(root: int, levels: int, bits: int) -> None:
    with pytest.raises(ValueError, match="no "):
        AddressSpace(Gpa(root), levels, True, bits)


@pytest.mark.parametrize(
    ("cr3", "cr4", "efer", "expected"),
    [
        (0x8000_0000_1234_5FFF, 0, 0, AddressSpace(Gpa(0x1234_5000), 4, False)),
        ((1 << 64) - 1, 1 << 12, 1 << 11, AddressSpace(Gpa(0x000F_FFFF_FFFF_F000), 5, True)),
    ],
)
def test_any_registers_make_an_address_space(cr3: int, cr4: int, efer: int, expected: AddressSpace) -> None:
    assert AddressSpace.of_registers(cr3, cr4, efer) == expected


# Random tables: a few frames whose entries point at one another, at themselves and outside memory.

TABLES = 6
SLOTS = (0, 1, 2, 255, 256, 511)

entries_of_tables = st.lists(
    st.tuples(
        st.integers(0, TABLES - 1),
        st.sampled_from(SLOTS),
        st.one_of(st.integers(0, TABLES), st.integers(0, (1 << 40) - 1)),
        st.sampled_from([RIGHTS, RIGHTS, RIGHTS, PRESENT, PRESENT | USER, RIGHTS | LARGE, RIGHTS | NX, WRITABLE]),
        st.sampled_from([0, 0, 0, 1 << 51, 1 << 12, 1 << 13]),
    ),
    min_size=6,
    max_size=40,
)
spaces = st.tuples(st.sampled_from([4, 5]), st.booleans(), st.sampled_from([52, 51, 40]))


def scattered(entries: list[tuple[int, int, int, int, int]]) -> GuestMemory:
    memory = GuestMemory(first_free=0)
    for _ in range(TABLES):
        memory.new_page()
    for table, slot, frame, flags, more in entries:
        memory.set_entry(table * 4096 + slot * 8, (frame << 12) & 0x000F_FFFF_FFFF_F000 | flags | more)
    return memory


def samples(wanted: GvaRange) -> set[int]:
    """Both ends, each page's first byte where there are few, and a spread of addresses in between."""
    step = max(4096, wanted.size // 61 // 8 * 8)
    first_page = wanted.start // 4096 * 4096 + 4096
    points = {
        wanted.start,
        wanted.end - 1,
        *range(wanted.start, wanted.end, step),
        *range(first_page, wanted.end, step),
    }
    return {point for point in points if wanted.start <= point < wanted.end}


@st.composite
def wanted_ranges(draw: st.DrawFn) -> list[GvaRange]:
    ranges: list[GvaRange] = []
    for _ in range(draw(st.integers(1, 4))):
        start: int = gva(*(draw(st.sampled_from(SLOTS)) for _ in range(4)), offset=draw(st.integers(0, 4095)))
        start = max(0, start - draw(st.sampled_from([0, 0, 1, 4096, 1 << 21, 1 << 30])))
        size = draw(st.one_of(st.integers(1, 5 * 4096), st.integers(1, 9 << 20)))
        ranges.append(span(start, min(size, (1 << 64) - start)))
    return ranges


@settings(max_examples=150, deadline=None)
@given(entries_of_tables, spaces, wanted_ranges())
@example([(0, 0, 0, RIGHTS, 0)], (4, True, 52), [span(0, 4097)])
def test_a_walk_says_what_a_walk_per_address_says(
    entries: list[tuple[int, int, int, int, int]], paging: tuple[int, bool, int], ranges: list[GvaRange]
) -> None:
    memory = scattered(entries)
    levels, nx_enabled, bits = paging
    space = AddressSpace(Gpa(0), levels, nx_enabled, bits)
    found = walked(memory, space, *ranges)
    for wanted, pieces in zip(ranges, found.ranges, strict=True):
        assert (pieces[0].gva_range.start, pieces[-1].gva_range.end) == (wanted.start, wanted.end)
        assert all(left.gva_range.end == right.gva_range.start for left, right in pairwise(pieces))
        for point in samples(wanted):
            (piece,) = (piece for piece in pieces if point in piece.gva_range)
            assert said(piece, point) == memory.translate(space, point)
        assert not any(one_run(left, right) for left, right in pairwise(pieces))
    assert found.entries == {gpa: memory.entry(gpa) for gpa in found.entries}
    reply: PageReply = {gfn: memory.read(gfn) for gfn in found.tables().gfns}
    assert found.changed(reply) == ()


def said(piece: Translation | Unmapped, point: int) -> tuple[Gpa, int, bool, bool, bool] | None:
    if isinstance(piece, Unmapped):
        return None
    gpa = Gpa(piece.gpa_start + point - piece.gva_range.start)
    return gpa, piece.page_size, piece.writable, piece.user, piece.executable


def one_run(left: Translation | Unmapped, right: Translation | Unmapped) -> bool:
    if isinstance(left, Translation):
        return said(left, right.gva_range.start) == said(right, right.gva_range.start)
    return isinstance(right, Unmapped) and (left.level, left.reason) == (right.level, right.reason)

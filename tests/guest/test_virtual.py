from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.addresses import Gpa, Gva, GvaRange, Range
from policyc.guest.errors import WalkLimitError
from policyc.guest.paging import AddressSpace
from policyc.guest.requests import serve
from policyc.guest.virtual import MAX_READ_BYTES, read_virtual
from tests.support.guest_memory import GuestMemory, transcript

START = 0xFFFF_FFFF_8100_0000


def span(start: int, size: int) -> GvaRange:
    return Range(Gva(start), Gva(start + size))


def scattered() -> tuple[GuestMemory, AddressSpace]:
    """Eight virtual pages in reverse physical order, the sixth not mapped and the seventh to no memory."""
    memory = GuestMemory()
    root = memory.new_page()
    for page in range(8):
        gpa = 0x50_0000 - page * 4096
        if page != 5:
            memory.map(root, START + page * 4096, gpa)
        if page != 6:
            memory.write(gpa, bytes((page * 31 + offset * 7) % 251 for offset in range(4096)))
    return memory, AddressSpace(root)


def test_bytes_across_pages_and_ranges_that_are_not_whole() -> None:
    memory, space = scattered()
    wanted = [
        span(START + 4090, 12),
        span(START + 4 * 4096, 4097),
        span(START + 6 * 4096, 1),
        span(START, 3),
        span(0, 1),
    ]
    requests, found = transcript(read_virtual(space, wanted), memory.read)
    first = bytes((offset * 7) % 251 for offset in range(4096))
    second = bytes((31 + offset * 7) % 251 for offset in range(4096))
    assert found == (first[4090:] + second[:6], None, None, first[:3], None)
    assert len(requests) == 5
    assert requests[-1] == (0x4FA, 0x4FC, 0x4FF, 0x500)


def one_byte_at_a_time() -> list[int | None]:
    """The bytes at START and after it, each by a walk of its own."""
    memory, space = scattered()
    single: list[int | None] = []
    for offset in range(8 * 4096 + 20):
        found = memory.translate(space, START + offset)
        page = None if found is None else memory.frames.get(found[0] >> 12)
        single.append(None if found is None or page is None else page[found[0] % 4096])
    return single


SINGLE = one_byte_at_a_time()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8 * 4096), st.integers(1, 9000)), min_size=1, max_size=5))
def test_reading_against_one_byte_at_a_time(wanted: list[tuple[int, int]]) -> None:
    memory, space = scattered()
    expected = []
    for offset, size in wanted:
        singles = [*SINGLE, *[None] * 9000][offset : offset + size]
        expected.append(None if None in singles else bytes(byte for byte in singles if byte is not None))
    ranges = [span(START + offset, size) for offset, size in wanted]
    assert list(serve(read_virtual(space, ranges), memory.read)) == expected


def test_nothing_mapped_asks_for_no_frames() -> None:
    memory = GuestMemory()
    space = AddressSpace(memory.new_page())
    requests, found = transcript(read_virtual(space, [span(START, 8)]), memory.read)
    assert requests == [(space.root >> 12,)]
    assert found == (None,)


def test_a_large_page_is_read_where_it_is_asked_for() -> None:
    memory = GuestMemory()
    root = memory.new_page()
    memory.map(root, START, 0x100_0000, size=2 << 20)
    memory.write(0x100_5FFE, b"wxyz")
    assert serve(read_virtual(AddressSpace(root), [span(START + 0x5FFE, 4)]), memory.read) == (b"wxyz",)


def test_the_limit_holds_before_anything_is_asked() -> None:
    with pytest.raises(WalkLimitError, match="one reading"):
        next(read_virtual(AddressSpace(Gpa(0)), [span(0, MAX_READ_BYTES), span(0, 1)]))

"""Bytes at guest virtual addresses: a page walk, then the pages it led to."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from policyc.addresses import PAGE_SIZE, Gfn, GvaRange, gfns_of
from policyc.guest.errors import WalkLimitError
from policyc.guest.paging import AddressSpace, Translation, Unmapped, walk
from policyc.guest.requests import PageReply, PageRequest, page_of, request

__all__ = ["MAX_READ_BYTES", "read_virtual"]

MAX_READ_BYTES = 1 << 20
"""Bytes that one call may read, all ranges together."""


def read_virtual(
    space: AddressSpace, ranges: Sequence[GvaRange]
) -> Generator[PageRequest, PageReply, tuple[bytes | None, ...]]:
    """The bytes of each range, in the order asked; None for one that isn't wholly mapped to existing memory.

    Raises:
        WalkLimitError: more than `MAX_READ_BYTES` are asked for.
    """
    if sum(wanted.size for wanted in ranges) > MAX_READ_BYTES:
        raise WalkLimitError(f"one reading of guest memory may take {MAX_READ_BYTES:#x} bytes at most")
    found = yield from walk(space, ranges)
    frames = {
        gfn
        for pieces in found.ranges
        for piece in pieces
        if isinstance(piece, Translation)
        for gfn in map(Gfn, gfns_of(piece.gpa_range))
    }
    reply: PageReply = (yield request(frames)) if frames else {}
    return tuple(_content(pieces, reply) for pieces in found.ranges)


def _content(pieces: Sequence[Translation | Unmapped], reply: PageReply) -> bytes | None:
    parts: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, Unmapped):
            return None
        span = piece.gpa_range
        for gfn in map(Gfn, gfns_of(span)):
            page = page_of(reply, gfn)
            if page is None:
                return None
            first = gfn * PAGE_SIZE
            parts.append(page[max(span.start - first, 0) : min(span.end - first, PAGE_SIZE)])
    return b"".join(parts)

"""SET_PAGE_ACCESS in bulk: frames and rights to full messages and back, with no Python loop per page.

An entry is 16 bytes: the gpa as a 64-bit little-endian number, rights, seven zeros. One below the other, entries are
sixteen columns of bytes. In a run of frames with the same rights that doesn't cross a 16 MiB boundary all columns but
two hold one value; those two are cut out of tables and laid in by slices with a stride.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from policyc.addresses import PAGE_SHIFT, Gpa
from policyc.kvmi.errors import LocalProtocolError
from policyc.kvmi.messages import SetPageAccess
from policyc.kvmi.vocabulary import PageAccess

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from policyc.addresses import Gfn

__all__ = ["ENTRY_SIZE", "MAX_ENTRIES", "PageRun", "check_rights", "page_entries", "set_page", "set_pages"]

ENTRY_SIZE = 16
MAX_ENTRIES = 511
"""The most entries a message holds: (8184 - 8) / 16."""

_ENTRY = Struct("<QB7x")
_HELD_BY_HARDWARE = bytes([PageAccess.NONE, PageAccess.R, PageAccess.RW, PageAccess.RX, PageAccess.RWX])
_EXECUTE_ONLY = bytes([PageAccess.X])

_BLOCK = 1 << 12
"""Frames between two boundaries of 16 MiB."""

_SECOND_BYTES = bytes((gfn & 0xF) << 4 for gfn in range(_BLOCK))
_THIRD_BYTES = bytes(gfn >> 4 & 0xFF for gfn in range(_BLOCK))
"""By frame within its block, the bytes of the gpa that differ from its neighbours'."""


@dataclass(frozen=True, slots=True)
class PageRun:
    """`count` frames from `first` on, all with the same rights."""

    first: Gfn
    count: int
    access: PageAccess


def set_page(gpa: Gpa, access: PageAccess, *, view: int = 0) -> SetPageAccess:
    """One frame in one command; the low twelve bits of `gpa` don't matter."""
    return SetPageAccess(_ENTRY.pack(gpa, access), view)


def set_pages(runs: Iterable[PageRun], *, view: int = 0, limit: int = MAX_ENTRIES) -> Iterator[SetPageAccess]:
    """All the runs, in order, in as few commands as fit with `limit` entries each."""
    pending = bytearray()
    full = limit * ENTRY_SIZE
    for run in runs:
        for block in (_single(run),) if run.count == 1 else _blocks(run, limit):
            pending += block
            while len(pending) >= full:
                yield SetPageAccess(bytes(pending[:full]), view)
                del pending[:full]
    if pending:
        yield SetPageAccess(bytes(pending), view)


def page_entries(command: SetPageAccess) -> list[tuple[Gpa, int]]:
    """The (gpa, rights) pairs of a command; rights are as sent, and may hold bits that no kernel accepts."""
    return [(Gpa(gpa), access) for gpa, access in _ENTRY.iter_unpack(command.entries)]


def check_rights(command: SetPageAccess, *, execute_only: bool) -> None:
    """Refuse rights that no page table entry can hold.

    Write without read is an EPT misconfiguration on every CPU; execute without read needs execute-only EPT (Intel SDM
    volume 3, 29.3.3.1). The kernels accept both and enforce something else.

    Raises:
        LocalProtocolError: an entry asks for such rights, or the list isn't whole entries.
    """
    if len(command.entries) % ENTRY_SIZE:
        raise LocalProtocolError("whole entries of 16 bytes", f"{len(command.entries)} bytes")
    held = _HELD_BY_HARDWARE + _EXECUTE_ONLY if execute_only else _HELD_BY_HARDWARE
    for access in command.entries[8::ENTRY_SIZE].translate(None, held):
        raise LocalProtocolError("rights that a page table entry can hold", f"{PageAccess(access)!r}")


def _single(run: PageRun) -> bytes | bytearray:
    return _ENTRY.pack(run.first << PAGE_SHIFT, run.access)


def _blocks(run: PageRun, most: int) -> Iterator[bytes | bytearray]:
    """The entries of a run, in pieces of at most `most` frames."""
    first: int = run.first
    end = first + run.count
    while first < end:
        within = first % _BLOCK
        count = min(end - first, most, _BLOCK - within)
        block = bytearray(_ENTRY.pack((first - within) << PAGE_SHIFT, run.access) * count)
        block[1::ENTRY_SIZE] = _SECOND_BYTES[within : within + count]
        block[2::ENTRY_SIZE] = _THIRD_BYTES[within : within + count]
        yield block
        first += count

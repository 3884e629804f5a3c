"""SET_PAGE_ACCESS in bulk: frames and rights to full messages and back, with no Python loop per page.

An entry is 16 bytes, little endian: u64 gpa, u8 rights, seven zeros. Seen as 64-bit words that is two columns, so
whole columns are assigned at once by slices with a stride.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from policyc.addresses import PAGE_SIZE, Gfn, Gpa, frame_start
from policyc.kvmi.errors import LocalProtocolError
from policyc.kvmi.messages import SetPageAccess
from policyc.kvmi.vocabulary import PageAccess

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["ENTRY_SIZE", "MAX_ENTRIES", "PageRun", "check_rights", "page_entries", "set_page", "set_pages"]

ENTRY_SIZE = 16
MAX_ENTRIES = 511
"""The most entries a message holds: (8184 - 8) / 16."""

_ENTRY = Struct("<QB7x")
_HELD_BY_HARDWARE = frozenset({0, PageAccess.R, PageAccess.RW, PageAccess.RX, PageAccess.RWX})


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
    for run in runs:
        done = 0
        while done < run.count:
            count = min(run.count - done, limit - len(pending) // ENTRY_SIZE)
            pending += _column_entries(frame_start(Gfn(run.first + done)), count, run.access)
            done += count
            if len(pending) == limit * ENTRY_SIZE:
                yield SetPageAccess(bytes(pending), view)
                pending.clear()
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
    held = _HELD_BY_HARDWARE | {PageAccess.X} if execute_only else _HELD_BY_HARDWARE
    for access in set(command.entries[8::ENTRY_SIZE]) - held:
        raise LocalProtocolError("rights that a page table entry can hold", f"{PageAccess(access)!r}")


def _column_entries(start: Gpa, count: int, access: PageAccess) -> memoryview:
    words = array("Q", bytes(count * ENTRY_SIZE))
    words[0::2] = array("Q", range(start, start + count * PAGE_SIZE, PAGE_SIZE))
    words[1::2] = array("Q", [int(access)]) * count
    if sys.byteorder == "big":
        words.byteswap()
    return memoryview(words).cast("B")

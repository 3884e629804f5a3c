"""The guest's own page tables as the processor walks them: four levels, all page sizes, accessed and dirty bits.

Follows the Intel SDM, volume 3, chapter 4 (4.5 four-level paging, 4.6 access rights, 4.7 page-fault error codes, 4.8
accessed and dirty flags). Tables that lie outside RAM read as not present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from policyc.addresses import Gpa, Gva

if TYPE_CHECKING:
    from policyc.emulator.memory import Memory

__all__ = [
    "FETCH",
    "READ",
    "WRITE",
    "GuestPageFault",
    "Mapping",
    "Paging",
    "access_for",
    "is_canonical",
    "translate",
]

READ: Final = 1
WRITE: Final = 2
FETCH: Final = 4

PRESENT: Final = 1
WRITABLE: Final = 1 << 1
USER: Final = 1 << 2
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
PAGE_SIZE_BIT: Final = 1 << 7
NO_EXECUTE: Final = 1 << 63
_FRAME: Final = 0x000F_FFFF_FFFF_F000

ERROR_PRESENT: Final = 1
ERROR_WRITE: Final = 2
ERROR_USER: Final = 4
ERROR_RESERVED: Final = 8
ERROR_FETCH: Final = 16

CR0_WP: Final = 1 << 16
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
EFER_NX: Final = 1 << 11
RFLAGS_AC: Final = 1 << 18

_SHIFTS = (39, 30, 21, 12)


class Paging(NamedTuple):
    """The registers that decide how an access is translated; `cpl` is 3 for user mode."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    rflags: int
    cpl: int


class Mapping(NamedTuple):
    """What the tables say of one page of `1 << shift` bytes: rights are the bits `READ`, `WRITE`, `FETCH`.

    `rights` leaves out `WRITE` as long as the dirty bit isn't set, so that the first write is walked again.
    """

    gpa: Gpa
    rights: int
    shift: int


@dataclass(frozen=True, slots=True)
class GuestPageFault:
    """The access is not allowed by the guest's tables: error code as the processor would push it."""

    gva: Gva
    error_code: int


def is_canonical(gva: int) -> bool:
    """Whether bits 63 to 47 are all the same."""
    return gva >> 47 in (0, 0x1FFFF)


def translate(memory: Memory, cr3: int, gva: int) -> Gpa | None:
    """Where `gva` leads, whatever the rights; nothing is marked accessed. None if it isn't mapped.

    KVM's TRANSLATE_GVA makes the same walk as a supervisor read, which the rights bits never refuse without SMAP.
    """
    if not is_canonical(gva):
        return None
    leaf = _descend(memory, cr3, gva)
    if leaf is None:
        return None
    entry, shift, _, _ = leaf
    mask = (1 << shift) - 1
    return Gpa((entry & _FRAME & ~mask) | (gva & mask))


def access_for(memory: Memory, paging: Paging, gva: int, kind: int) -> Mapping | GuestPageFault:
    """Walk for one access of `kind` and mark what the processor would mark.

    Args:
        gva: a canonical address; the result is for the byte it names.
        kind: one of `READ`, `WRITE`, `FETCH`.
    """
    leaf = _descend(memory, paging.cr3, gva)
    if leaf is None:
        return GuestPageFault(Gva(gva), _error(paging, kind, present=False))
    entry, shift, flags, slots = leaf
    allowed = _rights(paging, flags)
    if not allowed & kind:
        return GuestPageFault(Gva(gva), _error(paging, kind, present=True))
    words = memory.quadwords
    for slot in slots:
        if not words[slot] & ACCESSED:
            words[slot] |= ACCESSED
    if kind == WRITE and not entry & DIRTY:
        words[slots[-1]] |= DIRTY
    elif not entry & DIRTY:
        allowed &= ~WRITE
    mask = (1 << shift) - 1
    return Mapping(Gpa((entry & _FRAME & ~mask) | (gva & mask)), allowed, shift)


def _descend(memory: Memory, cr3: int, gva: int) -> tuple[int, int, int, tuple[int, ...]] | None:
    """The leaf entry, the shift of its page size, the flags that hold for the whole path, and the words walked."""
    words = memory.quadwords
    count = len(words)
    table = cr3 & _FRAME
    flags = WRITABLE | USER
    slots: tuple[int, ...] = ()
    for shift in _SHIFTS:
        slot = (table >> 3) + ((gva >> shift) & 511)
        if slot >= count:
            return None
        entry = words[slot]
        if not entry & PRESENT:
            return None
        slots += (slot,)
        flags = (flags & entry & (WRITABLE | USER)) | ((flags | entry) & NO_EXECUTE)
        if shift == 12 or (entry & PAGE_SIZE_BIT and shift < 39):
            return entry, shift, flags, slots
        table = entry & _FRAME
    return None


def _rights(paging: Paging, flags: int) -> int:
    if paging.cpl == 3:
        if not flags & USER:
            return 0
        allowed = READ | (WRITE if flags & WRITABLE else 0)
        executable = True
    else:
        smap = flags & USER and paging.cr4 & CR4_SMAP and not paging.rflags & RFLAGS_AC
        allowed = 0 if smap else READ | (WRITE if flags & WRITABLE or not paging.cr0 & CR0_WP else 0)
        executable = not (flags & USER and paging.cr4 & CR4_SMEP)
    if executable and not (flags & NO_EXECUTE and paging.efer & EFER_NX):
        allowed |= FETCH
    return allowed


def _error(paging: Paging, kind: int, *, present: bool) -> int:
    code = ERROR_PRESENT if present else 0
    if kind == WRITE:
        code |= ERROR_WRITE
    if kind == FETCH and (paging.efer & EFER_NX or paging.cr4 & CR4_SMEP):
        code |= ERROR_FETCH
    return code | (ERROR_USER if paging.cpl == 3 else 0)

"""The answer to Unicorn's question for a page: the guest's walk, narrowed by what introspection left of the frame.

What is refused is noted once a run: the first refusal is the one that made the engine leave the guest.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from unicorn import UC_MEM_FETCH, UC_MEM_READ, UC_MEM_WRITE, Uc
from unicorn import x86_const as x86

from policyc.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa
from policyc.emulator.memory import ALL_RIGHTS
from policyc.emulator.unicorn_setup import BLIND_FRAME, NOWHERE_FRAME, RegisterReader, flush_tlb
from policyc.emulator.walk import (
    CR4_SMAP,
    FETCH,
    READ,
    WRITE,
    GuestPageFault,
    Paging,
    access_for,
    is_canonical,
    translate,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unicorn.unicorn import uc_tlb_entry

    from policyc.emulator.codewatch import CodeWatch
    from policyc.emulator.memory import Memory

__all__ = ["Reason", "Refusal", "Tlb"]

_KINDS: Final = {UC_MEM_READ: READ, UC_MEM_WRITE: WRITE, UC_MEM_FETCH: FETCH}
_PAGE: Final = ~(PAGE_SIZE - 1)
_FOLLOWING: Final = 8


class Reason(Enum):
    """Why a page was refused."""

    NOT_CANONICAL = auto()
    GUEST_TABLES = auto()
    RIGHTS = auto()
    NO_CODE_THERE = auto()
    NEW_CODE = auto()
    CHANGES_CODE = auto()


class Refusal(NamedTuple):
    """`page` and `frame` are addresses of their first bytes; `error_code` is for `GUEST_TABLES`."""

    reason: Reason
    kind: int
    page: int
    frame: int = 0
    error_code: int = 0


class Tlb:
    """The TLB of one engine.

    Args:
        devices: guest physical addresses of frames outside RAM that the engine has registers at.

    Attributes:
        paging: registers as they were when the run began. What changes them leaves the guest first, except for the
            privilege level and RFLAGS.AC, which are read for each page.
        view: the EPT view in use.
        enforcing: whether rights count; a vCPU whose page-fault events are off passes restricted pages.
        lifted: rights given back to frames for one step.
        mixed: frame that may be written although it holds code, for one step.
        blind: page whose code is hidden, so that what comes before it runs; see `Engine`.
        refusal: the first page refused since `begin`.
    """

    def __init__(self, uc: Uc, memory: Memory, watch: CodeWatch, devices: frozenset[int]) -> None:
        self._uc = uc
        self._devices = devices
        self._read = RegisterReader(uc)
        self._memory = memory
        self._watch = watch
        self._written: set[int] = set()
        self._large: set[tuple[int, int]] = set()
        self._descriptors = range(0)
        self.paging = Paging(0, 0, 0, 0, 0, 0)
        self.view = memory.views[0]
        self.enforcing = False
        self.lifted: Mapping[int, int] = {}
        self.mixed: int | None = None
        self.blind: int | None = None
        self.refusal: Refusal | None = None

    def begin(self, paging: Paging, descriptors: range) -> None:
        """A run begins; `descriptors` are the pages of the GDT, which the processor reads as a supervisor."""
        self.paging = paging
        self._descriptors = descriptors
        self.refusal = None

    def flush(self) -> None:
        """Forget every translation."""
        self._written.clear()
        self._large.clear()
        flush_tlb(self._uc)

    def in_large_page(self, gva: int) -> bool:
        """Whether a piece of a page of more than 4 KiB around `gva` may be in the TLB."""
        return any(gva >> shift == number for number, shift in self._large)

    def fill(self, uc: Uc, gva: int, access: int, entry: uc_tlb_entry, _: object) -> bool:
        """Unicorn's `UC_HOOK_TLB_FILL`."""
        kind = _KINDS[access]
        page = gva & _PAGE
        if kind == FETCH and page == self.blind:
            entry.paddr = BLIND_FRAME
            entry.perms = READ | FETCH
            return True
        if not is_canonical(gva):
            return self._refuse(Reason.NOT_CANONICAL, kind, page)
        mapping = access_for(self._memory, self._paging_now(page), page, kind)
        if isinstance(mapping, GuestPageFault):
            return self._refuse(Reason.GUEST_TABLES, kind, page, error_code=mapping.error_code)
        frame, rights, shift = mapping
        if shift != PAGE_SHIFT:
            self._large.add((gva >> shift, shift))
        if self.enforcing:
            gfn = frame >> PAGE_SHIFT
            rights &= self.view.rights.get(gfn, ALL_RIGHTS) | self.lifted.get(gfn, 0)
            if not rights & kind:
                return self._refuse(Reason.RIGHTS, kind, page, frame)
        if self.view.frames:
            frame = self.view.backing(frame)
        if frame < self._memory.size:
            return self._grant(entry, page, frame, kind, rights)
        if kind == FETCH:
            return self._refuse(Reason.NO_CODE_THERE, kind, page, frame)
        entry.paddr = frame if frame in self._devices else NOWHERE_FRAME
        entry.perms = rights & ~FETCH
        return True

    def _grant(self, entry: uc_tlb_entry, page: int, frame: int, kind: int, rights: int) -> bool:
        """Code is searched before it is granted, and never executable and writable at once.

        Searching has to wait until the engine has left the guest: a hook set now would come too late for the first
        instruction of a page that is translated together with the one before.
        """
        gfn = frame >> PAGE_SHIFT
        known = self._watch.knows(page, gfn)
        if kind == FETCH and not known:
            return self._refuse(Reason.NEW_CODE, kind, page, frame)
        if gfn in self._memory.code_frames and gfn != self.mixed:
            if kind == WRITE:
                return self._refuse(Reason.CHANGES_CODE, kind, page, frame)
            rights &= ~WRITE
        if kind == FETCH or not rights & WRITE:
            rights &= ~WRITE
        else:
            rights &= ~FETCH
            self._written.add(gfn)
        entry.paddr = frame
        entry.perms = rights if known else rights & ~FETCH
        return True

    def may_write(self, gfn: int) -> bool:
        """Whether a store into this frame might go through without a question."""
        return gfn in self._written

    def search(self, page: int, frame: int) -> None:
        """Hook what is sensitive in a page that is about to be run for the first time."""
        if self.may_write(frame >> PAGE_SHIFT):
            self.flush()
        self._watch.cover(page, frame >> PAGE_SHIFT, self._memory.read(Gpa(frame), PAGE_SIZE), self._following(page))

    def _refuse(self, reason: Reason, kind: int, page: int, frame: int = 0, error_code: int = 0) -> bool:
        if self.refusal is None:
            self.refusal = Refusal(reason, kind, page, frame, error_code)
        return False

    def _paging_now(self, page: int) -> Paging:
        cr0, cr3, cr4, efer, rflags, _ = self.paging
        cpl = self._read(x86.UC_X86_REG_CS) & 3
        if cpl == 3 and page in self._descriptors:
            cpl = 0
        if cr4 & CR4_SMAP and cpl != 3:
            rflags = self._read(x86.UC_X86_REG_RFLAGS)
        return Paging(cr0, cr3, cr4, efer, rflags, cpl)

    def _following(self, page: int) -> bytes | None:
        following = translate(self._memory, self.paging.cr3, page + PAGE_SIZE)
        if following is None or following >= self._memory.size:
            return None
        return self._memory.read(self.view.backing(following), _FOLLOWING)

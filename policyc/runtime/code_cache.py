"""Instructions that have been decoded where the plan keeps code unwritable, so that they needn't be read again.

What was read there holds until somebody whom the plan trusts writes to it, or the frame's protection is lifted. From
the moment that either begins, the frame is read each time: the kernel performs an access that was let through some time
after the reply, and what is read in between would be kept although it's stale.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TypeAlias

from policyc.addresses import PAGE_SIZE, Gfn, Gpa, Gva, gfn_of, page_offset
from policyc.kvmi import CpuMode
from policyc.runtime.decode import MAX_INSTRUCTION, Instruction

__all__ = ["MAX_ENTRIES", "MAX_GUESSES", "CodeCache"]

MAX_ENTRIES = 4096
"""Instructions that are kept; then all are dropped."""

MAX_GUESSES = 256
"""Addresses of which it is remembered where they led."""

Keeps: TypeAlias = Callable[[Gpa, int], bool]


class CodeCache:
    """Decoded instructions by CPU mode and guest physical address, for one binding of a plan.

    Args:
        keeps_unwritable: whether the plan lets nobody but trusted code write these bytes.
        guarded: the frames that the plan has anything to do with.

    Attributes:
        exposed: frames whose protection is lifted now: nothing on them can be trusted.
    """

    def __init__(self, keeps_unwritable: Keeps, guarded: Container[Gfn]) -> None:
        self.exposed: set[Gfn] = set()
        self._keeps = keeps_unwritable
        self._guarded = guarded
        self._instructions: dict[tuple[CpuMode, Gpa], Instruction] = {}
        self._written: set[Gfn] = set()
        self._guesses: dict[Gva, Gpa] = {}

    def get(self, mode: CpuMode, gpa: Gpa) -> Instruction | None:
        """The instruction there, if it is known still to stand there."""
        return self._instructions.get((mode, gpa))

    def put(self, mode: CpuMode, gpa: Gpa, instruction: Instruction) -> None:
        """Keep what was read, if nobody but us can know better."""
        crosses = page_offset(gpa) + instruction.length > PAGE_SIZE
        if crosses or gfn_of(gpa) in self._written or not self._keeps(gpa, instruction.length):
            return
        if len(self._instructions) >= MAX_ENTRIES:
            self._instructions.clear()
        self._instructions[mode, gpa] = instruction

    def written(self, gpa: Gpa) -> None:
        """A write that begins at `gpa` is let through: its frame is read each time from now on."""
        self.distrust(gfn_of(gpa))

    def distrust(self, gfn: Gfn) -> None:
        """Forget what stands on a frame, and don't keep anything of it again."""
        if gfn in self._written or gfn not in self._guarded:
            return
        self._written.add(gfn)
        for key in [key for key in self._instructions if gfn_of(key[1]) == gfn]:
            del self._instructions[key]

    def inherit(self, earlier: CodeCache) -> None:
        """Take over what an earlier binding's cache knows to be changing: a write may be under way."""
        self.exposed |= {gfn for gfn in earlier.exposed if gfn in self._guarded}
        for gfn in earlier._written:
            self.distrust(gfn)

    def guess(self, rip: Gva) -> Gpa | None:
        """Where an address led the last time, so that both can be asked for at once; to be compared."""
        gpa = self._guesses.get(rip)
        return gpa if gpa is not None and page_offset(gpa) + MAX_INSTRUCTION <= PAGE_SIZE else None

    def note_translation(self, rip: Gva, gpa: Gpa) -> None:
        """Remember where an address led."""
        if self._guesses.get(rip) != gpa:
            if len(self._guesses) >= MAX_GUESSES:
                self._guesses.clear()
            self._guesses[rip] = gpa

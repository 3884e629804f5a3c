"""Guest memory that a test fills by hand, with page tables in it, and a page walk as plain as the manual's text."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from policyc.addresses import PAGE_SIZE, Gfn, Gpa, Gva
from policyc.guest.paging import AddressSpace
from policyc.guest.requests import PageReply, PageRequest

PRESENT, WRITABLE, USER, LARGE, NX = 1, 2, 4, 0x80, 1 << 63

Answer = TypeVar("Answer")

SHIFT_OF_SIZE = {1 << 12: 12, 1 << 21: 21, 1 << 30: 30}


class GuestMemory:
    """Frames by number; what was never written doesn't exist."""

    def __init__(self, first_free: int = 0x100) -> None:
        self.frames: dict[int, bytearray] = {}
        self.next_free = first_free

    def read(self, gfn: Gfn) -> bytes | None:
        frame = self.frames.get(gfn)
        return None if frame is None else bytes(frame)

    def new_page(self, frames: int = 1) -> Gpa:
        """The address of fresh zeroed memory, aligned to its size where `frames` is a power of two."""
        self.next_free = -(-self.next_free // frames) * frames
        first = self.next_free
        self.next_free += frames
        for gfn in range(first, first + frames):
            self.frames[gfn] = bytearray(PAGE_SIZE)
        return Gpa(first * PAGE_SIZE)

    def write(self, gpa: int, data: bytes) -> None:
        """Put `data` at `gpa`, making the frames that it needs."""
        while data:
            frame = self.frames.setdefault(gpa // PAGE_SIZE, bytearray(PAGE_SIZE))
            start = gpa % PAGE_SIZE
            part, data = data[: PAGE_SIZE - start], data[PAGE_SIZE - start :]
            frame[start : start + len(part)] = part
            gpa += len(part)

    def entry(self, gpa: int) -> int:
        frame = self.frames[gpa // PAGE_SIZE]
        return int.from_bytes(frame[gpa % PAGE_SIZE : gpa % PAGE_SIZE + 8], "little")

    def set_entry(self, gpa: int, value: int) -> None:
        self.write(gpa, value.to_bytes(8, "little"))

    def map(
        self, root: int, gva: int, gpa: int, *, size: int = PAGE_SIZE, flags: int = PRESENT | WRITABLE, levels: int = 4
    ) -> None:
        """Map one page of `size` bytes, making the tables above it with every right."""
        table, shift = root, 12 + 9 * (levels - 1)
        while shift > SHIFT_OF_SIZE[size]:
            slot = table + (gva >> shift) % 512 * 8
            if not self.entry(slot) & PRESENT:
                self.set_entry(slot, self.new_page() | PRESENT | WRITABLE | USER)
            table = self.entry(slot) & 0x000F_FFFF_FFFF_F000
            shift -= 9
        self.set_entry(table + (gva >> shift) % 512 * 8, gpa | flags | (LARGE if size > PAGE_SIZE else 0))

    def translate(self, space: AddressSpace, gva: int) -> tuple[Gpa, int, bool, bool, bool] | None:
        """Where one address leads: gpa, page size, writable, user, executable; None where the processor would fault."""
        top = gva >> (9 * space.levels + 11)
        if top not in (0, (1 << (64 - 9 * space.levels - 11)) - 1):
            return None
        table: int = space.root
        writable = user = executable = True
        for level in range(space.levels, 0, -1):
            shift = 12 + 9 * (level - 1)
            if table // PAGE_SIZE not in self.frames:
                return None
            entry = self.entry(table + ((gva >> shift) & 511) * 8)
            if not entry & PRESENT:
                return None
            for bit in range(space.physical_bits, 52):
                if entry >> bit & 1:
                    return None
            if entry & NX and not space.nx_enabled:
                return None
            writable, user = writable and bool(entry & WRITABLE), user and bool(entry & USER)
            executable = executable and not entry & NX
            leaf = level == 1 or bool(entry & LARGE)
            if leaf and level > 3:
                return None
            if leaf:
                if level > 1 and any(entry >> bit & 1 for bit in range(13, shift)):
                    return None
                frame = sum(1 << bit for bit in range(shift, 52) if entry >> bit & 1)
                return Gpa(frame + gva % (1 << shift)), 1 << shift, writable, user, executable
            table = sum(1 << bit for bit in range(12, 52) if entry >> bit & 1)
        raise AssertionError("a walk ends at level 1")


def gva(*indices: int, offset: int = 0) -> Gva:
    """The address that goes through these entries of the tables, from the top, sign-extended."""
    address = 0
    for index in indices:
        address = address << 9 | index
    address = address << 12 | offset
    bits = 12 + 9 * len(indices)
    return Gva(address | (((1 << 64) - (1 << bits)) if address >> (bits - 1) & 1 else 0))


def transcript(
    asking: Generator[PageRequest, PageReply, Answer], read: Callable[[Gfn], bytes | None]
) -> tuple[list[tuple[Gfn, ...]], Answer]:
    """Run `asking` to its end: the frames of each request, and what it returned."""
    requests: list[tuple[Gfn, ...]] = []
    try:
        request = next(asking)
        while True:
            requests.append(request.gfns)
            request = asking.send({gfn: read(gfn) for gfn in request.gfns})
    except StopIteration as end:
        answer: Answer = end.value
        return requests, answer

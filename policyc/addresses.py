"""Guest addresses as three types that do not mix, and half-open ranges of them.

`Gva` is a guest virtual address, `Gpa` a guest physical one, `Gfn` the number of a 4 KiB guest frame. At run time all
three are plain integers, so nothing is paid for them beside QEMU; the type checker keeps them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NewType, TypeVar

__all__ = [
    "ADDRESS_SPACE_END",
    "GVA_UNKNOWN",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "Gfn",
    "Gpa",
    "GpaRange",
    "Gva",
    "GvaRange",
    "Range",
    "frame_start",
    "gfn_of",
    "gfns_of",
    "page_offset",
]

Gva = NewType("Gva", int)
Gpa = NewType("Gpa", int)
Gfn = NewType("Gfn", int)

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

ADDRESS_SPACE_END = 1 << 64
"""One past the last address that 64 bits can name: the largest `end` a range may have."""

GVA_UNKNOWN = Gva(0xFFFF_FFFF_FFFF_FFFF)
"""What a KVMI event carries where the kernel doesn't know the virtual address (all ones)."""

A = TypeVar("A", bound=int)


@dataclass(frozen=True, slots=True, order=True)
class Range(Generic[A]):
    """The addresses from `start` up to, not including, `end`.

    Raises:
        ValueError: the range is empty, backwards, or leaves the 64-bit address space.
    """

    start: A
    end: A

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= ADDRESS_SPACE_END:
            raise ValueError(f"not a range: [{self.start:#x}, {self.end:#x})")

    @property
    def size(self) -> int:
        """Bytes covered."""
        return self.end - self.start

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def __str__(self) -> str:
        return f"[{self.start:#x}, {self.end:#x})"


GvaRange = Range[Gva]
GpaRange = Range[Gpa]


def gfn_of(gpa: Gpa) -> Gfn:
    """The frame that holds `gpa`."""
    return Gfn(gpa >> PAGE_SHIFT)


def frame_start(gfn: Gfn) -> Gpa:
    """The first byte of frame `gfn`."""
    return Gpa(gfn << PAGE_SHIFT)


def page_offset(address: int) -> int:
    """The offset of a virtual or physical address within its 4 KiB page."""
    return address & (PAGE_SIZE - 1)


def gfns_of(span: GpaRange) -> range:
    """The numbers of the frames that `span` touches, ascending."""
    return range(span.start >> PAGE_SHIFT, ((span.end - 1) >> PAGE_SHIFT) + 1)

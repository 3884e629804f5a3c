"""What else lies where a rule guards: the kernel image's sections and symbols, by offset from its first byte."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policyc.guest.profile import Profile
from policyc.plan.places import Base, Extent

__all__ = ["Foreign", "ImageMap"]

FREED = ".init"
WRITABLE = (".data", ".bss")
CONSTANT = (".rodata",)


@dataclass(frozen=True, slots=True)
class Foreign:
    """Symbols that share pages with what is guarded: how many, and the names of the first."""

    count: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(f"`{name}`" for name in self.names)
        return shown + (f" and {self.count - len(self.names)} more" if self.count > len(self.names) else "")


class ImageMap:
    """The kernel image of a profile.

    Attributes:
        writable: the sections that the kernel writes to while it runs.
        data: those, and the sections that it reads as data.
        has_sizes: whether the profile knows sizes of symbols at all.
        freed: the section that the kernel gives back once it runs, or None.
    """

    def __init__(self, profile: Profile) -> None:
        self._anchor = profile.anchor
        self._symbols = profile.kernel.symbols
        self._sections = {
            name: Extent(Base.IMAGE, span.start - self._anchor, span.end - self._anchor)
            for name, span in profile.kernel.sections.items()
            if span.start >= self._anchor
        }
        self.writable = [self._sections[name] for name in WRITABLE if name in self._sections]
        self.data = [*self.writable, *(self._sections[name] for name in CONSTANT if name in self._sections)]
        self.has_sizes = self._symbols.sizes is not None
        self.freed = self._sections.get(FREED)

    def foreign(self, gaps: Sequence[tuple[int, int]], most: int = 3) -> Foreign:
        """The symbols that begin in these ranges of offsets; several names of one address count once."""
        names: list[str] = []
        count = 0
        for index in self._starts(gaps):
            count += 1
            if len(names) < most:
                names.append(self._symbols.names[index])
        return Foreign(count, tuple(names))

    def _starts(self, gaps: Sequence[tuple[int, int]]) -> Iterator[int]:
        addresses = self._symbols.addresses
        for start, end in gaps:
            index = bisect_left(addresses, self._anchor + start)
            while index < len(addresses) and addresses[index] < self._anchor + end:
                if index == 0 or addresses[index - 1] != addresses[index]:
                    yield index
                index += 1

"""Places of a guest: what a rule names, and the bytes it comes to.

A place is symbolic (`kernel .text`); an extent is bytes. An extent is counted from a base, because the kernel image
slides at every boot and the descriptor tables lie where the registers point: only binding knows where a base is.
The same `resolve` serves the compiler, with a profile's symbols as the lookup, and the runtime, with the live guest's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from policyc.addresses import ADDRESS_SPACE_END

__all__ = [
    "Absolute",
    "Base",
    "DescriptorTable",
    "Extent",
    "Found",
    "Lookup",
    "Missing",
    "ModuleSection",
    "Place",
    "Resolution",
    "Section",
    "SymbolPlace",
    "resolve",
]


class Base(IntEnum):
    """What an extent's offsets are counted from."""

    IMAGE = 0
    """The first byte of the kernel image (`_text`): moves with KASLR."""
    VIRTUAL = 1
    """Guest virtual address 0."""
    PHYSICAL = 2
    """Guest physical address 0."""
    IDT = 3
    """Where IDTR points when the plan is armed."""
    GDT = 4
    """Where GDTR points when the plan is armed."""

    @property
    def word(self) -> str:
        """The name in the artifact and in listings."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """The bytes `[start, end)`, counted from `base`.

    Raises:
        ValueError: the extent is empty, backwards or leaves the 64-bit address space.
    """

    base: Base
    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= ADDRESS_SPACE_END:
            raise ValueError(f"not an extent: {self.base.word} [{self.start:#x}, {self.end:#x})")

    @property
    def size(self) -> int:
        """Bytes covered."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Section:
    """A section of an image, as `kernel .text`."""

    image: str
    name: str

    def __str__(self) -> str:
        return f"{self.image} {self.name}" if self.name.startswith(".") else f'{self.image} "{self.name}"'


@dataclass(frozen=True, slots=True)
class SymbolPlace:
    """A symbol or a glob of symbols, as `kernel:sys_call_table + 8 size 8`.

    Attributes:
        pattern: the symbol's name; a `*` makes it a glob (`?` doesn't: decorated C++ names begin with it).
        offset: bytes added to the symbol's address.
        size: bytes, or None for the symbol's own size less the offset.
    """

    image: str
    pattern: str
    offset: int = 0
    size: int | None = None

    @property
    def is_glob(self) -> bool:
        """Whether the name stands for several symbols."""
        return "*" in self.pattern

    def __str__(self) -> str:
        sign = "" if not self.offset else f" {'+' if self.offset > 0 else '-'} {abs(self.offset):#x}"
        return f"{self.image}:{self.pattern}{sign}" + (f" size {self.size:#x}" if self.size is not None else "")


@dataclass(frozen=True, slots=True)
class ModuleSection:
    """A section of a loadable module, as `module ext4 .text`."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"module {self.module} {self.name}"


@dataclass(frozen=True, slots=True)
class DescriptorTable:
    """The IDT or the GDT, wherever the register points when the plan is armed."""

    base: Base

    def __str__(self) -> str:
        return self.base.word


@dataclass(frozen=True, slots=True)
class Absolute:
    """Addresses written out, as `physical 0x100000..0x200000`."""

    extent: Extent

    def __str__(self) -> str:
        return f"{self.extent.base.word} {self.extent.start:#x}..{self.extent.end:#x}"


Place = Section | SymbolPlace | ModuleSection | DescriptorTable | Absolute

DESCRIPTOR_TABLE_BYTES = {Base.IDT: 256 * 16, Base.GDT: 8192 * 8}
"""The most a table can hold (Intel SDM vol. 3A 3.5.1, 6.10); binding cuts it to the register's limit."""


@dataclass(frozen=True, slots=True)
class Found:
    """Bytes that a lookup knows. `inferred` says that the end is the next symbol's address, not a recorded size."""

    extent: Extent
    inferred: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a lookup knows no such place, in one sentence, and what might have been meant."""

    fact: str
    help: str | None = None


class Lookup(Protocol):
    """What `resolve` asks of a profile or of a live guest."""

    def section(self, image: str, name: str) -> Found | Missing:
        """The bytes of a section."""
        ...

    def symbols(self, image: str, pattern: str) -> Sequence[Found] | Missing:
        """The bytes of every symbol that the pattern matches; at least one, else `Missing`."""
        ...

    def module_section(self, module: str, name: str) -> Found | Missing:
        """The bytes of a section of a loadable module."""
        ...


@dataclass(frozen=True, slots=True)
class Resolution:
    """What one place comes to: its extents in ascending order, or why there are none."""

    place: Place
    extents: tuple[Extent, ...]
    inferred: bool = False
    missing: Missing | None = None


def resolve(places: Iterable[Place], lookup: Lookup) -> tuple[Resolution, ...]:
    """Turn places into extents, one resolution a place, in order. A place that isn't there is a value, not an error."""
    return tuple(_resolve(place, lookup) for place in places)


def _resolve(place: Place, lookup: Lookup) -> Resolution:
    match place:
        case Section(image, name):
            found: Sequence[Found] | Missing = _several(lookup.section(image, name))
        case ModuleSection(module, name):
            found = _several(lookup.module_section(module, name))
        case SymbolPlace(image, pattern):
            found = _shifted(place, lookup.symbols(image, pattern))
        case DescriptorTable(base):
            found = (Found(Extent(base, 0, DESCRIPTOR_TABLE_BYTES[base])),)
        case Absolute(extent):
            found = (Found(extent),)
    if isinstance(found, Missing):
        return Resolution(place, (), missing=found)
    return Resolution(place, tuple(sorted({f.extent for f in found})), inferred=any(f.inferred for f in found))


def _several(found: Found | Missing) -> Sequence[Found] | Missing:
    return found if isinstance(found, Missing) else (found,)


def _shifted(place: SymbolPlace, found: Sequence[Found] | Missing) -> Sequence[Found] | Missing:
    """Apply `+ offset` and `size` to every symbol found."""
    if isinstance(found, Missing) or (place.offset == 0 and place.size is None):
        return found
    shifted = []
    for hit in found:
        start = hit.extent.start + place.offset
        end = hit.extent.end if place.size is None else start + place.size
        if not 0 <= start < end <= ADDRESS_SPACE_END:
            return Missing(
                f"`{place}` covers no bytes: the symbol has {hit.extent.size:#x}",
                "give a smaller offset, or a `size`",
            )
        shifted.append(Found(Extent(hit.extent.base, start, end), inferred=hit.inferred and place.size is None))
    return shifted

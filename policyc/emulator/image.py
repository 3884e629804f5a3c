"""The small guest: its image, its symbols, and how it is put into RAM.

The image is built by `small/build.sh` and checked in. The loader does what a boot loader does: copy, relocate, make
page tables that are just enough, and enter `startup_64` in long mode. The two slides are separate, as in Linux: the
virtual one moves the kernel's addresses, `load_gpa` says where it lies in RAM.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from policyc.addresses import PAGE_SIZE, Gpa, Gva

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.emulator.memory import Memory

__all__ = [
    "DEFAULT_LOAD_GPA",
    "SLIDE_ALIGNMENT",
    "SLIDE_LIMIT",
    "BootState",
    "Image",
    "check_place",
    "install_firmware",
    "load",
    "small_image",
    "small_system_map",
]

KERNEL_BASE: Final = 0xFFFF_FFFF_8100_0000
MODULE_BASE: Final = 0xFFFF_FFFF_C040_0000
SLIDE_ALIGNMENT: Final = 0x20_0000
SLIDE_LIMIT: Final = 0x3E00_0000
"""The kernel, its slide and its bss end below the module area."""

DEFAULT_LOAD_GPA: Final = Gpa(0x100_0000)
IMAGE_SPACE: Final = 0x20_0000

_PML4: Final = 0x1000
_LOW: Final = 0x2000
_LOW_PAGES: Final = 0x3000
_HIGH: Final = 0x4000
_HIGH_PAGES: Final = 0x5000
_GDT: Final = 0x6000
_BOOT_VALUES: Final = 0x7000
_STACK: Final = 0x9000
"""Below it is what the loader uses; the page above it is the kernel's, for starting processors."""

_TABLE: Final = 0x3
_LARGE: Final = 0x83
_DESCRIPTORS: Final = (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)


@dataclass(frozen=True, slots=True)
class Image:
    """A flat image linked at `KERNEL_BASE`, with what it takes to move it.

    Attributes:
        content: its bytes; byte 0 belongs to `_text`.
        relocations: offsets in `content` of 64-bit kernel addresses.
        symbols: link-time address of every symbol, the module's and the user task's among them.
        system_map: the same as text, one `address type name` a line.
    """

    content: bytes
    relocations: tuple[int, ...]
    symbols: Mapping[str, int]
    system_map: str

    def address(self, name: str, slide: int) -> Gva:
        """Where a symbol is in a guest with that slide.

        Raises:
            KeyError: there is no such symbol.
        """
        address = self.symbols[name]
        return Gva(address + slide if is_slid(address) else address)


@dataclass(frozen=True, slots=True)
class BootState:
    """The registers that the loader enters the kernel with."""

    rip: Gva
    rsp: int
    rsi: int
    cr3: int
    gdt: tuple[int, int]


def is_slid(address: int) -> bool:
    """Whether a slide moves this address: the kernel's are, the module's and the user's aren't."""
    return KERNEL_BASE <= address < MODULE_BASE


@lru_cache(maxsize=1)
def small_image() -> Image:
    """The checked-in image."""
    folder = files("policyc.emulator") / "small"
    system_map = (folder / "kernel.map").read_text("ascii")
    symbols = {}
    for line in system_map.splitlines():
        address, _, name = line.split()
        symbols[name] = int(address, 16)
    module = symbols["__module_image"] - KERNEL_BASE
    relocations = tuple(
        at - KERNEL_BASE if is_slid(at) else at - MODULE_BASE + module
        for at in (int(line, 16) for line in (folder / "kernel.relocs").read_text("ascii").split())
    )
    return Image((folder / "kernel.bin").read_bytes(), relocations, symbols, system_map)


def small_system_map() -> str:
    """The small guest's System.map: its kernel's symbols, without the module's and the user task's."""
    lines = small_image().system_map.splitlines(keepends=True)
    return "".join(line for line in lines if is_slid(int(line.split()[0], 16)))


def install_firmware(memory: Memory) -> BootState:
    """Page tables that map RAM one to one and nothing else, a GDT, and the registers to stand there with."""
    for table in (_PML4, _LOW, _LOW_PAGES, _HIGH, _HIGH_PAGES):
        memory.write(Gpa(table), bytes(PAGE_SIZE))
    _words(memory, _PML4, (_LOW | _TABLE,))
    _words(memory, _LOW, (_LOW_PAGES | _TABLE,))
    _words(memory, _LOW_PAGES, range(_LARGE, memory.size, SLIDE_ALIGNMENT))
    _words(memory, _GDT, _DESCRIPTORS)
    return BootState(rip=Gva(0), rsp=0, rsi=0, cr3=_PML4, gdt=(_GDT, len(_DESCRIPTORS) * 8 - 1))


def check_place(memory: Memory, slide: int, load_gpa: int) -> None:
    """Whether a guest can lie there.

    Raises:
        ValueError: the slide or the place in RAM can't be had.
    """
    if slide % SLIDE_ALIGNMENT or not 0 <= slide <= SLIDE_LIMIT:
        raise ValueError(f"a slide is a multiple of {SLIDE_ALIGNMENT:#x} from 0 to {SLIDE_LIMIT:#x}, not {slide:#x}")
    if load_gpa % SLIDE_ALIGNMENT or not SLIDE_ALIGNMENT <= load_gpa <= memory.size - IMAGE_SPACE:
        raise ValueError(f"the image can't lie at {load_gpa:#x} in {memory.size:#x} bytes of RAM")


def load(
    image: Image,
    memory: Memory,
    slide: int = 0,
    load_gpa: int = DEFAULT_LOAD_GPA,
    *,
    cpus: int = 1,
    kpti: bool = False,
) -> BootState:
    """Put the image into RAM as a boot loader does: copy, relocate, map.

    Args:
        cpus: processors that the kernel is to start, the one that it boots on included.
        kpti: whether user mode is to have page tables of its own.

    Raises:
        ValueError: the slide or the place in RAM can't be had.
    """
    check_place(memory, slide, load_gpa)
    content = bytearray(image.content)
    for at in image.relocations:
        (address,) = struct.unpack_from("<Q", content, at)
        struct.pack_into("<Q", content, at, address + slide)
    memory.write(Gpa(load_gpa), bytes(content))
    firmware = install_firmware(memory)
    base = KERNEL_BASE + slide
    _words(memory, _PML4 + 8 * 511, (_HIGH | _TABLE,))
    _words(memory, _HIGH + 8 * (base >> 30 & 511), (_HIGH_PAGES | _TABLE,))
    _words(memory, _HIGH_PAGES + 8 * (base >> 21 & 511), (load_gpa | _LARGE,))
    _words(memory, _BOOT_VALUES, (load_gpa, memory.size, cpus, int(kpti)))
    return replace(firmware, rip=image.address("startup_64", slide), rsp=_STACK, rsi=_BOOT_VALUES)


def _words(memory: Memory, gpa: int, values: tuple[int, ...] | range) -> None:
    memory.write(Gpa(gpa), struct.pack(f"<{len(values)}Q", *values))

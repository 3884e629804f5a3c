"""The machine's one device: it copies guest memory by itself, and no right of any frame is asked.

The guest puts a descriptor into RAM and writes its address to a port. That is all that a rootkit needs of a disk or a
network card to get around every guard on the processor's side.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from policyc.addresses import PAGE_SIZE, Gpa
from policyc.emulator.memory import NoMemoryError

if TYPE_CHECKING:
    from policyc.emulator.memory import Memory

__all__ = ["DMA_PORT", "transfer"]

DMA_PORT: Final = 0xD00
"""32 bits: the guest physical address of a descriptor."""

_DESCRIPTOR: Final = struct.Struct("<QQQ")  # from, to, bytes


def transfer(memory: Memory, descriptor: int) -> None:
    """Do what a descriptor says; one that leads out of RAM, or asks for more than a page, is ignored."""
    try:
        source, target, size = _DESCRIPTOR.unpack(memory.read(Gpa(descriptor), _DESCRIPTOR.size))
        if size <= PAGE_SIZE:
            memory.write(Gpa(target), memory.read(Gpa(source), size))
    except NoMemoryError:
        pass

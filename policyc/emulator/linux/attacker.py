"""The attacker's pages in a Linux machine: mapped as a module's would be, in RAM that the kernel doesn't know of.

The code is `attacker/attacker.S`, assembled by `attacker/build.sh` and checked in. Its pages lie in the kernel's module
area: the page table itself, code, parameters, stack, room for a descriptor table, and a window for mappings of its own.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from policyc.addresses import PAGE_SIZE, Gpa, Gva
from policyc.emulator.linux.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.emulator.memory import Memory

__all__ = ["PARAMETERS", "AttackerPages", "attacker_symbols"]

MODULE_AREA: Final = 0xFFFF_FFFF_C000_0000
"""Where a kernel with address randomisation keeps its modules (Linux, Documentation/x86/x86_64/mm.rst)."""

PARAMETERS: Final = struct.Struct("<7Q8x48s")
"""Target, its gpa, size, function, original system call, original entry, second function; the value to store."""

_CODE, _PARAMETERS, _STACK, _TABLE, _WINDOW, _ENTRIES = range(1, 7)
_PAGES: Final = 8
_LARGE: Final = 2 << 20
_PRESENT: Final = 1
_FRAME: Final = 0x000F_FFFF_FFFF_F000
_NO_EXECUTE: Final = 1 << 63
_TABLE_FLAGS: Final = 0x63  # present, writable, accessed, dirty
_CODE_FLAGS: Final = 0x61  # not writable
_DATA_FLAGS: Final = _TABLE_FLAGS | _NO_EXECUTE


@lru_cache(maxsize=1)
def attacker_symbols() -> Mapping[str, int]:
    """Offsets of the routines in the page."""
    lines = (files("policyc.emulator.linux") / "attacker" / "attacker.map").read_text("ascii").splitlines()
    return {name: int(address, 16) for address, name in (line.split() for line in lines)}


class AttackerPages:
    """The pages, in place.

    Args:
        cr3: any root of the kernel's page tables.
        reserved: gpa of the RAM that isn't the kernel's.

    Raises:
        SnapshotError: there is no room in RAM, or in the module area.
    """

    def __init__(self, memory: Memory, cr3: int, reserved: int) -> None:
        if reserved % PAGE_SIZE or reserved + _PAGES * PAGE_SIZE > memory.size:
            raise SnapshotError(f"the manifest leaves no RAM to the attacker: it begins at {reserved:#x}")
        self._memory = memory
        self._frames = reserved
        self.base = self._map(cr3)
        code = (files("policyc.emulator.linux") / "attacker" / "attacker.bin").read_bytes()
        memory.write(Gpa(reserved + _CODE * PAGE_SIZE), code)

    @property
    def code(self) -> range:
        """Addresses of the code page."""
        return range(self.base + _CODE * PAGE_SIZE, self.base + (_CODE + 1) * PAGE_SIZE)

    def routine(self, name: str) -> Gva:
        """Where a routine begins."""
        return Gva(self.code.start + attacker_symbols()[name])

    def call(self) -> int:
        """Prepare the stack for a call that returns to `finish`; what RSP has to be."""
        top = _STACK * PAGE_SIZE + PAGE_SIZE - 8
        self._memory.write(Gpa(self._frames + top), self.routine("finish").to_bytes(8, "little"))
        return self.base + top

    def set_parameters(
        self, target: int, frame: int, size: int, function: int, syscall: int, entry: int, helper: int, value: bytes
    ) -> None:
        """What the exploit knows."""
        data = PARAMETERS.pack(target, frame, size, function, syscall, entry, helper, value)
        self._memory.write(Gpa(self._frames + _PARAMETERS * PAGE_SIZE), data)

    def _map(self, cr3: int) -> int:
        """Put the page table into the first free slot of the module area; the area's first address then."""
        memory = self._memory
        upper = self._entry(cr3, MODULE_AREA >> 39)
        middle = self._entry(upper, MODULE_AREA >> 30) & _FRAME
        for slot in range(MODULE_AREA >> 21 & 511, 256):
            where = Gpa(middle + 8 * slot)
            if not int.from_bytes(memory.read(where, 8), "little"):
                break
        else:
            raise SnapshotError("the kernel's module area has no room")
        memory.write(where, (self._frames | _TABLE_FLAGS).to_bytes(8, "little"))
        flags = {_CODE: _CODE_FLAGS, _PARAMETERS: _DATA_FLAGS, _STACK: _DATA_FLAGS, _TABLE: _DATA_FLAGS}
        entries = [0] * _PAGES
        for page, bits in flags.items():
            entries[page] = (self._frames + page * PAGE_SIZE) | bits
        entries[_ENTRIES] = self._frames | _DATA_FLAGS
        memory.write(Gpa(self._frames), struct.pack(f"<{_PAGES}Q", *entries))
        return (MODULE_AREA & ~(511 << 21)) + slot * _LARGE

    def _entry(self, table: int, index: int) -> int:
        entry = int.from_bytes(self._memory.read(Gpa((table & _FRAME) + 8 * (index & 511)), 8), "little")
        if not entry & _PRESENT:
            raise SnapshotError("the kernel has no page tables for its module area")
        return entry

"""The guest that the running kernels were recorded with, as a machine of the emulator: orders come by a mailbox."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from policyc.addresses import Gpa, Gva
from policyc.emulator.image import BootState
from policyc.emulator.machine import Machine
from policyc.emulator.memory import Memory
from policyc.emulator.routines import Routine, RoutineRun
from policyc.emulator.vcpu import Vcpu

__all__ = ["CODE", "FOLDER", "MAILBOX", "RecordedGuest"]

FOLDER = Path(__file__).parents[1] / "emulator" / "recorded"
CODE = 0x10_0000
MAILBOX = 0x20_2000
RAM = 16 << 20

_GDT = 0x8000
_IDT = 0x9000
_PML4 = 0x1_0000
_OTHER_PML4 = 0x1_8000
_PDPT = 0x1_1000
_DIRECTORY = 0x1_2000
_STACK = 0x9_0000
_STACKS = 0x4000
_GATES = 1024
_GATE_BYTES = 16
_TABLE = 0x67  # dirty and accessed, as the recorded guest made them
_LARGE = 0x83
_CR4 = 0x4_0620  # OSXSAVE, OSXMMEXCPT, OSFXSR, PAE: as it was recorded


@cache
def _code() -> bytes:
    return bytes.fromhex((FOLDER / "guest.hex").read_text())


class RecordedGuest(Machine):
    """Sixteen MiB, mapped one to one, and a loop that looks into its mailbox for what to do."""

    def __init__(self, *, vcpus: int = 1, cpu: str = "amd") -> None:
        super().__init__(Memory(RAM), cpu, 0)
        self.memory.write(Gpa(CODE), _code())
        self._words(_GDT, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
        self._words(_PML4, _PDPT | _TABLE)
        self._words(_OTHER_PML4, _PDPT | _TABLE)
        self._words(_PDPT, _DIRECTORY | _TABLE)
        self._words(_DIRECTORY, *range(_LARGE, RAM, 2 << 20))
        for vector in range(32):
            handler = CODE + _GATES + vector * _GATE_BYTES
            self._words(_IDT + 16 * vector, handler & 0xFFFF | 8 << 16 | 0x8E << 40 | handler >> 16 << 48, 0)
        # The pages that are written, read and called hold RETs.
        self.memory.write(Gpa(0x30_0000), b"\xc3" * 0x10_000)
        for index in range(vcpus):
            vcpu = Vcpu(index, self.memory, cpu)
            vcpu.start(BootState(Gva(CODE), _STACK - _STACKS * index, 0, _PML4, (_GDT, 23)))
            vcpu.engine.set("cr4", _CR4)
            vcpu.engine.enter(0, 8, 16)
            vcpu.engine.set("rdi", index)
            vcpu.engine.set_table("idtr", _IDT, 32 * 16 - 1)
            self.vcpus.append(vcpu)

    def power_on(self) -> None:
        """See `Machine`: it runs from the beginning."""

    def tick(self) -> None:
        """See `Machine`: nothing ticks."""

    def symbol(self, name: str) -> Gva:
        """See `Machine`: there are none."""
        raise KeyError(name)

    @property
    def booted(self) -> bool:
        """See `Machine`."""
        return True

    @property
    def panicked(self) -> int | None:
        """See `Machine`."""
        return None

    @property
    def routines(self) -> Mapping[str, Routine]:
        """See `Machine`."""
        return {}

    def begin(self, routine: Routine) -> RoutineRun:
        """See `Machine`."""
        raise ValueError(f"{routine.name} is no order that this guest knows")

    def _words(self, gpa: int, *values: int) -> None:
        self.memory.write(Gpa(gpa), struct.pack(f"<{len(values)}Q", *values))

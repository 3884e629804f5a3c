"""One instruction on an emulated processor: what it reads and writes, and which state it leaves changed."""

from __future__ import annotations

from dataclasses import dataclass, field

import unicorn
from unicorn import x86_const as x86

from policyc.kvmi import CpuMode

__all__ = ["DATA", "Bench", "Ran"]

CODE, DATA, STACK, SOURCE, TARGET = 0x1000, 0x4000, 0x6000, 0x8000, 0xA000
"""Where code lies and where RBX, RSP, RSI and RDI point to: far enough apart to tell accesses by their address."""

MODES = {
    CpuMode.REAL: unicorn.UC_MODE_16,
    CpuMode.PROTECTED: unicorn.UC_MODE_32,
    CpuMode.LONG: unicorn.UC_MODE_64,
}
GENERAL = {
    x86.UC_X86_REG_EAX: 1,
    x86.UC_X86_REG_ECX: 1,
    x86.UC_X86_REG_EDX: 0,
    x86.UC_X86_REG_EBX: DATA,
    x86.UC_X86_REG_ESP: STACK,
    x86.UC_X86_REG_EBP: STACK,
    x86.UC_X86_REG_ESI: SOURCE,
    x86.UC_X86_REG_EDI: TARGET,
    x86.UC_X86_REG_EFLAGS: 0x8D7,
    x86.UC_X86_REG_FPCW: 0x340,
    x86.UC_X86_REG_FPSW: 0x3800,
    x86.UC_X86_REG_FPTAG: 0x3FFF,
}
"""The state before: all arithmetic flags set, x87 exceptions enabled and one register of its stack in use."""
STATE = (
    *GENERAL,
    *(x86.UC_X86_REG_XMM0, x86.UC_X86_REG_XMM1, x86.UC_X86_REG_MXCSR),
    x86.UC_X86_REG_ST0,
)


@dataclass(slots=True)
class Ran:
    """What one instruction did.

    Attributes:
        reads, writes: by the place that a register points to, the lowest address and the end of what was accessed.
        changed: whether a register or a flag other than RIP was changed.
    """

    reads: dict[int, tuple[int, int]] = field(default_factory=dict)
    writes: dict[int, tuple[int, int]] = field(default_factory=dict)
    changed: bool = False

    @property
    def read(self) -> int:
        return max((end - start for start, end in self.reads.values()), default=0)

    @property
    def written(self) -> int:
        return max((end - start for start, end in self.writes.values()), default=0)


class Bench:
    """A processor in one mode, the same before each instruction."""

    def __init__(self, mode: CpuMode) -> None:
        self._machine = unicorn.Uc(unicorn.UC_ARCH_X86, MODES[mode])
        self._machine.mem_map(0, 0x20000)
        self._machine.hook_add(unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE, self._accessed)
        self._machine.hook_add(unicorn.UC_HOOK_INTR, self._interrupted)
        for register, value in GENERAL.items():
            self._machine.reg_write(register, value)
        self._start = self._machine.context_save()
        self._ran = Ran()
        self._failed = False

    def run(self, code: bytes) -> Ran | None:
        """What the instruction does, or None where this processor doesn't know it or it faults."""
        machine, self._ran, self._failed = self._machine, Ran(), False
        machine.mem_write(DATA, (0x037F).to_bytes(2, "little") + bytes(0x3FE))
        machine.mem_write(CODE, code.ljust(16, b"\x90"))
        machine.ctl_remove_cache(CODE, CODE + 16)
        machine.context_restore(self._start)
        before = self._state()
        try:
            machine.emu_start(CODE, CODE + len(code), count=1)
        except unicorn.UcError:
            return None
        self._ran.changed = self._state() != before
        return None if self._failed else self._ran

    def _state(self) -> list[object]:
        return [self._machine.reg_read(register) for register in STATE]

    def _accessed(self, machine: object, kind: int, address: int, size: int, value: int, data: object) -> None:
        spans = self._ran.writes if kind == unicorn.UC_MEM_WRITE else self._ran.reads
        place = (address + 0x1000) >> 13
        start, end = spans.get(place, (address, address))
        spans[place] = min(start, address), max(end, address + size)

    def _interrupted(self, machine: unicorn.Uc, number: int, data: object) -> None:
        self._failed = True
        machine.emu_stop()

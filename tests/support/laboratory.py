"""A laboratory in the small guest: pages of code and data, where its modules lie, to try single instructions on.

There is code that a plan keeps unwritable and code that it doesn't, objects that it guards, memory that it knows
nothing of, and a stack. An instruction is followed by HLT; a fault on it ends at a fixup of the guest's own exception
tables, which is HLT as well.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from unicorn import x86_const as x86

from policyc.addresses import PAGE_SIZE, Gpa
from policyc.emulator.context import GPR_NAMES
from policyc.emulator.small_machine import SmallMachine

__all__ = [
    "CODE_PAGES",
    "DATA",
    "EXCEPTION_FRAME",
    "FIXUP",
    "GUARDED_READS",
    "GUARDED_WRITES",
    "HEAD",
    "LAB",
    "LAB_GPA",
    "OBJECT",
    "PLAIN",
    "POLICY",
    "RAM",
    "SECRET",
    "SECRET_HEAD",
    "SLOT",
    "SLOTS",
    "SOURCE_AT",
    "STACK_TOP",
    "TAIL",
    "Laboratory",
    "Outcome",
    "Span",
    "low",
]

RAM = 32 << 20
SLIDE = 0x1240_0000
LAB = 0xFFFF_FFFF_C050_0000
LAB_LOW = 0x50_0000
LAB_GPA = 0x180_0000
PAGES = 52
FILLED = range(32, 51)
DATA = LAB + FILLED.start * PAGE_SIZE
SLOT = 32
"""Bytes from one instruction's place to the next: no two share one, so nothing known of one holds for another."""
CODE_PAGES = 16
SLOTS = CODE_PAGES * PAGE_SIZE // SLOT
EXTABLE, FIXUP = LAB + 51 * PAGE_SIZE, LAB + 51 * PAGE_SIZE + 0x100
STACK_TOP = LAB + 49 * PAGE_SIZE
SOURCE_AT = LAB + 50 * PAGE_SIZE + 0x400
EXCEPTION_FRAME = 0x200
"""More than what the processor and the guest's handler push for an exception."""
HLT = 0xF4
MASK_OF_BYTES = bytes.fromhex("80800000800000800080000080008080")
"""In XMM2, for MASKMOVDQU."""
MSR_FS_BASE, MSR_GS_BASE = 0xC000_0100, 0xC000_0101

_XMM = tuple(x86.UC_X86_REG_XMM0 + number for number in (0, 1, 2, 9))
_FP = tuple(x86.UC_X86_REG_FP0 + number for number in range(8))
_CONTROL = (x86.UC_X86_REG_FPCW, x86.UC_X86_REG_FPSW, x86.UC_X86_REG_FPTAG, x86.UC_X86_REG_MXCSR)


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) by their virtual addresses in the laboratory."""

    start: int
    end: int

    def meets(self, start: int, end: int) -> bool:
        """Whether it has a byte in common with [start, end)."""
        return self.start < end and start < self.end


def _at(page: int, offset: int, size: int) -> Span:
    start = LAB + page * PAGE_SIZE + offset
    return Span(start, start + size)


OBJECT = _at(33, 0x800, 0x40)
HEAD = _at(36, 0, 0x20)
TAIL = _at(38, PAGE_SIZE - 0x20, 0x20)
SECRET = _at(40, 0x800, 0x40)
SECRET_HEAD = _at(42, 0, 0x20)
PLAIN = _at(44, 0x800, 0x40)
"""Objects amid their pages, at a page's beginning and at its end; the secret ones may not be read; one is unguarded."""

GUARDED_WRITES = (OBJECT, HEAD, TAIL)
GUARDED_READS = (SECRET, SECRET_HEAD)

POLICY = f"""
text: deny write to kernel .text
code: deny write to virtual {LAB:#x} size {CODE_PAGES * PAGE_SIZE:#x}
object: deny write to virtual {OBJECT.start:#x} size {OBJECT.end - OBJECT.start:#x}
head: deny write to virtual {HEAD.start:#x} size {HEAD.end - HEAD.start:#x}
tail: deny write to virtual {TAIL.start:#x} size {TAIL.end - TAIL.start:#x}
secret: deny read, execute of virtual {SECRET.start:#x} size {SECRET.end - SECRET.start:#x}
secret-head: deny read, execute of virtual {SECRET_HEAD.start:#x} size {SECRET_HEAD.end - SECRET_HEAD.start:#x}
"""


def low(address: int) -> int:
    """The 32-bit address that the laboratory is mapped at as well."""
    return address - LAB + LAB_LOW


@dataclass(frozen=True)
class Outcome:
    """The state of the processor and of the laboratory.

    Attributes:
        registers: general registers, RIP, RFLAGS.
        vectors: x87 and SSE registers with their control words.
        memory: the laboratory's pages of data, from `DATA` on.
        fault: vector and RIP of an exception that ended at the fixup.
    """

    registers: Mapping[str, int]
    vectors: tuple[object, ...]
    memory: bytes
    fault: tuple[int, int] | None = None

    def bytes_at(self, span: Span) -> bytes:
        """What lies there."""
        return self.memory[span.start - DATA : span.end - DATA]


class Laboratory:
    """A machine with the small guest, its idle vCPU, and the laboratory's pages."""

    def __init__(self, cpu: str) -> None:
        self.machine = SmallMachine.boot(slide=SLIDE, ram=RAM, cpu=cpu)
        self.vcpu = self.machine.vcpus[0]
        self.engine = self.vcpu.engine
        self.gs_base = self.engine.msr_read(MSR_GS_BASE)
        memory, machine = self.machine.memory, self.machine
        for page in range(PAGES):
            frame = LAB_GPA + page * PAGE_SIZE
            for table, base in (("level1_module_pgt", LAB), ("level1_user_pgt", LAB_LOW)):
                index = base // PAGE_SIZE % 512 + page
                memory.write(Gpa(machine.gpa(machine.symbol(table)) + 8 * index), struct.pack("<Q", frame | 3))
        memory.write(Gpa(LAB_GPA), bytes([HLT]) * (PAGES * PAGE_SIZE))
        extable = machine.gpa(machine.symbol("module_extable"))
        memory.write(extable, struct.pack("<QQ", EXTABLE, EXTABLE + 8))
        self._load_vectors()
        self.start = self.engine._uc.context_save()

    def prepare(
        self,
        at: int,
        code: bytes,
        registers: Mapping[str, int],
        fill: int | None,
        *,
        handled: int | None = None,
        content: Mapping[int, bytes] = MappingProxyType({}),
    ) -> None:
        """Put an instruction into its place, memory and registers as they are before it.

        Args:
            handled: where a fault may happen that ends at the fixup; None for the instruction itself.
            content: what else lies in memory, by address.
        """
        memory, engine = self.machine.memory, self.engine
        engine._uc.context_restore(self.start)
        memory.write(Gpa(LAB_GPA + DATA - LAB), _filling(fill))
        memory.write(Gpa(LAB_GPA + at - LAB), code.ljust(SLOT, bytes([HLT])))
        memory.write(Gpa(LAB_GPA + EXTABLE - LAB), struct.pack("<ii", (handled or at) - EXTABLE, FIXUP - EXTABLE - 4))
        for address, data in content.items():
            memory.write(Gpa(LAB_GPA + address - LAB), data)
        self.machine.write_int("last_fault_rip", 0)
        general = dict.fromkeys(GPR_NAMES, 0) | {"rsp": STACK_TOP - 0x800, "rflags": 2, "rip": at}
        general.update(registers)
        engine.msr_write(MSR_FS_BASE, general.pop("fs_base", 0))
        engine.msr_write(MSR_GS_BASE, self.gs_base)
        if "rsi_from_gs" in general:
            general["rsi"] = general.pop("rsi_from_gs") - self.gs_base & (1 << 64) - 1
        for name, value in general.items():
            engine.set(name, value)
        engine.flush_tlb()
        self.vcpu.halted = False

    def map(self, page: int, frame: int | None) -> None:
        """Let a page of the laboratory lead to the frame of another, or nowhere; RAM as the host sees it."""
        machine = self.machine
        entry = machine.gpa(machine.symbol("level1_module_pgt")) + 8 * (LAB // PAGE_SIZE % 512 + page)
        machine.memory.write(Gpa(entry), struct.pack("<Q", 0 if frame is None else LAB_GPA + frame * PAGE_SIZE | 3))
        self.engine.flush_tlb()

    def outcome(self) -> Outcome:
        """The state as it is now."""
        engine, machine = self.engine, self.machine
        engine.context.load()
        registers = dict(zip(GPR_NAMES, engine.context.gprs_and_rip(), strict=True))
        registers["rflags"] = engine.get("rflags")
        at = machine.read_int("last_fault_rip")
        return Outcome(
            registers=registers,
            vectors=tuple(engine.read_native(register) for register in (*_XMM, *_FP, *_CONTROL)),
            memory=machine.memory.read(Gpa(LAB_GPA + DATA - LAB), len(FILLED) * PAGE_SIZE),
            fault=(machine.read_int("last_fault_vector"), at) if at else None,
        )

    def _load_vectors(self) -> None:
        for number, register in enumerate(_XMM):
            content = MASK_OF_BYTES if number == 2 else bytes(range(0x1F * number + 1, 0x1F * number + 17))
            value = int.from_bytes(content, "little")
            self.engine.write_native(register, value)
        for number, register in enumerate(_FP):
            self.engine.write_native(register, (0x8080_0000_8000_8080 | number << 8, 0x3FFF + number))
        # ST0 is register 5; three of the eight are in use.
        for register, value in zip(_CONTROL, (0x037F, 5 << 11, 0x03FF, 0x1F80), strict=True):
            self.engine.write_native(register, value)


@lru_cache
def _filling(fill: int | None) -> bytes:
    size = len(FILLED) * PAGE_SIZE
    if fill is not None:
        return fill.to_bytes(8, "little") * (size // 8)
    return bytes(position * 73 + (position >> 8) * 29 & 0xFF for position in range(PAGE_SIZE)) * len(FILLED)

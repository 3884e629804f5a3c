"""A bench for single instructions: one engine, 1 MiB of RAM mapped twice, and code given as bytes.

All RAM is mapped one to one and again, writable and executable, at `HIGH`. Code goes to `CODE`, data to `DATA`, the
stack ends at `STACK`; an IDT at `IDT` has nothing in it until a test asks for a handler.
"""

from __future__ import annotations

import struct

from policyc.addresses import PAGE_SIZE, Gpa
from policyc.emulator.engine import Engine
from policyc.emulator.memory import Memory
from policyc.emulator.stops import Stop

__all__ = ["CODE", "DATA", "GDT", "HIGH", "IDT", "PAGES", "SPARE", "STACK", "TSS", "USER", "Bench"]

HIGH = 0xFFFF_8000_0000_0000
PML4, LOW_PDPT, LOW_PD, LOW_PT, HIGH_PDPT, HIGH_PD, HIGH_PT = range(0x1000, 0x8000, 0x1000)
GDT = 0x8000
TSS = 0x8800
IDT = 0x9000
STACK = 0x1_4000
USER = 0x1_8000
CODE = 0x2_0000
SPARE = 0x3_0000
DATA = 0x4_0000
PAGES = 512

_DESCRIPTORS = (
    0,
    0,
    0x00AF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0,
    0x00CF_F300_0000_FFFF,
    0x00AF_FB00_0000_FFFF,
    0,
    0x0000_8900_8800_0067,
    0,
)


class Bench:
    """An engine whose guest is what a test puts there."""

    def __init__(self, code: bytes = b"", *, cpu: str = "intel", **registers: int) -> None:
        self.memory = Memory(2 << 20)
        self.engine = Engine(self.memory, cpu)
        tables = {PML4: LOW_PDPT, LOW_PDPT: LOW_PD, LOW_PD: LOW_PT, PML4 + 8 * 256: HIGH_PDPT}
        tables |= {HIGH_PDPT: HIGH_PD, HIGH_PD: HIGH_PT}
        for at, table in tables.items():
            self.words(at, table | 7)
        for table in (LOW_PT, HIGH_PT):
            self.words(table, *(page << 12 | 7 for page in range(PAGES)))
        self.words(GDT, *_DESCRIPTORS)
        self.words(TSS + 4, STACK)
        engine = self.engine
        engine.set("cr4", 0x40620)  # PAE, SSE, XSAVE
        engine.set("cr3", PML4)
        engine.set_table("gdtr", GDT, len(_DESCRIPTORS) * 8 - 1)
        engine.set_table("idtr", IDT, PAGE_SIZE - 1)
        engine.enter(0, 0x10, 0x18)
        engine.set("rflags", 2)
        engine.set("rsp", STACK)
        engine.set("rip", CODE)
        engine.enforcing = True
        self.put(CODE, code + b"\xf4")
        self.set(**registers)

    def put(self, gpa: int, data: bytes) -> None:
        """Store bytes as the host."""
        self.memory.write(Gpa(gpa), data)

    def words(self, gpa: int, *values: int) -> None:
        """Store 64-bit words as the host."""
        self.put(gpa, struct.pack(f"<{len(values)}Q", *values))

    def get(self, gpa: int, size: int = 8) -> bytes:
        """Read bytes as the host."""
        return self.memory.read(Gpa(gpa), size)

    def set(self, **registers: int) -> None:
        """Set registers by name."""
        for name, value in registers.items():
            self.engine.set(name, value)

    def restrict(self, address: int, rights: int) -> None:
        """Leave these rights to the frame of an address."""
        self.memory.restrict([(address >> 12, rights)])

    def gate(
        self, vector: int, handler: int, *, dpl: int = 0, stack: int = 0, kind: int = 0xE, present: int = 1
    ) -> None:
        """Put a gate into the IDT."""
        flags = present << 7 | dpl << 5 | kind
        self.put(
            IDT + 16 * vector,
            struct.pack("<HHBBHII", handler & 0xFFFF, 0x10, stack, flags, handler >> 16 & 0xFFFF, handler >> 32, 0),
        )

    def user_mode(self) -> None:
        """Let the code run at privilege level 3, with a stack of its own."""
        self.engine.enter(3, 0x33, 0x2B)
        self.set(rsp=USER + PAGE_SIZE)

    def run(self, budget: int = 1000) -> Stop:
        """Run from RIP."""
        return self.engine.run(budget)

    def run_at(self, rip: int, budget: int = 1000) -> Stop:
        """Run from an address."""
        self.set(rip=rip)
        return self.engine.run(budget)

    @property
    def rip(self) -> int:
        """Where it stands, from the start of the code."""
        return self.engine.get("rip") - CODE

"""Where an instruction's operand lies: an address made of registers, worked out with those of an event."""

from __future__ import annotations

from dataclasses import dataclass

from policyc.addresses import Gva
from policyc.kvmi import Registers, SystemRegisters

__all__ = ["REGISTERS", "Operand"]

ALL_ONES = (1 << 64) - 1

_WIDE = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{number}" for number in range(8, 16)))

REGISTERS = {
    **{name: (name, ALL_ONES) for name in (*_WIDE, "rip")},
    **{f"e{name[1:]}": (name, 0xFFFF_FFFF) for name in (*_WIDE[:8], "rip")},
    **{f"{name}d": (name, 0xFFFF_FFFF) for name in _WIDE[8:]},
}
"""The registers that an address in long mode is made of: the 64-bit register and the bits of it that count."""


@dataclass(frozen=True, slots=True)
class Operand:
    """`segment:[base + index * scale + displacement]` in long mode.

    Attributes:
        segment: "fs" or "gs"; None where the segment's base is 0.
        base, index: names in `REGISTERS`; None where there is none.
        mask: the bits of the sum that count: 64, or 32 with an address-size prefix.
    """

    segment: str | None
    base: str | None
    index: str | None
    scale: int
    displacement: int
    mask: int

    def address(self, regs: Registers, sregs: SystemRegisters, length: int) -> Gva:
        """Its first byte; `length` is the instruction's, behind which RIP stands while it is executed."""
        offset = self.displacement
        if self.base is not None:
            offset += _value(self.base, regs) + (length if self.base in ("rip", "eip") else 0)
        if self.index is not None:
            offset += _value(self.index, regs) * self.scale
        offset &= self.mask
        if self.segment is not None:
            base: int = getattr(sregs, self.segment).base
            offset += base
        return Gva(offset & ALL_ONES)


def _value(name: str, regs: Registers) -> int:
    wide, mask = REGISTERS[name]
    value: int = getattr(regs, wide)
    return value & mask

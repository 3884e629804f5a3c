"""The instruction at RIP: its length, its name, and the memory that it touches.

The engine tells a fault's page alone; the operand addresses give the byte. What an instruction touches without saying
so (stack, string and table accesses) is in tables here. An access that isn't found is placed at the start of its page.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from capstone import CS_ARCH_X86, CS_MODE_64, Cs, CsInsn
from capstone import x86_const as x86

from policyc.addresses import PAGE_SIZE, Gva

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstone.x86 import X86Op

__all__ = ["INSTRUCTION_MAX", "Access", "Instruction", "address_in_page", "decode"]

INSTRUCTION_MAX: Final = 15
_MASK: Final = (1 << 64) - 1
_PAGE: Final = ~(PAGE_SIZE - 1)

_STACK_WRITERS: Final = {"push": 8, "call": 8, "pushfq": 8, "pushf": 8, "enter": 8, "lcall": 16}
_STACK_READERS: Final = {"pop": 8, "ret": 8, "popfq": 8, "popf": 8, "retf": 16, "retfq": 16, "iretq": 40, "iretd": 20}
_SIZES: Final = {"fxsave": 512, "fxrstor": 512, "fxsave64": 512, "fxrstor64": 512, "xsave": 576, "xrstor": 576}
_BIT_TESTS: Final = frozenset({"bt", "bts", "btr", "btc"})

_WIDE = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{number}" for number in range(8, 16)))
_NARROW: Final = {
    **{f"e{name[1:]}": (name, 0xFFFF_FFFF) for name in _WIDE[:8]},
    **{f"{name}d": (name, 0xFFFF_FFFF) for name in _WIDE[8:]},
    **{name[1:]: (name, 0xFFFF) for name in _WIDE[:8]},
    **{f"{name}w": (name, 0xFFFF) for name in _WIDE[8:]},
}


@dataclass(frozen=True, slots=True)
class MemoryOperand:
    """`segment: [base + index * scale + displacement]`, `size` bytes; `bit` is the register of a bit offset."""

    segment: str | None
    base: str | None
    index: str | None
    scale: int
    displacement: int
    size: int
    address_bits: int
    bit: str | None
    written: bool
    read: bool


@dataclass(frozen=True, slots=True)
class Instruction:
    """A decoded instruction.

    Attributes:
        name: Intel mnemonic without prefixes.
        size: bytes.
        repeated: has a REP prefix.
        operands: memory operands.
        registers: names of the register operands, in order; `cr4` for a control register.
    """

    name: str
    size: int
    repeated: bool
    operands: tuple[MemoryOperand, ...]
    registers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Access:
    """Bytes [gva, gva + size) that an instruction reads or writes."""

    gva: int
    size: int
    read: bool
    written: bool

    def touches(self, page: int) -> bool:
        """Whether a byte of it lies in the page that starts at `page`."""
        return self.gva < page + PAGE_SIZE and page < self.gva + self.size


@lru_cache(maxsize=4096)
def decode(code: bytes) -> Instruction | None:
    """The 64-bit instruction at the start of `code`, at most 15 bytes; None if there is none."""
    for insn in _disassembler().disasm(code, 0, 1):
        names = insn.mnemonic.split()
        registers = tuple(insn.reg_name(operand.reg) for operand in insn.operands if operand.type == x86.X86_OP_REG)
        operands = tuple(
            _memory_operand(insn, operand, names[-1], registers)
            for operand in insn.operands
            if operand.type == x86.X86_OP_MEM
        )
        return Instruction(names[-1], insn.size, names[0].startswith("rep"), operands, registers)
    return None


def boundaries(code: bytes, address: int) -> set[int]:
    """Where the instructions of `code` may begin, the first of them at `address`; behind one that is none, anywhere."""
    begins = set()
    end = address
    for begin, size, _, _ in _disassembler().disasm_lite(code, address):
        begins.add(begin)
        end = begin + size
    return begins | set(range(end, address + len(code)))


def accesses(insn: Instruction, registers: Mapping[str, int]) -> list[Access]:
    """Everything the next step of the instruction reads and writes.

    Args:
        registers: 64-bit registers by name, with `rip` at the instruction, `fs_base` and `gs_base`.
    """
    found = [
        Access(_address(operand, insn, registers), operand.size, operand.read, operand.written)
        for operand in insn.operands
    ]
    stack = registers["rsp"]
    if insn.name in _STACK_WRITERS:
        size = _STACK_WRITERS[insn.name]
        found.append(Access((stack - size) & _MASK, size, read=False, written=True))
    if insn.name in _STACK_READERS:
        found.append(Access(stack, _STACK_READERS[insn.name], read=True, written=False))
    if insn.name == "leave":
        found.append(Access(registers["rbp"], 8, read=True, written=False))
    if insn.name == "xlatb":
        found.append(Access((registers["rbx"] + (registers["rax"] & 0xFF)) & _MASK, 1, read=True, written=False))
    return found


def address_in_page(insn: Instruction, registers: Mapping[str, int], page: int, *, write: bool) -> Gva:
    """The first byte of the page at `page` that the instruction touches, best by a `write` if that is asked for."""
    touching = [access for access in accesses(insn, registers) if access.touches(page)]
    touching.sort(key=lambda access: not (access.written if write else access.read))
    return Gva(max(touching[0].gva, page) if touching else page)


@lru_cache(maxsize=1)
def _disassembler() -> Cs:
    disassembler = Cs(CS_ARCH_X86, CS_MODE_64)
    disassembler.detail = True
    return disassembler


def _memory_operand(insn: CsInsn, operand: X86Op, name: str, registers: tuple[str, ...]) -> MemoryOperand:
    memory = operand.mem
    return MemoryOperand(
        segment=insn.reg_name(memory.segment) if memory.segment else None,
        base=insn.reg_name(memory.base) if memory.base else None,
        index=insn.reg_name(memory.index) if memory.index else None,
        scale=memory.scale,
        displacement=memory.disp,
        size=_SIZES.get(name, operand.size or 1),
        address_bits=insn.addr_size * 8,
        bit=registers[0] if name in _BIT_TESTS and registers else None,
        written=bool(operand.access & 2) or name.startswith(("cmpxchg", "ins")),
        read=bool(operand.access & 1) or name.startswith("cmpxchg"),
    )


def _address(operand: MemoryOperand, insn: Instruction, registers: Mapping[str, int]) -> int:
    offset = operand.displacement
    if operand.base in ("rip", "eip"):
        offset += registers["rip"] + insn.size
    elif operand.base:
        offset += _value(operand.base, registers)
    if operand.index:
        offset += _value(operand.index, registers) * operand.scale
    if operand.bit:
        bits = operand.size * 8
        number = _value(operand.bit, registers)
        number -= (number >> (bits - 1) & 1) << bits
        offset += number // bits * operand.size
    offset &= (1 << operand.address_bits) - 1
    if operand.segment in ("fs", "gs"):
        offset += registers[f"{operand.segment}_base"]
    return offset & _MASK


def _value(name: str, registers: Mapping[str, int]) -> int:
    if name in registers:
        return registers[name]
    if name in _NARROW:
        wide, mask = _NARROW[name]
        return registers[wide] & mask
    return 0  # riz, the index that isn't one

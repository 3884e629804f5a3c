"""The instruction at RIP: its length, its name, and the memory that it touches.

The engine tells a fault's page alone; the operand addresses give the byte. What an instruction touches without saying
so (stack, string and table accesses) is in tables here. An access that isn't found is placed at the start of its page.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from capstone import CS_ARCH_X86, CS_MODE_16, CS_MODE_32, CS_MODE_64, Cs, CsInsn
from capstone import x86_const as x86

from policyc.addresses import PAGE_SIZE, Gva

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstone.x86 import X86Op

__all__ = ["INSTRUCTION_MAX", "Access", "Instruction", "accesses", "address_in_page", "decode", "register_value"]

INSTRUCTION_MAX: Final = 15
_MASK: Final = (1 << 64) - 1
_PAGE: Final = ~(PAGE_SIZE - 1)

_STACK_WRITERS: Final = {
    "push": 1,
    "call": 1,
    "pushfq": 1,
    "pushfd": 1,
    "pushf": 1,
    "enter": 1,
    "lcall": 2,
    "pushal": 8,
}
_STACK_READERS: Final = {
    **dict.fromkeys(("pop", "ret", "leave", "popfq", "popfd", "popf"), 1),
    **dict.fromkeys(("retf", "retfq"), 2),
    **dict.fromkeys(("iretq", "iretd"), 5),
    "popal": 8,
}
"""How many slots of the stack, each as wide as a push in that mode."""

_IMPLIED_STORES: Final = {"maskmovq": 8, "maskmovdqu": 16}
"""To where RDI points, without an operand that says so."""

_NARROWED: Final = frozenset({"push", "pop", "pushf", "popf", "enter", "leave"})
_NARROW_SLOT: Final = 2
_OPERAND_SIZE_PREFIX: Final = 0x66

_SIZES: Final = {"fxsave": 512, "fxrstor": 512, "fxsave64": 512, "fxrstor64": 512, "xsave": 576, "xrstor": 576}
_BIT_TESTS: Final = frozenset({"bt", "bts", "btr", "btc"})

_WIDE = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{number}" for number in range(8, 16)))
_MODES: Final = {16: CS_MODE_16, 32: CS_MODE_32, 64: CS_MODE_64}
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
        code: its bytes.
        repeated: has a REP prefix.
        bits: of the code that it's in: 16, 32 or 64.
        operands: memory operands.
        registers: names of the register operands, in order; `cr4` for a control register.
        narrow: has an operand-size prefix.
    """

    name: str
    code: bytes
    repeated: bool
    bits: int
    operands: tuple[MemoryOperand, ...]
    registers: tuple[str, ...]
    narrow: bool

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self.code)


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
def decode(code: bytes, bits: int = 64) -> Instruction | None:
    """The instruction at the start of `code`, at most 15 bytes of a segment of `bits`; None if there is none."""
    for insn in _disassembler(bits).disasm(code, 0, 1):
        names = insn.mnemonic.split()
        registers = tuple(insn.reg_name(operand.reg) for operand in insn.operands if operand.type == x86.X86_OP_REG)
        operands = tuple(
            _memory_operand(insn, operand, names[-1], registers)
            for operand in insn.operands
            if operand.type == x86.X86_OP_MEM
        )
        return Instruction(
            name=names[-1],
            code=bytes(insn.bytes),
            repeated=names[0].startswith("rep"),
            bits=bits,
            operands=operands,
            registers=registers,
            narrow=_OPERAND_SIZE_PREFIX in insn.prefix,
        )
    return None


def boundaries(code: bytes, address: int) -> set[int]:
    """Where the instructions of `code` may begin, the first of them at `address`; behind one that is none, anywhere.

    It may be 64-bit or 32-bit code, so what begins one in either counts.
    """
    begins = set()
    for bits in (64, 32):
        end = address
        for begin, size, _, _ in _disassembler(bits).disasm_lite(code, address):
            begins.add(begin)
            end = begin + size
        begins.update(range(end, address + len(code)))
    return begins


def accesses(insn: Instruction, registers: Mapping[str, int]) -> list[Access]:
    """Everything the next step of the instruction reads and writes.

    Args:
        registers: 64-bit registers by name, with `rip` at the instruction, `fs_base` and `gs_base`.
    """
    found = [
        Access(_address(operand, insn, registers), operand.size, operand.read, operand.written)
        for operand in insn.operands
    ]
    narrow = insn.narrow and insn.name in _NARROWED
    slot, wrap = _NARROW_SLOT if narrow else insn.bits // 8, (1 << insn.bits) - 1
    stack = registers["rbp" if insn.name == "leave" else "rsp"] & wrap
    if insn.name in _STACK_WRITERS:
        size = _STACK_WRITERS[insn.name] * slot
        found.append(Access((stack - size) & wrap, size, read=False, written=True))
    if insn.name in _STACK_READERS:
        found.append(Access(stack, _STACK_READERS[insn.name] * slot, read=True, written=False))
    if insn.name in _IMPLIED_STORES:
        found.append(Access(registers["rdi"] & wrap, _IMPLIED_STORES[insn.name], read=False, written=True))
    if insn.name == "xlatb":
        found.append(Access((registers["rbx"] + (registers["rax"] & 0xFF)) & wrap, 1, read=True, written=False))
    return found


def address_in_page(insn: Instruction, registers: Mapping[str, int], page: int, *, write: bool) -> Gva:
    """The first byte of the page at `page` that the instruction touches, best by a `write` if that is asked for."""
    touching = [access for access in accesses(insn, registers) if access.touches(page)]
    touching.sort(key=lambda access: not (access.written if write else access.read))
    return Gva(max(touching[0].gva, page) if touching else page)


def register_value(name: str, registers: Mapping[str, int]) -> int:
    """A general register by any of its names, such as `eax`, from the 64-bit ones; 0 where there is none."""
    if name in registers:
        return registers[name]
    if name in _NARROW:
        wide, mask = _NARROW[name]
        return registers[wide] & mask
    return 0  # riz, the index that isn't one


@lru_cache(maxsize=3)
def _disassembler(bits: int) -> Cs:
    disassembler = Cs(CS_ARCH_X86, _MODES[bits])
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
        offset += register_value(operand.base, registers)
    if operand.index:
        offset += register_value(operand.index, registers) * operand.scale
    if operand.bit:
        bits = operand.size * 8
        number = register_value(operand.bit, registers)
        number -= (number >> (bits - 1) & 1) << bits
        offset += number // bits * operand.size
    offset &= (1 << operand.address_bits) - 1
    if operand.segment in ("fs", "gs"):
        offset += registers[f"{operand.segment}_base"]
    return offset & _MASK

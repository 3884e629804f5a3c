"""What an instruction does to memory, as far as a verdict turns on it: length, operand size, side effects.

Capstone reads the instruction; what it accesses and whether it may be stepped over is decided by our own tables.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from policyc.catalog import Access
from policyc.kvmi import CpuMode
from policyc.runtime.instructions import INSTRUCTIONS, PURE_STORES, STRING_OPCODES, STRINGS, Extent, Row, Way
from policyc.runtime.kernel_emulator import is_emulated
from policyc.runtime.operands import ALL_ONES, REGISTERS, Operand

if TYPE_CHECKING:
    import capstone

__all__ = ["MAX_INSTRUCTION", "Instruction", "decode"]

MAX_INSTRUCTION = 15
"""The longest instruction that a processor takes (Intel SDM vol. 2A 2.3.11)."""

WRITES = frozenset({Way.EXCHANGE, Way.PUSH, Way.IMPLIED_STORE})
WRITES_FIRST = frozenset({Way.MOVE, Way.CHANGE, Way.BIT, Way.POP})
READS = frozenset({Way.CHANGE, Way.BIT, Way.EXCHANGE, Way.LOAD, Way.POP, Way.IMPLIED_LOAD})
READS_LAST = frozenset({Way.MOVE, Way.PUSH})
SEGMENTS = frozenset(["cs", "ds", "es", "fs", "gs", "ss"])
MMX = frozenset(f"mm{index}" for index in range(8))
FAR_DIRECT = frozenset({0x9A, 0xEA})
FAR_INDIRECT, FAR_FORMS = 0xFF, frozenset({3, 5})
REX_W = 8
OPERAND_SIZE = 0x66
IMPLIED = frozenset({Way.PUSH, Way.POP, Way.IMPLIED_STORE, Way.IMPLIED_LOAD})
EXPLICIT = frozenset({Way.MOVE, Way.CHANGE, Way.EXCHANGE, Way.LOAD})
FAR_SEGMENTS = frozenset(["fs", "gs"])
FAR_PREFIXES = frozenset({0x64, 0x65})
IGNORED_PREFIXES = frozenset({0x26, 0x2E, 0x36, 0x3E})
PREFIXES = FAR_PREFIXES | IGNORED_PREFIXES | {0x66, 0x67, 0xF0, 0xF2, 0xF3}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One decoded instruction.

    Attributes:
        length: bytes.
        reads, writes: the most bytes that one read or write of memory takes, from its lowest address; None where there
            is no such access, or none whose size is certain.
        is_pure_store: nothing but the store would be missed if it were stepped over.
        text: as a disassembler prints it.
        is_emulated: KVM's own emulator performs it, so that CONTINUE does.
        operand: the one place in memory that it accesses, with `reads` and `writes` bytes; None where there are
            others, or where its address isn't certain.
    """

    length: int
    reads: int | None
    writes: int | None
    is_pure_store: bool
    text: str
    is_emulated: bool = False
    operand: Operand | None = None

    def size_of(self, access: Access) -> int | None:
        """Bytes that the instruction accesses in this way, its own length for execution; None if that isn't certain.

        An access of several ways counts as its write: what is read beside it is the same operand.
        """
        if access & Access.X:
            return self.length
        return self.writes if access & Access.W else self.reads


@functools.lru_cache(maxsize=4096)
def decode(mode: CpuMode, code: bytes) -> Instruction | None:
    """The first instruction in `code`, or None where there is none.

    Results are kept by content, so code that changes under its address can't be taken for what it was.
    """
    found = next(_engine(mode).disasm(code[:MAX_INSTRUCTION], 0, count=1), None)
    if found is None:
        return None
    reads, writes = _accesses(found, mode)
    return Instruction(
        length=found.size,
        reads=reads,
        writes=writes,
        is_pure_store=_is_pure_store(found),
        text=f"{found.mnemonic} {found.op_str}".strip(),
        is_emulated=is_emulated(_name(found), found.opcode, mode, narrow=OPERAND_SIZE in found.prefix),
        operand=_operand(found, mode) if reads or writes else None,
    )


def _accesses(found: capstone.CsInsn, mode: CpuMode) -> tuple[int | None, int | None]:
    """What is read and what is written, in bytes."""
    row = _row(found)
    memory = _memory(found)
    if row is None or _has_hidden_access(found, row) or not (memory or row.way in IMPLIED):
        return None, None
    size = _size(found, row.size, mode)
    first = memory[:1] == [0]
    # A stack instruction with an operand in memory accesses both, in opposite directions.
    reads = row.way in READS or (row.way in READS_LAST and bool(memory) and (row.way is Way.PUSH or not first))
    writes = row.way in WRITES or (row.way in WRITES_FIRST and first)
    return size if reads else None, size if writes else None


def _name(found: capstone.CsInsn) -> str:
    """The mnemonic: prefixes such as `lock` and `rep` are words of their own before it."""
    return str(found.mnemonic).split()[-1]


def _row(found: capstone.CsInsn) -> Row | None:
    name = _name(found)
    is_string = found.opcode[0] in STRING_OPCODES and name in STRINGS
    return (STRINGS if is_string else INSTRUCTIONS).get(name)


def _operand(found: capstone.CsInsn, mode: CpuMode) -> Operand | None:
    """Where an instruction with one operand in memory has it; segments have bases of their own outside long mode."""
    row, memory = _row(found), _memory(found)
    if _hides_segment(found):
        return None
    if mode is not CpuMode.LONG or row is None or row.way not in EXPLICIT or len(memory) != 1:
        return None
    place = found.operands[memory[0]].mem
    # Capstone calls the absence of an index in long mode `riz`.
    base, index = (found.reg_name(number) if number else None for number in (place.base, place.index))
    index = None if index in ("riz", "eiz") else index
    if any(name is not None and name not in REGISTERS for name in (base, index)):
        return None
    segment = found.reg_name(place.segment) if place.segment else None
    return Operand(
        segment=segment if segment in FAR_SEGMENTS else None,
        base=base,
        index=index,
        scale=int(place.scale),
        displacement=int(place.disp),
        mask=ALL_ONES if found.addr_size == 8 else 0xFFFF_FFFF,
    )


def _hides_segment(found: capstone.CsInsn) -> bool:
    """Whether a prefix that long mode ignores stands beside FS or GS, which Capstone then forgets."""
    prefixes = list(takewhile(PREFIXES.__contains__, found.bytes))
    return bool(FAR_PREFIXES.intersection(prefixes) and IGNORED_PREFIXES.intersection(prefixes))


def _has_hidden_access(found: capstone.CsInsn, row: Row) -> bool:
    """Whether memory beyond the operand is accessed: by a bit's number, or for a segment or its descriptor."""
    from capstone import x86

    if found.opcode[0] in FAR_DIRECT or (found.opcode[0] == FAR_INDIRECT and (found.modrm >> 3) & 7 in FAR_FORMS):
        return True
    if row.way is Way.BIT:
        return bool(found.operands[-1].type != x86.X86_OP_IMM)
    if row.way in (Way.MOVE, Way.POP) and found.operands:
        # With REX.W KVM's emulator stores eight bytes of a selector (`em_store_sreg`), a processor two.
        widened = bool(found.rex & REX_W) and _names_register(found, len(found.operands) - 1, SEGMENTS)
        return widened or _names_register(found, 0, SEGMENTS)
    return False


def _is_wide_and_narrow(found: capstone.CsInsn) -> bool:
    return bool(found.rex & REX_W) and OPERAND_SIZE in found.prefix


def _size(found: capstone.CsInsn, size: int | Extent, mode: CpuMode) -> int | None:
    match size:
        case int():
            return size
        case Extent.SLOT:
            return max(int(mode), int(CpuMode.PROTECTED))
        case Extent.WIDTH:
            return 8 if found.rex & REX_W else 4
        case Extent.DESCRIPTOR:
            return 10 if mode is CpuMode.LONG else 6
        case Extent.OPERAND:
            if _name(found) == "movbe" and (mode is CpuMode.REAL or _is_wide_and_narrow(found)):
                return None  # Capstone goes by another prefix than a processor
            sizes = [int(found.operands[index].size) for index in _memory(found)]
            return sizes[0] if len(sizes) == 1 and sizes[0] else None
        case Extent.VECTOR:
            return max(int(operand.size) for operand in found.operands)


def _memory(found: capstone.CsInsn) -> list[int]:
    """Which of the operands are in memory."""
    from capstone import x86

    return [index for index, operand in enumerate(found.operands) if operand.type == x86.X86_OP_MEM]


def _is_pure_store(found: capstone.CsInsn) -> bool:
    # A store whose destination is a register here is another form; a string move has two memory operands.
    if found.mnemonic not in PURE_STORES or _memory(found) != [0]:
        return False
    # An MMX register as the source marks the x87 stack as in use.
    return not any(_names_register(found, index, MMX) for index in range(len(found.operands)))


def _names_register(found: capstone.CsInsn, index: int, names: frozenset[str]) -> bool:
    from capstone import x86

    operand = found.operands[index]
    return operand.type == x86.X86_OP_REG and found.reg_name(operand.reg) in names


@functools.cache
def _engine(mode: CpuMode) -> capstone.Cs:
    # Imported here, since a runtime that only logs never needs it.
    import capstone

    modes = {
        CpuMode.REAL: capstone.CS_MODE_16,
        CpuMode.PROTECTED: capstone.CS_MODE_32,
        CpuMode.LONG: capstone.CS_MODE_64,
    }
    engine = capstone.Cs(capstone.CS_ARCH_X86, modes[mode])
    engine.detail = True
    return engine

"""What an instruction does to memory, as far as a verdict turns on it: length, operand size, side effects.

Capstone reads the instruction. Which instructions may be stepped over without the guest noticing more than a store that
didn't happen is a table: only those whose store is their one effect. The others would lose a register or flags.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyc.catalog import Access
from policyc.kvmi import CpuMode

if TYPE_CHECKING:
    import capstone

__all__ = ["MAX_INSTRUCTION", "Instruction", "decode"]

MAX_INSTRUCTION = 15
"""The longest instruction that a processor takes (Intel SDM vol. 2A 2.3.11)."""

_STORES = """
    mov movabs movbe movnti not
    seta setae setb setbe sete setg setge setl setle setne setno setnp setns seto setp sets
    fnstcw fnstsw fxsave fxsave64 stmxcsr
    extractps movapd movaps movd movdqa movdqu movhpd movhps movlpd movlps movntdq movntpd movntps movntq movntsd
    movntss movq movsd movss movupd movups pextrb pextrd pextrq pextrw
    sgdt sidt sldt smsw str
"""

PURE_STORES = frozenset(_STORES.split())
"""Instructions whose only result is what they store (Intel SDM vol. 2).

`not` sets no flags. String forms move RSI and RDI; capstone calls `movsd` both a string instruction and an SSE store,
which the operands tell apart. x87 stores set condition codes or pop, and `fnsave` resets what it has stored.
"""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One decoded instruction.

    Attributes:
        length: bytes.
        reads, writes: size of the memory operand that is read or written; None where there is none.
        is_pure_store: nothing but the store would be missed if it were stepped over.
        text: as a disassembler prints it.
    """

    length: int
    reads: int | None
    writes: int | None
    is_pure_store: bool
    text: str

    def size_of(self, access: Access) -> int | None:
        """Bytes that the instruction accesses in this way; its own length for execution."""
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
    import capstone
    from capstone import x86

    reads: int | None = None
    writes: int | None = None
    for operand in found.operands:
        if operand.type == x86.X86_OP_MEM and found.mnemonic != "lea":
            if operand.access & capstone.CS_AC_WRITE:
                writes = max(writes or 0, operand.size)
            if operand.access & capstone.CS_AC_READ:
                reads = max(reads or 0, operand.size)
    implicit = _implicit_store(found.mnemonic, mode)
    if implicit is not None:
        writes = max(writes or 0, implicit)
    return Instruction(
        length=found.size,
        reads=reads,
        writes=writes,
        is_pure_store=_is_pure_store(found),
        text=f"{found.mnemonic} {found.op_str}".strip(),
    )


def _is_pure_store(found: capstone.CsInsn) -> bool:
    from capstone import x86

    if found.mnemonic not in PURE_STORES:
        return False
    # A store whose destination is a register here is another form; a string move has two memory operands.
    kinds = [operand.type for operand in found.operands]
    return bool(kinds) and kinds[0] == x86.X86_OP_MEM and kinds.count(x86.X86_OP_MEM) == 1


def _implicit_store(mnemonic: str, mode: CpuMode) -> int | None:
    """Stores that no operand shows: those to the stack."""
    if mnemonic.startswith(("push", "call", "enter")):
        return int(mode)
    return None


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

"""Which instructions access memory in a known way: the direction of the access and its bytes.

A disassembler's operand sizes and directions serve readers; here they decide whether guarded bytes were written. So an
instruction counts only if it is in this table, and what isn't there has no known size. That holds on purpose for XSAVE
and its kin, ENTER, PUSHA, far transfers, gathers and scatters, and string input and output, which KVM's emulator
performs in bulk. A size is an upper bound where the comment says so, else exact (Intel SDM vol. 2, each instruction).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["INSTRUCTIONS", "PURE_STORES", "STRINGS", "STRING_OPCODES", "Extent", "Row", "Way"]


class Way(Enum):
    """Where an instruction's memory is and what is done to it."""

    MOVE = auto()
    """The first operand is written, any other is read."""
    CHANGE = auto()
    """The first operand is read and written, any other is read."""
    EXCHANGE = auto()
    """Memory is read and written, whichever operand it is."""
    LOAD = auto()
    """Memory is read, whichever operand it is."""
    BIT = auto()
    """As CHANGE; a bit's number in a register leads beyond the operand, to any address."""
    PUSH = auto()
    """The stack is written, an operand is read."""
    POP = auto()
    """The stack is read, an operand is written."""
    IMPLIED_STORE = auto()
    """Memory is written that the instruction implies."""
    IMPLIED_LOAD = auto()
    """Memory is read that the instruction implies."""


class Extent(Enum):
    """A size that isn't the same for all forms of an instruction."""

    OPERAND = auto()
    """As the disassembler says, which tests compare with a processor for every mnemonic here."""
    VECTOR = auto()
    """The whole of the vector register; at most that if a mask leaves elements out."""
    SLOT = auto()
    """At most what one push moves: 8 bytes in long mode, else 4."""
    WIDTH = auto()
    """8 bytes with REX.W, else 4; a disassembler may be misled by another prefix."""
    DESCRIPTOR = auto()
    """Limit and base: 10 bytes in long mode, else 6."""


@dataclass(frozen=True, slots=True)
class Row:
    """How one instruction accesses memory.

    Attributes:
        way: where and in which direction.
        size: bytes of one access, or what they depend on.
    """

    way: Way
    size: int | Extent


_CONDITIONS = ["a", "ae", "b", "be", "e", "g", "ge", "l", "le", "ne", "no", "np", "ns", "o", "p", "s"]
_SETCC = " ".join("set" + condition for condition in _CONDITIONS)
_CMOVCC = " ".join("cmov" + condition for condition in _CONDITIONS)

_TABLE: tuple[tuple[Way, int | Extent, str], ...] = (
    (Way.MOVE, Extent.OPERAND, "mov movabs movbe"),
    (Way.MOVE, Extent.WIDTH, "movnti"),
    (Way.MOVE, Extent.OPERAND, "movapd movaps movdqa movdqu movntdq movntpd movntps movupd movups"),
    (Way.MOVE, 1, _SETCC + " pextrb"),
    (Way.MOVE, 2, "fnstcw fnstsw pextrw smsw"),
    # At most: KVM's emulator stores eight bytes with REX.W (`em_store_sreg`), a processor two.
    (Way.MOVE, Extent.WIDTH, "sldt str"),
    (Way.MOVE, 4, "extractps movd movntss pextrd stmxcsr"),
    (Way.MOVE, 8, "movhpd movhps movlpd movlps movntq movntsd movq pextrq"),
    # At most: KVM's emulator in Linux 5.4 takes both for MOVUPS, whatever their prefix (`pfx_0f_10_0f_11`).
    (Way.MOVE, 16, "movsd movss"),
    (Way.MOVE, Extent.OPERAND, "fist fistp fisttp fst fstp"),
    (Way.MOVE, 10, "fbstp"),
    # At most, for those three: 14 and 94 bytes in 16-bit form, and FXSAVE leaves its last 48 bytes alone. FNSAVE is 108
    # bytes on a processor and 136 on QEMU's with REX.W.
    (Way.MOVE, 28, "fnstenv"),
    (Way.MOVE, 136, "fnsave"),
    (Way.MOVE, 512, "fxsave fxsave64"),
    (Way.MOVE, Extent.DESCRIPTOR, "sgdt sidt"),
    (Way.MOVE, Extent.VECTOR, "vmovapd vmovaps vmovdqa vmovdqu vmovntdq vmovntpd vmovntps vmovupd vmovups"),
    (Way.MOVE, Extent.VECTOR, "vmovdqa32 vmovdqa64 vmovdqu8 vmovdqu16 vmovdqu32 vmovdqu64"),
    (Way.MOVE, 4, "vextractps vmovd vmovss vpextrd vstmxcsr"),
    (Way.MOVE, 8, "vmovhpd vmovhps vmovlpd vmovlps vmovq vmovsd vpextrq"),
    (Way.CHANGE, Extent.OPERAND, "adc add and dec inc neg not or sbb sub xor"),
    (Way.CHANGE, Extent.OPERAND, "rcl rcr rol ror sal sar shl shld shr shrd"),
    (Way.BIT, Extent.OPERAND, "btc btr bts"),
    (Way.EXCHANGE, Extent.OPERAND, "cmpxchg xadd xchg"),
    (Way.EXCHANGE, 8, "cmpxchg8b"),
    (Way.EXCHANGE, 16, "cmpxchg16b"),
    (Way.LOAD, Extent.OPERAND, "cmp div idiv imul movsx movsxd movzx mul test " + _CMOVCC),
    (Way.LOAD, Extent.OPERAND, "fadd fcom fcomp fdiv fdivr fild fld fmul fsub fsubr"),
    (Way.LOAD, 2, "fldcw"),
    (Way.LOAD, 4, "ldmxcsr vldmxcsr"),
    (Way.LOAD, 10, "fbld"),
    (Way.LOAD, 28, "fldenv"),
    (Way.LOAD, 136, "frstor"),
    (Way.LOAD, 512, "fxrstor fxrstor64"),
    (Way.LOAD, Extent.SLOT, "jmp"),
    (Way.PUSH, Extent.SLOT, "call push pushf pushfd pushfq"),
    (Way.POP, Extent.SLOT, "leave pop popf popfd popfq ret"),
    (Way.IMPLIED_LOAD, 1, "xlatb"),
    # At most: a mask chooses among the bytes.
    (Way.IMPLIED_STORE, 8, "maskmovq"),
    (Way.IMPLIED_STORE, 16, "maskmovdqu vmaskmovdqu"),
)

_STRING_TABLE = (
    (Way.EXCHANGE, 1, "movsb"),
    (Way.EXCHANGE, 2, "movsw"),
    (Way.EXCHANGE, 4, "movsd"),
    (Way.EXCHANGE, 8, "movsq"),
    (Way.IMPLIED_STORE, 1, "stosb"),
    (Way.IMPLIED_STORE, 2, "stosw"),
    (Way.IMPLIED_STORE, 4, "stosd"),
    (Way.IMPLIED_STORE, 8, "stosq"),
    (Way.IMPLIED_LOAD, 1, "cmpsb lodsb scasb"),
    (Way.IMPLIED_LOAD, 2, "cmpsw lodsw scasw"),
    (Way.IMPLIED_LOAD, 4, "cmpsd lodsd scasd"),
    (Way.IMPLIED_LOAD, 8, "cmpsq lodsq scasq"),
)

STRING_OPCODES = frozenset({*range(0xA4, 0xA8), *range(0xAA, 0xB0)})
"""First opcode bytes of MOVS, CMPS, STOS, LODS and SCAS (Intel SDM vol. 2, table A-2)."""

INSTRUCTIONS: Mapping[str, Row] = {name: Row(way, size) for way, size, names in _TABLE for name in names.split()}
"""The row of each mnemonic. `movsd` is the SSE move here, and `cmpsd` has no row: as strings they are in STRINGS."""

STRINGS: Mapping[str, Row] = {name: Row(way, size) for way, size, names in _STRING_TABLE for name in names.split()}
"""The row of each string instruction: one access for each repetition.

KVM reports the repetitions one by one until a reply sets `rep_complete` (KVMI protocol), which ours never do.
"""

PURE_STORES = frozenset(
    f"""
    mov movabs movbe movnti not {_SETCC}
    fnstcw fnstsw fxsave fxsave64 stmxcsr
    extractps movapd movaps movd movdqa movdqu movhpd movhps movlpd movlps movntdq movntpd movntps movq movsd movss
    movupd movups pextrb pextrd pextrq pextrw
    sgdt sidt sldt smsw str
    """.split()
)
"""Instructions whose only result is what they store (Intel SDM vol. 2).

`not` sets no flags. String forms move RSI and RDI, which their two memory operands tell apart. x87 stores set condition
codes or pop, `fnsave` resets and `fnstenv` masks what it has stored, and a store from an MMX register marks the whole
x87 stack as in use (SDM vol. 1 9.6.2). MOVNTSS and MOVNTSD exist on AMD's processors alone and can't be checked here.
"""

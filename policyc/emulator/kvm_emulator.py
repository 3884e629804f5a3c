"""Which instructions KVM's own instruction emulator performs, so that CONTINUE works or fails as it does there.

Read in the opcode tables of arch/x86/kvm/emulate.c (Linux 5.4 and 5.15). Where an instruction isn't there, kernels of
kvmi-v7 single-step it by themselves and nobody notices; kvmi-v12 enters the guest again, and the event comes again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from policyc.emulator.decode import Instruction

__all__ = ["emulated"]

_X87: Final = frozenset(
    {"fst", "fstp", "fist", "fistp", "fisttp", "fbstp", "fnsave", "fnstenv", "fld", "fild", "fbld", "frstor", "fldenv"}
)
_EXTENDED_STATE: Final = frozenset(
    {"xsave", "xsavec", "xsaveopt", "xsaves", "xrstor", "xrstors", "xsave64", "xsavec64", "xsaveopt64", "xrstor64"}
)
_SSE: Final = frozenset(
    {
        *("movlps", "movlpd", "movhps", "movhpd", "movss", "movsd", "movd", "movq", "lddqu", "maskmovq", "maskmovdqu"),
        *("pextrb", "pextrw", "pextrd", "pextrq", "extractps", "stmxcsr", "ldmxcsr", "movbe"),
    }
)
_NOT_EMULATED: Final = frozenset({"cmpxchg16b", *_X87, *_EXTENDED_STATE, *_SSE})
_VEX_OR_EVEX: Final = "v"
_NOT_VECTORS: Final = frozenset({"verr", "verw", "vmcall", "vmmcall"})


def emulated(insn: Instruction) -> bool:
    """Whether KVM's emulator performs the memory access of this instruction."""
    if insn.name.startswith(_VEX_OR_EVEX) and insn.name not in _NOT_VECTORS:
        return False
    string = insn.name == "movsd" and len(insn.operands) == 2
    return string or insn.name not in _NOT_EMULATED

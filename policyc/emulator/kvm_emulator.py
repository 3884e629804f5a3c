"""Which instructions KVM's own instruction emulator performs, so that CONTINUE works or fails as it does there.

Read in the opcode tables of arch/x86/kvm/emulate.c (Linux 5.4 and 5.15). Where an instruction isn't there, kernels of
kvmi-v7 single-step it by themselves and nobody notices; kvmi-v12 enters the guest again, and the event comes again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from policyc.emulator.decode import Instruction

__all__ = ["emulated"]

_X87: Final = "f"
_X87_EMULATED: Final = frozenset({"fnstcw", "fnstsw"})
"""FXSAVE and FXRSTOR begin with that letter too, and are given up in 64-bit code (`check_fxsr`)."""

_VEX_OR_EVEX: Final = "v"

_VECTOR: Final = "xmm"
_VECTOR_EMULATED: Final = frozenset(
    {"movapd", "movaps", "movdqa", "movdqu", "movntdq", "movntpd", "movntps", "movupd", "movups"}
)
_VECTOR_TO_GENERAL: Final = ("cvt", "maskmov")
"""Where no vector register is named although memory is read or written as part of one."""

_MMX: Final = "mm"
_MMX_EMULATED: Final = frozenset({"movq"})

_STATE: Final = frozenset(
    {
        *("xsave", "xsavec", "xsaveopt", "xsaves", "xrstor", "xrstors", "ldmxcsr", "stmxcsr"),
        *("xsave64", "xsavec64", "xsaveopt64", "xsaves64", "xrstor64", "xrstors64"),
        *("bndldx", "bndstx", "rstorssp", "clrssbsy", "ptwrite"),
    }
)
_GENERAL: Final = frozenset(
    {
        *("cmpxchg16b", "adcx", "adox", "crc32", "popcnt", "lar", "lsl", "movdir64b", "movdiri"),
        *("bndcl", "bndcn", "bndcu", "bndmk", "bndmov", "wrssd", "wrssq", "wrussd", "wrussq"),
        *("cldemote", "clflushopt", "clwb", "invept", "invpcid", "invvpid"),
    }
)


def emulated(insn: Instruction) -> bool:
    """Whether KVM's emulator performs the memory access of this instruction."""
    name = insn.name
    if name.startswith(_X87):
        return name in _X87_EMULATED
    if name.startswith(_VEX_OR_EVEX) or name in _STATE or name in _GENERAL:
        return False
    if any(register.startswith(_VECTOR) for register in insn.registers):
        return name in _VECTOR_EMULATED
    if any(register.startswith(_MMX) for register in insn.registers):
        return name in _MMX_EMULATED
    return not name.startswith(_VECTOR_TO_GENERAL)

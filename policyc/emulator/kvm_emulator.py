"""Which instructions KVM's own instruction emulator performs, so that CONTINUE works or fails as it does there.

Read in the opcode tables of arch/x86/kvm/emulate.c (Linux 5.4 and 5.15). Where an instruction isn't there, kernels of
kvmi-v7 single-step it by themselves and nobody notices; kvmi-v12 enters the guest again, and the event comes again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from policyc.emulator.decode import Instruction

__all__ = ["emulated"]

_CONDITIONS: Final = ("a", "ae", "b", "be", "e", "g", "ge", "l", "le", "ne", "no", "np", "ns", "o", "p", "s")
_STRINGS: Final = frozenset(name + size for name in ("movs", "cmps", "stos", "lods", "scas") for size in "bwdq")
_EMULATED: Final = frozenset(
    f"""
    adc add and cmp dec div idiv imul inc mul neg not or sbb sub test xor
    rcl rcr rol ror sal sar shl shld shr shrd bsf bsr bt btc btr bts
    mov movabs movbe movnti movsx movsxd movzx xchg xadd cmpxchg cmpxchg8b xlatb
    {" ".join("set" + condition for condition in _CONDITIONS)}
    {" ".join("cmov" + condition for condition in _CONDITIONS)}
    call enter iret iretd iretq jmp lcall leave ljmp pop popf popfq push pushf pushfq ret retf retfq
    insb insd insw outsb outsd outsw
    movapd movaps movdqa movdqu movntdq movntpd movntps movupd movups
    fnstcw fnstsw fxrstor fxrstor64 fxsave fxsave64
    clflush clflushopt invlpg lfs lgdt lgs lidt lldt lmsw lss ltr sgdt sidt sldt smsw str
    """.split()
)
"""MOVSS and MOVSD aren't among them, which the tables of Linux 5.4 take for MOVUPS."""

_MMX_MOVES: Final = (b"\x0f\x6f", b"\x0f\x7f")


def emulated(insn: Instruction) -> bool:
    """Whether KVM's emulator performs the memory access of this instruction."""
    if insn.name in _STRINGS:
        # SSE has a MOVSD and a CMPSD too.
        return insn.opcode[:1] != b"\x0f"
    if insn.name == "movq":
        return insn.opcode in _MMX_MOVES and insn.registers[0].startswith("mm")
    if insn.name == "movbe":
        return not insn.narrow
    return insn.name in _EMULATED

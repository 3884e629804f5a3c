"""Which instructions KVM's own emulator performs, and which it knows nothing of.

Read in the opcode tables of arch/x86/kvm/emulate.c (Linux 5.4 and 5.15). CONTINUE performs an access by emulating its
instruction. Where that fails, kernels of kvmi-v7 step the instruction by themselves, and kvmi-v12 sends the same event
again, for ever. What isn't listed here isn't known to be performed: VEX and EVEX, XSAVE and its kin, CMPXCHG16B, x87
but for two stores, most of SSE.
"""

from __future__ import annotations

from collections.abc import Collection

from policyc.kvmi import CpuMode

__all__ = ["is_emulated"]

_CONDITIONS = ("a", "ae", "b", "be", "e", "g", "ge", "l", "le", "ne", "no", "np", "ns", "o", "p", "s")

_TABLE = f"""
    adc add and cmp dec div idiv imul inc mul neg not or sbb sub test xor
    rcl rcr rol ror sal sar shl shld shr shrd
    bsf bsr bt btc btr bts clflush invlpg lzcnt tzcnt
    cmpxchg cmpxchg8b xadd xchg
    mov movabs movbe movnti movsx movsxd movzx xlatb
    {" ".join("cmov" + condition for condition in _CONDITIONS)}
    {" ".join("set" + condition for condition in _CONDITIONS)}
    call enter jmp lcall leave ljmp pop popal popaw popf popfd popfq push pushal pushaw pushf pushfd pushfq ret
    iret iretd iretq retf retfq
    lds les lfs lgs lss
    cmpsb cmpsw cmpsq insb insd insw lodsb lodsd lodsq lodsw movsb movsq movsw outsb outsd outsw
    scasb scasd scasq scasw stosb stosd stosq stosw
    fnstcw fnstsw
    movapd movaps movdqa movdqu movntdq movntpd movntps movupd movups
    lgdt lidt lldt lmsw ltr sgdt sidt sldt smsw str
"""
_EMULATED = frozenset(_TABLE.split())

_STRINGS_BY_OPCODE = {"movsd": 0xA5, "cmpsd": 0xA7}
"""Names that a string instruction shares with one of SSE, which the emulator doesn't know."""

_QUADWORDS = ([0x0F, 0x6F], [0x0F, 0x7F])
"""The MOVQ of MMX; the one of SSE has other opcodes."""

_STATE = frozenset({"fxsave", "fxrstor"})
"""Emulated in 32-bit code alone (`check_fxsr`)."""


def is_emulated(name: str, opcode: Collection[int], mode: CpuMode, *, narrow: bool = False) -> bool:
    """Whether CONTINUE performs the memory access of an instruction.

    Args:
        name: the mnemonic without prefixes.
        opcode: its opcode bytes.
        narrow: it has an operand-size prefix, which selects another column of the table for MOVBE.
    """
    code = list(opcode)
    if name in _STRINGS_BY_OPCODE:
        return code[0] == _STRINGS_BY_OPCODE[name]
    if name == "movq":
        return code[:2] in _QUADWORDS
    if name in _STATE:
        return mode is not CpuMode.LONG
    if name == "movbe" and narrow:
        return False
    return name in _EMULATED

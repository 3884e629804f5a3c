"""What KVM's emulator knows, by an instruction or more of each row of its tables."""

from __future__ import annotations

import pytest

from policyc.emulator.decode import decode
from policyc.emulator.kvm_emulator import emulated

KNOWN = {
    "mov [rbx], rax": "488903",
    "rep movsd": "f348a5",
    "movsd, the string": "a5",
    "lock inc [rbx]": "f048ff03",
    "xchg [rbx], rax": "488703",
    "movdqu [rbx], xmm0": "f30f7f03",
    "movdqa [rbx], xmm0": "660f7f03",
    "movq [rbx], mm0": "0f7f03",
    "movups [rbx], xmm0": "0f1103",
    "movapd [rbx], xmm0": "660f2903",
    "movntps [rbx], xmm0": "0f2b03",
    "movntdq [rbx], xmm0": "660fe703",
    "movnti [rbx], eax": "0fc303",
    "clflush [rbx]": "0fae3b",
    "pop [rbx]": "8f03",
    "push rax": "50",
    "setz [rbx]": "0f944303",
    "enter 16, 0": "c8100000",
    "cmpxchg8b [rbx]": "0fc70b",
    "lock bts [rbx], 5": "f00fba2b05",
    "btc [rbx], rcx": "480fbb0b",
    "movbe [rbx], eax": "0f38f103",
    "fnstcw [rbx]": "d93b",
    "fnstsw [rbx]": "dd3b",
    "sgdt [rbx]": "0f0103",
    "lmsw [rbx]": "0f0133",
    "str [rbx]": "0f000b",
    "a REX that a prefix takes away": "48660fc70b",
}
UNKNOWN = {
    "cmpxchg16b [rbx]": "480fc70b",
    "fxsave [rbx]": "0fae03",
    "fxrstor64 [rbx]": "480fae0b",
    "xsave [rbx]": "0fae23",
    "stmxcsr [rbx]": "0fae1b",
    "fst qword [rbx]": "dd5308",
    "fistp qword [rbx]": "df3b",
    "fldcw [rbx]": "d92b",
    "fadd dword [rbx]": "d803",
    "vmovdqu [rbx], ymm0": "c5fe7f03",
    "vmovdqa64 [rbx], zmm0": "62f1fd487f03",
    "movlps [rbx], xmm0": "0f1303",
    "movss [rbx], xmm0": "f30f1103",
    "movsd [rbx], xmm0": "f20f1103",
    "movq [rbx], xmm0": "660fd603",
    "movd [rbx], xmm0": "660f7e03",
    "movntq [rbx], mm0": "0fe703",
    "maskmovdqu": "660ff7c1",
    "addps xmm0, [rbx]": "0f5803",
    "pxor xmm0, [rbx]": "660fef03",
    "pextrd [rbx], xmm0, 0": "660f3a160300",
    "popcnt eax, [rbx]": "f30fb803",
    "crc32 eax, byte [rbx]": "f20f38f003",
    "movbe [rbx], ax": "660f38f103",
    "enter 16, 1": "c8100001",
    "iretq": "48cf",
    "int 0x80": "cd80",
    "lar eax, [rbx]": "0f0203",
}


@pytest.mark.parametrize("code", KNOWN.values(), ids=KNOWN)
def test_it_performs(code: str) -> None:
    insn = decode(bytes.fromhex(code))
    assert insn is not None
    assert emulated(insn)


@pytest.mark.parametrize("code", UNKNOWN.values(), ids=UNKNOWN)
def test_it_does_not_perform(code: str) -> None:
    insn = decode(bytes.fromhex(code))
    assert insn is not None
    assert not emulated(insn)


def test_in_32_bit_code_other_bytes_are_prefixes() -> None:
    """LES [ebx] where 64-bit code has VEX; DEC EAX where it has REX.W."""
    les, dec = (decode(bytes.fromhex(code), 32) for code in ("c403", "48"))
    assert les is not None
    assert dec is not None
    assert (emulated(les), emulated(dec)) == (True, True)

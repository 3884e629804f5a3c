"""What the tool believes of KVM's emulator, held against what the emulated kernel does, which was written apart."""

from __future__ import annotations

import pytest

from policyc.emulator import decode as guest_decode
from policyc.emulator.kvm_emulator import emulated
from policyc.kvmi import CpuMode
from policyc.runtime.decode import decode
from tests.runtime.test_decode import encodings

NO_ACCESS = frozenset(
    "lea nop prefetch prefetchnta prefetcht0 prefetcht1 prefetcht2 prefetchw prefetchwt1".split()  # noqa: SIM905
)
"""Instructions that name memory and never access it: no event is about them."""

_NOP = "0F 18 to 0F 1F are NOPs to KVM, which then goes on without any access"
_PREFIX = "KVM looks the prefix up before the opcode; whoever writes a useless one is taken for a loop first"

EXPLAINED = {
    "movq": "the emulated kernel may go by names, and take a form of SSE for that of MMX; or: " + _PREFIX,
    "movaps": _PREFIX,
    "movbe": _PREFIX,
    **dict.fromkeys(("bndcl", "bndcn", "bndcu", "bndldx", "bndmk", "bndmov", "bndstx", "cldemote"), _NOP),
    "clflushopt": "it's CLFLUSH to KVM, which accesses no data",
    "rstorssp": "it's an encoding of LMSW's group to KVM",
}
"""Where the tables may differ, and why it doesn't matter: none of these is left standing for ever."""


def test_both_tables_agree_but_where_it_does_not_matter() -> None:
    differing: set[str] = set()
    compared = 0
    for code in dict.fromkeys(encodings(CpuMode.LONG)):
        ours, theirs = decode(CpuMode.LONG, code), guest_decode.decode(code)
        if ours is None or theirs is None or not theirs.operands or theirs.name in NO_ACCESS:
            continue
        compared += 1
        if ours.is_emulated != emulated(theirs):
            differing.add(theirs.name)
    assert compared > 5000
    assert differing <= EXPLAINED.keys()


@pytest.mark.parametrize(
    ("mode", "code", "known"),
    [
        (CpuMode.LONG, "0fae03", False),  # fxsave [rbx]
        (CpuMode.PROTECTED, "0fae03", True),  # the same in 32-bit code
        (CpuMode.LONG, "a5", True),  # movsd, the string
        (CpuMode.LONG, "f20f1103", False),  # movsd of SSE
        (CpuMode.LONG, "0f7f03", True),  # movq [rbx], mm0
        (CpuMode.LONG, "660fd603", False),  # movq [rbx], xmm0
        (CpuMode.LONG, "480fc70b", False),  # cmpxchg16b
        (CpuMode.LONG, "0fc70b", True),  # cmpxchg8b
        (CpuMode.LONG, "c5fe7f03", False),  # vmovdqu
        (CpuMode.LONG, "62f27d49a20483", False),  # a scatter
        (CpuMode.LONG, "0fc723", False),  # xsavec
        (CpuMode.LONG, "0f38f103", True),  # movbe
    ],
)
def test_the_emulator_knows(mode: CpuMode, code: str, known: bool) -> None:
    found = decode(mode, bytes.fromhex(code).ljust(15, b"\x90"))
    assert found is not None
    assert found.is_emulated is known

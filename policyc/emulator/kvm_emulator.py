"""Which instructions KVM's own instruction emulator performs, so that CONTINUE works or fails as it does there.

Read in the opcode tables of arch/x86/kvm/emulate.c and what they lead to, in Linux 5.10, which stands between the
kernels of kvmi-v7 and kvmi-v12. Where an instruction isn't there, kernels of kvmi-v7 single-step it by themselves and
nobody notices; kvmi-v12 enters the guest again, and the event comes again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.emulator.decode import Instruction

__all__ = ["emulated"]

_LEGACY: Final = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3})
_REX: Final = range(0x40, 0x50)
_REX_W: Final = 8
_NO_PREFIX: Final = 0

_ONE_BYTE_MISSING: Final = frozenset({0x27, 0x2F, 0x37, 0x62, 0x64, 0x65, 0x66, 0x67, 0x9B, *range(0xD8, 0xE0)})
"""DAA, DAS, AAA; BOUND, which is EVEX as well; FWAIT and the x87 escapes, but for the next two."""

_X87: Final = frozenset({(0xD9, 7), (0xDD, 7)})
"""FNSTCW and FNSTSW to memory: opcode and the ModRM byte's middle field."""

_NOT_IN_PROTECTED_MODE: Final = frozenset({0xCC, 0xCD, 0xCE, 0xCF})
"""INT3, INT n, INTO and IRET are there for real mode alone (`emulate_int`, `em_iret`)."""

_ENTER: Final = 0xC8
_VEX: Final = frozenset({0xC4, 0xC5})

_TWO_BYTE: Final = frozenset(
    {
        *(0x01, 0x05, 0x06, 0x08, 0x09, 0x0D, *range(0x18, 0x20), *range(0x20, 0x24), *range(0x30, 0x36)),
        *(*range(0x40, 0x50), *range(0x80, 0xA0), 0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0xA5, 0xA8, 0xA9, 0xAA, 0xAB),
        *(0xAC, 0xAD, 0xAF, *range(0xB0, 0xB8), *range(0xBB, 0xC2), 0xC3, *range(0xC8, 0xD0)),
    }
)
_GROUPS: Final[Mapping[int, frozenset[int]]] = {
    0x00: frozenset({0, 1, 2, 3}),  # SLDT STR LLDT LTR
    0xAE: frozenset({0, 1, 7}),  # FXSAVE FXRSTOR CLFLUSH
    0xBA: frozenset({4, 5, 6, 7}),  # BT BTS BTR BTC
    0xC7: frozenset({1}),  # CMPXCHG8B
}
"""Of these, the ModRM bytes with one of these middle fields."""

_SAVES: Final = frozenset({(0xAE, 0), (0xAE, 1)})
"""FXSAVE and FXRSTOR, which are given up in 64-bit code (`check_fxsr`)."""

_SSE: Final[Mapping[int, frozenset[int]]] = {
    **dict.fromkeys((0x10, 0x11, 0x28, 0x29, 0x2B), frozenset({_NO_PREFIX, 0x66})),
    **dict.fromkeys((0x6F, 0x7F), frozenset({_NO_PREFIX, 0x66, 0xF3})),
    0xE7: frozenset({0x66}),
}
"""Moves, by the prefixes that they are there with: MOVUPS and MOVUPD, not MOVSS; MOVNTDQ, not MOVNTQ."""

_MOVBE: Final = frozenset({0xF0, 0xF1})


class _Encoding(NamedTuple):
    """What KVM's decoder looks at: opcode map and byte, the prefix that tells instructions apart, REX, what follows."""

    map: int
    opcode: int
    prefix: int
    wide: bool
    rest: bytes

    @property
    def group(self) -> int:
        return self.rest[0] >> 3 & 7 if self.rest else 0


def emulated(insn: Instruction) -> bool:
    """Whether KVM's emulator performs the memory access of this instruction."""
    bits = insn.bits
    found = _encoding(insn.code, bits)
    if found.map == 1:
        return _one_byte(found, bits)
    if found.map != 0x0F:
        return found.map == 0x0F38 and found.opcode in _MOVBE and found.prefix == _NO_PREFIX
    if found.opcode in _SSE:
        return found.prefix in _SSE[found.opcode]
    if (found.opcode, found.group) in _SAVES and bits == 64:
        return False
    if found.opcode in _GROUPS:
        # CMPXCHG16B is CMPXCHG8B with REX.W, which `em_cmpxchg8b` gives back.
        return found.group in _GROUPS[found.opcode] and not (found.opcode == 0xC7 and found.wide)
    return found.opcode in _TWO_BYTE


def _one_byte(found: _Encoding, bits: int) -> bool:
    if found.opcode in _VEX and (bits == 64 or found.rest[:1] >= b"\xc0"):
        return False
    if found.opcode == _ENTER:
        return found.rest[2:3] == b"\0"  # no nesting
    if found.opcode in _NOT_IN_PROTECTED_MODE:
        return False
    return found.opcode not in _ONE_BYTE_MISSING or (found.opcode, found.group) in _X87


def _encoding(code: bytes, bits: int) -> _Encoding:
    at, operand_size, repeat, rex = 0, _NO_PREFIX, _NO_PREFIX, 0
    while code[at] in _LEGACY or (bits == 64 and code[at] in _REX):
        if code[at] == 0x66:
            operand_size = 0x66
        elif code[at] in (0xF2, 0xF3):
            repeat = code[at]
        rex = code[at] if code[at] in _REX else 0  # a prefix behind it takes its effect away
        at += 1
    table = 1
    if code[at] == 0x0F:
        table, at = 0x0F, at + 1
        if code[at] in (0x38, 0x3A):
            table, at = 0x0F00 | code[at], at + 1
    return _Encoding(table, code[at], operand_size or repeat, bool(rex & _REX_W), code[at + 1 :])

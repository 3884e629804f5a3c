"""The x87 and SSE state as XSAVE lays it out (Intel SDM, volume 1, 13.4), in the 4096 bytes of `struct kvm_xsave`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from unicorn import x86_const as x86

if TYPE_CHECKING:
    from policyc.emulator.engine import Engine

__all__ = ["XSAVE_BYTES", "XsaveError", "read_xsave", "write_xsave"]

XSAVE_BYTES: Final = 4096
_CONTROL: Final = x86.UC_X86_REG_FPCW
_STATUS: Final = x86.UC_X86_REG_FPSW
_TAGS: Final = x86.UC_X86_REG_FPTAG
_MXCSR: Final = x86.UC_X86_REG_MXCSR
_ST_REGISTERS: Final = tuple(x86.UC_X86_REG_FP0 + number for number in range(8))
_XMM_REGISTERS: Final = tuple(x86.UC_X86_REG_XMM0 + number for number in range(16))

_HEAD: Final = struct.Struct("<HHBxHQQII")  # FCW, FSW, abridged FTW, FOP, FIP, FDP, MXCSR, MXCSR_MASK
_ST: Final = 32
_XMM: Final = 160
_XMM_END: Final = _XMM + 16 * 16
_XSTATE_BV: Final = 512
_X87: Final = 1
_SSE: Final = 2
_INITIAL_CONTROL: Final = 0x37F
_INITIAL_MXCSR: Final = 0x1F80
_INITIAL: Final = _HEAD.pack(_INITIAL_CONTROL, 0, 0, 0, 0, 0, _INITIAL_MXCSR, 0).ljust(XSAVE_BYTES, b"\0")
_X87_PARTS: Final = ((0, 24), (_ST, _XMM - _ST))
_MXCSR_MASK: Final = 0xFFFF
_EMPTY: Final = 3


class XsaveError(ValueError):
    """The processor would refuse this area."""


def read_xsave(engine: Engine) -> bytes:
    """The state of x87 and SSE; every other component is in its initial state."""
    control, status, tags, mxcsr = (_word(engine, register) for register in (_CONTROL, _STATUS, _TAGS, _MXCSR))
    abridged = sum(1 << number for number in range(8) if tags >> 2 * number & 3 != _EMPTY)
    area = bytearray(XSAVE_BYTES)
    _HEAD.pack_into(area, 0, control, status, abridged, 0, 0, 0, mxcsr, 0)
    for at, register in zip(range(_ST, _XMM, 16), _ST_REGISTERS, strict=True):
        value = engine.read_native(register)
        assert isinstance(value, tuple)
        struct.pack_into("<QH", area, at, *value)
    for at, register in zip(range(_XMM, _XMM_END, 16), _XMM_REGISTERS, strict=True):
        area[at : at + 16] = _word(engine, register).to_bytes(16, "little")
    # A component in its initial state isn't in use, and its bit is 0, as XSAVEOPT and the kernel's copy have it.
    x87 = any(area[at : at + size] != _INITIAL[at : at + size] for at, size in _X87_PARTS)
    sse = mxcsr != _INITIAL_MXCSR or any(area[_XMM:_XMM_END])
    struct.pack_into("<Q", area, _XSTATE_BV, x87 * _X87 | sse * _SSE)
    return bytes(area)


def write_xsave(engine: Engine, area: bytes) -> None:
    """Load x87 and SSE from an area; missing bytes count as zero.

    Raises:
        XsaveError: it has other components, or reserved bits of MXCSR.
    """
    area = area.ljust(XSAVE_BYTES, b"\0")
    (components,) = struct.unpack_from("<Q", area, _XSTATE_BV)
    mxcsr: int = _HEAD.unpack_from(area)[6]
    if components & ~(_X87 | _SSE) or mxcsr & ~_MXCSR_MASK:
        raise XsaveError
    # XRSTOR: a component whose bit is 0 gets its initial state, whatever stands in the area; MXCSR is always loaded.
    loaded = bytearray(area)
    for bit, parts in ((_X87, _X87_PARTS), (_SSE, ((_XMM, _XMM_END - _XMM),))):
        for at, size in parts if not components & bit else ():
            loaded[at : at + size] = _INITIAL[at : at + size]
    area = bytes(loaded)
    control, status, abridged, *_ = _HEAD.unpack_from(area)
    tags = sum((0 if abridged >> number & 1 else _EMPTY) << 2 * number for number in range(8))
    for register, word in ((_CONTROL, control), (_STATUS, status), (_TAGS, tags), (_MXCSR, mxcsr)):
        engine.write_native(register, word)
    for at, register in zip(range(_ST, _XMM, 16), _ST_REGISTERS, strict=True):
        mantissa, exponent = struct.unpack_from("<QH", area, at)
        engine.write_native(register, (mantissa, exponent))
    for at, register in zip(range(_XMM, _XMM_END, 16), _XMM_REGISTERS, strict=True):
        engine.write_native(register, int.from_bytes(area[at : at + 16], "little"))


def _word(engine: Engine, register: int) -> int:
    value = engine.read_native(register)
    assert isinstance(value, int)
    return value

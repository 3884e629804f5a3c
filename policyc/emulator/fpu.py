"""The x87 and SSE state as XSAVE lays it out (Intel SDM, volume 1, 13.4), in the 4096 bytes of `struct kvm_xsave`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from policyc.emulator.engine import Engine

__all__ = ["XSAVE_BYTES", "XsaveError", "read_xsave", "write_xsave"]

XSAVE_BYTES: Final = 4096
_HEAD: Final = struct.Struct("<HHBxHQQII")  # FCW, FSW, abridged FTW, FOP, FIP, FDP, MXCSR, MXCSR_MASK
_ST: Final = 32
_XMM: Final = 160
_XSTATE_BV: Final = 512
_X87_AND_SSE: Final = 3
_MXCSR_MASK: Final = 0xFFFF
_EMPTY: Final = 3


class XsaveError(ValueError):
    """The processor would refuse this area."""


def read_xsave(engine: Engine) -> bytes:
    """The state of x87 and SSE; every other component is in its initial state."""
    control, status, tags, mxcsr = engine.fpu_words()
    abridged = sum(1 << number for number in range(8) if tags >> 2 * number & 3 != _EMPTY)
    area = bytearray(XSAVE_BYTES)
    _HEAD.pack_into(area, 0, control, status, abridged, 0, 0, 0, mxcsr, _MXCSR_MASK)
    for number, (mantissa, exponent) in enumerate(engine.x87_registers()):
        struct.pack_into("<QH", area, _ST + 16 * number, mantissa, exponent)
    for number, value in enumerate(engine.xmm_registers()):
        area[_XMM + 16 * number : _XMM + 16 * (number + 1)] = value.to_bytes(16, "little")
    struct.pack_into("<Q", area, _XSTATE_BV, _X87_AND_SSE)
    return bytes(area)


def write_xsave(engine: Engine, area: bytes) -> None:
    """Load x87 and SSE from an area; missing bytes count as zero.

    Raises:
        XsaveError: it has other components, or reserved bits of MXCSR.
    """
    area = area.ljust(XSAVE_BYTES, b"\0")
    (components,) = struct.unpack_from("<Q", area, _XSTATE_BV)
    control, status, abridged, _, _, _, mxcsr, _ = _HEAD.unpack_from(area)
    if components & ~_X87_AND_SSE or mxcsr & ~_MXCSR_MASK:
        raise XsaveError
    tags = sum((0 if abridged >> number & 1 else _EMPTY) << 2 * number for number in range(8))
    engine.set_fpu_words(control, status, tags, mxcsr)
    engine.set_x87_registers([struct.unpack_from("<QH", area, _ST + 16 * number) for number in range(8)])
    engine.set_xmm_registers(
        [int.from_bytes(area[_XMM + 16 * number : _XMM + 16 * (number + 1)], "little") for number in range(16)]
    )

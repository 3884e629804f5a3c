"""The saved CPU context of an engine as fields: what Unicorn keeps and doesn't offer.

Three things can't be had through Unicorn's interface. The exception in flight is never forgotten, since Unicorn stops
instead of delivering it: the second fault of an engine would arrive as a double fault. Writing CS doesn't change the
privilege level. And how many instructions a run took isn't told, so a halt can't be told from the end of a budget. All
three lie in plain memory: the context that `uc_context_save` copies is `CPUX86State` of QEMU 5.0 (target/i386/cpu.h),
and the counter is a member of `struct uc_struct` (include/uc_priv.h). Where, is measured by `quirks`.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unicorn import Uc
    from unicorn.unicorn import UcContext

__all__ = ["GPR_NAMES", "SEGMENT_ORDER", "SEGMENT_STRIDE", "Context", "Layout", "handle_of"]

GPR_NAMES: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip")
"""In the order in which the context has them."""

SEGMENT_STRIDE: Final = 24
SEGMENT_ORDER: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr", "gdt", "idt")
_SEGMENT: Final = struct.Struct("<IxxxxQII")  # SegmentCache: selector, base, limit, flags
_CPL_MASK: Final = 3
_ADD_SEGMENTS: Final = 1 << 6  # HF_ADDSEG, which 64-bit code ignores
_LONG_CODE: Final = 1 << 4 | 1 << 5 | 1 << 15  # HF_CS32, HF_SS32, HF_CS64
_INHIBIT_IRQ: Final = 1 << 3


@dataclass(frozen=True, slots=True)
class Layout:
    """Byte offsets in the saved context, and of the instruction counter in `struct uc_struct`."""

    gprs: int
    hflags: int
    segments: int
    cr: int
    error_code: int
    is_software: int
    old_exception: int
    msrs: Mapping[int, int]
    counter: int


class Context:
    """The CPU state of one engine as a block of memory: `load` it, read and patch fields, `store` it."""

    __slots__ = ("_bytes", "_context", "_counter", "_layout", "_uc")

    def __init__(self, uc: Uc, layout: Layout) -> None:
        self._uc = uc
        self._layout = layout
        self._context = uc.context_save()
        self._bytes = _bytes_of(self._context)
        self._counter = ctypes.c_uint64.from_address(handle_of(uc) + layout.counter)

    def load(self) -> None:
        """Copy the engine's state into the block."""
        self._uc.context_update(self._context)

    def store(self) -> None:
        """Copy the block into the engine's state."""
        self._uc.context_restore(self._context)

    @property
    def instructions(self) -> int:
        """How many instructions the last run began; one more than its budget if the budget ended it."""
        return self._counter.value

    def gprs_and_rip(self) -> tuple[int, ...]:
        """RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15, RIP."""
        return struct.unpack_from("<17Q", self._bytes, self._layout.gprs)

    @property
    def rip(self) -> int:
        """RIP alone."""
        value: int = struct.unpack_from("<Q", self._bytes, self._layout.gprs + 128)[0]
        return value

    def control_registers(self) -> tuple[int, ...]:
        """CR0, 0, CR2, CR3, CR4."""
        return struct.unpack_from("<5Q", self._bytes, self._layout.cr)

    def segment(self, name: str) -> tuple[int, int, int, int]:
        """Selector, base, limit, and attributes as bits 8 to 23 of a descriptor's second word have them."""
        at = self._layout.segments + SEGMENT_ORDER.index(name) * SEGMENT_STRIDE
        selector, base, limit, flags = _SEGMENT.unpack_from(self._bytes, at)
        return selector, base, limit, flags

    def msr(self, index: int) -> int:
        """One of the MSRs that Unicorn keeps as it was written."""
        value: int = struct.unpack_from("<Q", self._bytes, self._layout.msrs[index])[0]
        return value

    def exception(self) -> tuple[int, bool]:
        """Error code of the last exception, and whether an INT instruction raised it."""
        code, software = struct.unpack_from("<Ii", self._bytes, self._layout.error_code)
        return code, bool(software)

    def set_segment(self, name: str, selector: int, base: int, limit: int, flags: int) -> None:
        """Set a segment register with its hidden part."""
        at = self._layout.segments + SEGMENT_ORDER.index(name) * SEGMENT_STRIDE
        _SEGMENT.pack_into(self._bytes, at, selector, base, limit, flags)

    def set_privilege(self, cpl: int) -> None:
        """Set the privilege level that Unicorn checks by, in 64-bit code; a write to CS leaves both as they are."""
        (flags,) = struct.unpack_from("<I", self._bytes, self._layout.hflags)
        flags = flags & ~(_CPL_MASK | _ADD_SEGMENTS) | _LONG_CODE | cpl
        struct.pack_into("<I", self._bytes, self._layout.hflags, flags)

    @property
    def in_shadow(self) -> bool:
        """Whether the last instruction was an STI, after which no interrupt comes for one more."""
        (flags,) = struct.unpack_from("<I", self._bytes, self._layout.hflags)
        return bool(flags & _INHIBIT_IRQ)

    def reset_flags(self) -> None:
        """Forget the shadow of an STI."""
        (flags,) = struct.unpack_from("<I", self._bytes, self._layout.hflags)
        struct.pack_into("<I", self._bytes, self._layout.hflags, flags & ~_INHIBIT_IRQ)

    def forget_exception(self) -> None:
        """Let the next fault be the first: without this it would be a double fault."""
        struct.pack_into("<I", self._bytes, self._layout.old_exception, 0xFFFF_FFFF)


def handle_of(uc: Uc) -> int:
    """The address of an engine's `struct uc_struct`."""
    return int(uc._uch.value)


def _bytes_of(context: UcContext) -> memoryview:
    address = ctypes.cast(context.context, ctypes.c_void_p).value
    assert address is not None
    return memoryview((ctypes.c_ubyte * context.size).from_address(address)).cast("B")

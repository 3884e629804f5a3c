"""Every way to address an operand in memory, as bytes: ModRM, SIB, displacements, prefixes (Intel SDM vol. 2, 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["FORMS", "MASK", "Form", "form_named"]

Addressing = Callable[[int, int], tuple[int, bytes, dict[str, int]]]


@dataclass(frozen=True)
class Form:
    """A way to address memory.

    Attributes:
        prefix: segment or address-size prefix.
        encode: takes the register number and the operand's address, gives the X and B bits of REX, ModRM and what
            follows it, and the registers. RIP-relative displacements are patched afterwards.
        low: addresses have 32 bits.
    """

    name: str
    prefix: bytes
    encode: Addressing
    low: bool = False

    def __str__(self) -> str:
        return self.name


MASK = (1 << 64) - 1
FS_BASE = 0x1_2340
GARBAGE = 0xDEAD_BEEF_0000_0000


def _base(number: int, address: int) -> tuple[int, bytes, dict[str, int]]:
    return 0, bytes([number << 3 | 3]), {"rbx": address}


def _base_disp8(number: int, address: int) -> tuple[int, bytes, dict[str, int]]:
    return 0, bytes([0x40 | number << 3 | 5, 0xE0]), {"rbp": address + 0x20}


def _base_disp32(number: int, address: int) -> tuple[int, bytes, dict[str, int]]:
    return 1, bytes([0x80 | number << 3 | 4, 0x24]) + (0x1234).to_bytes(4, "little"), {"r12": address - 0x1234}


def _indexed(number: int, address: int) -> tuple[int, bytes, dict[str, int]]:
    return 3, bytes([0x40 | number << 3 | 4, 0xC8, 0x40]), {"r8": address - 0x40 + 0x33 * 8, "r9": -0x33 & MASK}


def _relative(number: int, address: int) -> tuple[int, bytes, dict[str, int]]:
    return 0, bytes([number << 3 | 5]) + bytes(4), {}


def _fs(number: int, address: int) -> tuple[int, bytes, dict[str, int]]:
    return 0, bytes([number << 3 | 6]), {"rsi": address - FS_BASE, "fs_base": FS_BASE}


def _fs_absolute(number: int, address: int) -> tuple[int, bytes, dict[str, int]]:
    return 0, bytes([number << 3 | 4, 0x25]) + (0x180).to_bytes(4, "little"), {"fs_base": address - 0x180}


def _gs(number: int, address: int) -> tuple[int, bytes, dict[str, int]]:
    """The base is the kernel's own, which its handlers count on."""
    return 0, bytes([number << 3 | 6]), {"rsi_from_gs": address}


def _narrow(number: int, address: int) -> tuple[int, bytes, dict[str, int]]:
    return 0, bytes([number << 3 | 4, 0x73]), {"rbx": GARBAGE | address - 0x60, "rsi": GARBAGE | 0x30}


FORMS = (
    Form("base", b"", _base),
    Form("base-disp8", b"", _base_disp8),
    Form("base-disp32", b"", _base_disp32),
    Form("base-index-disp8", b"", _indexed),
    Form("rip-relative", b"", _relative),
    Form("fs", b"\x64", _fs),
    Form("fs-absolute", b"\x64", _fs_absolute),
    Form("gs", b"\x65", _gs),
    Form("address-size-prefix", b"\x67", _narrow, low=True),
)


def form_named(name: str) -> Form:
    """A way to address memory by its name."""
    return next(form for form in FORMS if form.name == name)

"""Finding the instructions that must not run unseen, in a page of code, before any of it is translated.

Unicorn has no hook for most of them, so their addresses are searched for and hooked one by one. A match in the middle
of another instruction does no harm: nothing begins there, so its hook never fires. A byte that precedes a match and
may be its prefix is a candidate too, and so is what a page's end cuts off.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["SENSITIVE", "candidates"]

SENSITIVE: Final = frozenset(
    {
        *("syscall", "sysenter", "clts", "lmsw", "wrmsr", "cpuid", "xsetbv", "invlpg", "rdrand"),
        *("sgdt", "sidt", "lgdt", "lidt", "sldt", "str", "lldt", "ltr"),
    }
)
"""Mnemonics that stop the engine; so does MOV to a control register."""

_OPCODE: Final = re.compile(
    rb"\x0f(?:"
    rb"[\x05\x06\x22\x30\x34\xa2]"  # syscall, clts, mov to cr, wrmsr, sysenter, cpuid
    rb"|\x01[\x00-\x1f\x40-\x5f\x80-\x9f\xd1]"  # sgdt sidt lgdt lidt xsetbv
    rb"|\x01[\x30-\x3f\x70-\x7f\xb0-\xbf\xf0-\xf7]"  # lmsw invlpg
    rb"|\xc7[\xf0-\xf7]"  # rdrand
    rb"|\x00[\x00-\x1f\x40-\x5f\x80-\x9f\xc0-\xdf]"  # sldt str lldt ltr
    rb")",
    re.DOTALL,
)
_CUT_OFF: Final = re.compile(rb"\x0f[\x00\x01\xc7]?\Z", re.DOTALL)
_PREFIX: Final = frozenset({*range(0x40, 0x50), 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3})
_PREFIXES_MAX: Final = 4
_OPCODE_BYTES: Final = 3


def candidates(page: bytes, following: bytes | None) -> set[int]:
    """Offsets in `page` at which a sensitive instruction may begin.

    Args:
        following: the first bytes of the next page of the address space, or None if there is none to be read: then
            whatever could go on there counts.
    """
    found: set[int] = set()
    code = page + (following or b"")[: _PREFIXES_MAX + _OPCODE_BYTES]
    for match in _OPCODE.finditer(code):
        _with_prefixes(code, match.start(), found)
    if following is None:
        cut = _CUT_OFF.search(page)
        _with_prefixes(page, cut.start() if cut else len(page), found)
    return {offset for offset in found if offset < len(page)}


def _with_prefixes(code: bytes, offset: int, found: set[int]) -> None:
    found.add(offset)
    for before in range(offset - 1, max(offset - _PREFIXES_MAX, 0) - 1, -1):
        if code[before] not in _PREFIX:
            return
        found.add(before)

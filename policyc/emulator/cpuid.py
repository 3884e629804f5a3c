"""CPUID as the guest sees it: what the engine's processor model says, under a hypervisor's name.

The guest's own CPUID and the tool's GET_CPUID read the same table.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from unicorn import UC_HOOK_TLB_FILL, UC_PROT_ALL, Uc
from unicorn import x86_const as x86

from policyc.emulator.unicorn_setup import open_engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unicorn.unicorn import uc_tlb_entry

__all__ = ["Leaf", "cpuid_table"]

_SCRATCH: Final = 0x2000
_CODE: Final = 0x1000
_CPUID_HLT: Final = b"\x0f\xa2\xf4"
_SUBLEAVES: Final[Mapping[int, range]] = {4: range(4), 7: range(1), 0xB: range(2), 0xD: range(2)}
_BASIC_MAX: Final = 0xD
_EXTENDED: Final = 0x8000_0000
_EXTENDED_MAX: Final = 0x8000_0008
_HYPERVISOR: Final = 0x4000_0000
_HYPERVISOR_PRESENT: Final = 1 << 31
_SIGNATURE: Final = b"KVMKVMKVM\0\0\0"  # Documentation/virt/kvm/x86/cpuid.rst


@dataclass(frozen=True, slots=True)
class Leaf:
    """The four registers that CPUID returns."""

    eax: int
    ebx: int
    ecx: int
    edx: int


@lru_cache(maxsize=4)
def cpuid_table(cpu: str) -> Mapping[tuple[int, int], Leaf]:
    """All leaves of a processor, by function and index; index 0 where a function has no others."""
    ask = _Asker(cpu)
    functions = (*range(_BASIC_MAX + 1), *range(_EXTENDED, _EXTENDED_MAX + 1))
    table = {
        (function, index): ask(function, index)
        for function in functions
        for index in _SUBLEAVES.get(function, range(1))
    }
    features = table[1, 0]
    table[1, 0] = Leaf(features.eax, features.ebx, features.ecx | _HYPERVISOR_PRESENT, features.edx)
    table[_HYPERVISOR, 0] = Leaf(_HYPERVISOR + 1, *struct.unpack("<III", _SIGNATURE))
    table[_HYPERVISOR + 1, 0] = Leaf(0, 0, 0, 0)
    return table


class _Asker:
    """An engine that runs nothing but CPUID."""

    def __init__(self, cpu: str) -> None:
        self._memory = ctypes.create_string_buffer(_SCRATCH)
        ctypes.memmove(ctypes.addressof(self._memory) + _CODE, _CPUID_HLT, len(_CPUID_HLT))
        self._uc = open_engine(ctypes.addressof(self._memory), _SCRATCH, cpu)
        self._uc.hook_add(UC_HOOK_TLB_FILL, _map_flat)

    def __call__(self, function: int, index: int) -> Leaf:
        self._uc.reg_write(x86.UC_X86_REG_RAX, function)
        self._uc.reg_write(x86.UC_X86_REG_RCX, index)
        self._uc.emu_start(_CODE, 0, count=2)
        registers = (x86.UC_X86_REG_EAX, x86.UC_X86_REG_EBX, x86.UC_X86_REG_ECX, x86.UC_X86_REG_EDX)
        return Leaf(*(self._uc.reg_read(register) for register in registers))


def _map_flat(_uc: Uc, gva: int, _access: int, entry: uc_tlb_entry, _: object) -> bool:
    entry.paddr = gva
    entry.perms = UC_PROT_ALL
    return gva < _SCRATCH

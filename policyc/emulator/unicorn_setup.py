"""Opening a Unicorn engine as the emulator needs it: long mode, our own TLB, RAM shared through a pointer."""

from __future__ import annotations

from ctypes import byref, c_uint64
from typing import Final

from unicorn import (
    UC_ARCH_X86,
    UC_CTL_IO_WRITE,
    UC_CTL_TLB_FLUSH,
    UC_HOOK_INSN,
    UC_MODE_64,
    UC_PROT_ALL,
    UC_TLB_VIRTUAL,
    Uc,
)
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

__all__ = ["BLIND_FRAME", "CPU_MODELS", "MSR_EFER", "NOWHERE_FRAME", "RegisterReader", "flush_tlb", "open_engine"]

NOWHERE_FRAME: Final = 1 << 40
"""Where guest physical addresses without RAM lead: reads give ones, writes are lost, as on a bus without a device."""

BLIND_FRAME: Final = NOWHERE_FRAME + 0x10000
"""A frame of HLT, shown instead of code that may not be seen yet."""

_PAGE: Final = 0x1000
_HLT: Final = b"\xf4"
_INITIAL_FPU: Final = (
    (x86.UC_X86_REG_FPCW, 0x37F),
    (x86.UC_X86_REG_FPTAG, 0xFFFF),
    (x86.UC_X86_REG_MXCSR, 0x1F80),
)
"""What KVM gives a new vCPU: the state that FNINIT leaves, and MXCSR as after a reset."""

MSR_EFER: Final = 0xC000_0080
_LONG_MODE: Final = 0x500  # EFER.LME and LMA
_CR0: Final = 0x8005_0033  # PG AM WP NE ET MP PE
_CR4_PAE: Final = 0x20

CPU_MODELS: Final = {"intel": x86.UC_CPU_X86_SKYLAKE_CLIENT, "amd": x86.UC_CPU_X86_EPYC}
"""Models with XSAVE, SMEP and SMAP; QEMU's TCG takes AVX out of both, which it can't run."""


class RegisterReader:
    """Reads 64-bit registers in a third of the time that the binding's `reg_read` takes."""

    __slots__ = ("_handle", "_pointer", "_value")

    def __init__(self, uc: Uc) -> None:
        self._handle = uc._uch
        self._value = c_uint64()
        self._pointer = byref(self._value)

    def __call__(self, register: int) -> int:
        """The value of a register that fits 64 bits, by Unicorn's number for it."""
        self._value.value = 0  # a selector fills two bytes alone
        uclib.uc_reg_read(self._handle, register, self._pointer)
        return self._value.value


def open_engine(address: int, size: int, cpu: str = "intel") -> Uc:
    """An engine in 64-bit mode whose physical memory is the `size` bytes at host `address`.

    The TLB asks a `UC_HOOK_TLB_FILL` for each page, and no address ends a run (`until` would fetch from it: Unicorn
    issue 2376).
    """
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_cpu_model(CPU_MODELS[cpu])
    uc.ctl_set_tlb_mode(UC_TLB_VIRTUAL)
    uc.mem_map_ptr(0, size, UC_PROT_ALL, address)
    uc.mmio_map(NOWHERE_FRAME, _PAGE, _read_nothing, None, _write_nothing, None)
    uc.mem_map(BLIND_FRAME, _PAGE, UC_PROT_ALL)
    uc.mem_write(BLIND_FRAME, _HLT * _PAGE)
    uc.hook_add(UC_HOOK_INSN, _input_nothing, None, 1, 0, x86.UC_X86_INS_IN)
    uc.ctl_exits_enabled(True)
    uc.reg_write(x86.UC_X86_REG_CR4, _CR4_PAE)
    uc.msr_write(MSR_EFER, _LONG_MODE)
    uc.reg_write(x86.UC_X86_REG_CR0, _CR0)
    for register, value in _INITIAL_FPU:
        uc.reg_write(register, value)
    return uc


def flush_tlb(uc: Uc) -> None:
    """Forget every translation; the Python binding has no method of its own for it."""
    uc.ctl(UC_CTL_TLB_FLUSH, UC_CTL_IO_WRITE)


def _read_nothing(_uc: Uc, _offset: int, size: int, _: object) -> int:
    return (1 << 8 * size) - 1


def _write_nothing(_uc: Uc, _offset: int, _size: int, _value: int, _: object) -> None:
    return None


def _input_nothing(_uc: Uc, _port: int, size: int, _: object) -> int:
    return (1 << 8 * size) - 1

"""Opening a Unicorn engine as the emulator needs it: long mode, our own TLB, RAM shared through a pointer."""

from __future__ import annotations

from ctypes import CFUNCTYPE, byref, c_int, c_size_t, c_uint64, c_void_p
from typing import TYPE_CHECKING, Final

from unicorn import (
    UC_ARCH_X86,
    UC_CTL_IO_WRITE,
    UC_CTL_TLB_FLUSH,
    UC_ERR_OK,
    UC_HOOK_EDGE_GENERATED,
    UC_HOOK_INSN,
    UC_HOOK_TLB_FILL,
    UC_MODE_64,
    UC_PROT_ALL,
    UC_TLB_VIRTUAL,
    Uc,
)
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

from policyc.emulator.bus import EMPTY_BUS

if TYPE_CHECKING:
    from unicorn.unicorn import uc_tlb_entry

    from policyc.emulator.bus import Bus, Registers

__all__ = [
    "BLIND_FRAME",
    "CPU_MODELS",
    "MSR_EFER",
    "NOWHERE_FRAME",
    "RegisterReader",
    "connect",
    "flush_tlb",
    "open_engine",
    "prime",
]

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
_JUMPS: Final = b"\xeb\x00\xeb\x00\xeb\x00\xf4"

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
    uc.ctl_exits_enabled(True)
    uc.reg_write(x86.UC_X86_REG_CR4, _CR4_PAE)
    uc.msr_write(MSR_EFER, _LONG_MODE)
    uc.reg_write(x86.UC_X86_REG_CR0, _CR0)
    for register, value in _INITIAL_FPU:
        uc.reg_write(register, value)
    return uc


def connect(uc: Uc, bus: Bus = EMPTY_BUS) -> object:
    """Put the devices of a bus behind an engine; what is returned has to live as long as the engine."""
    for address, device in bus.frames.items():
        _map_registers(uc, address, device)

    def read_port(_uc: Uc, port: int, size: int, _: object) -> int:
        return bus.read_port(port, size)

    def write_port(_uc: Uc, port: int, size: int, value: int, _: object) -> None:
        bus.write_port(port, size, value)

    uc.hook_add(UC_HOOK_INSN, read_port, None, 1, 0, x86.UC_X86_INS_IN)
    uc.hook_add(UC_HOOK_INSN, write_port, None, 1, 0, x86.UC_X86_INS_OUT)
    return _hook_time_stamp(uc, bus) if bus.time_stamp() is not None else None


def prime(uc: Uc) -> None:
    """Run a few blocks, since Unicorn tells of a new block only once another has run before it.

    Raises:
        RuntimeError: it doesn't tell even then.
    """
    told: list[int] = []

    def show_blind_frame(_uc: Uc, _gva: int, _access: int, entry: uc_tlb_entry, _: object) -> bool:
        entry.paddr = BLIND_FRAME
        entry.perms = UC_PROT_ALL
        return True

    hooks = (
        uc.hook_add(UC_HOOK_TLB_FILL, show_blind_frame),
        uc.hook_add(UC_HOOK_EDGE_GENERATED, lambda _uc, block, _previous, _data: told.append(block.pc)),
    )
    uc.mem_write(BLIND_FRAME, _JUMPS)
    uc.emu_start(0, 0, count=len(_JUMPS))
    for hook in hooks:
        uc.hook_del(hook)
    uc.mem_write(BLIND_FRAME, _HLT * len(_JUMPS))
    uc.reg_write(x86.UC_X86_REG_RIP, 0)
    uc.ctl_flush_tb()
    flush_tlb(uc)
    if not told:
        raise RuntimeError("this Unicorn doesn't tell of the blocks that it translates")


def flush_tlb(uc: Uc) -> None:
    """Forget every translation; the Python binding has no method of its own for it."""
    uc.ctl(UC_CTL_TLB_FLUSH, UC_CTL_IO_WRITE)


def _read_nothing(_uc: Uc, _offset: int, size: int, _: object) -> int:
    return (1 << 8 * size) - 1


def _write_nothing(_uc: Uc, _offset: int, _size: int, _value: int, _: object) -> None:
    return None


def _map_registers(uc: Uc, address: int, device: Registers) -> None:
    def read(_uc: Uc, offset: int, size: int, _: object) -> int:
        return device.read(offset, size)

    def write(_uc: Uc, offset: int, size: int, value: int, _: object) -> None:
        device.write(offset, size, value)

    uc.mmio_map(address, _PAGE, read, None, write, None)


def _hook_time_stamp(uc: Uc, bus: Bus) -> object:
    """RDTSC, which the library can hook and its Python binding refuses to."""

    def read(_handle: object, _: object) -> int:
        value = bus.time_stamp() or 0
        uc.reg_write(x86.UC_X86_REG_RAX, value & 0xFFFF_FFFF)
        uc.reg_write(x86.UC_X86_REG_RDX, value >> 32)
        return 1  # it has been executed

    callback = CFUNCTYPE(c_int, c_void_p, c_void_p)(read)
    hook = c_size_t()
    status = uclib.uc_hook_add(
        uc._uch, byref(hook), UC_HOOK_INSN, callback, None, c_uint64(1), c_uint64(0), c_int(x86.UC_X86_INS_RDTSC)
    )
    if status != UC_ERR_OK:
        raise RuntimeError(f"Unicorn refuses a hook on RDTSC: error {status}")
    return callback

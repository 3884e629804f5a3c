"""The engine's registers in the blocks that KVMI carries, and back.

Everything but RFLAGS, CR8, EFER and SYSENTER_CS is taken from the saved context in one piece: reading ninety
registers one by one would be most of the cost of an event.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from policyc.emulator.context import GPR_NAMES
from policyc.emulator.unicorn_setup import MSR_EFER
from policyc.kvmi import CpuMode, DescriptorTable, EventMsrs, Registers, Segment, SystemRegisters, VcpuState

if TYPE_CHECKING:
    from policyc.emulator.engine import Engine

__all__ = ["APIC_BASE", "READABLE_MSRS", "read_registers", "read_state", "read_system_registers", "write_registers"]

APIC_BASE: Final = 0xFEE0_0900
"""IA32_APIC_BASE of a boot processor with its local APIC on; there is no APIC behind it."""

MSR_APIC_BASE: Final = 0x1B
MSR_SYSENTER_CS: Final = 0x174
MSR_SYSENTER_ESP: Final = 0x175
MSR_SYSENTER_EIP: Final = 0x176
MSR_PAT: Final = 0x277
MSR_STAR: Final = 0xC000_0081
MSR_LSTAR: Final = 0xC000_0082
MSR_CSTAR: Final = 0xC000_0083
MSR_KERNEL_GS_BASE: Final = 0xC000_0102

READABLE_MSRS: Final = frozenset(
    {
        *(MSR_APIC_BASE, MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, 0x1A0, MSR_PAT, 0x2FF, MSR_EFER),
        *(MSR_STAR, MSR_LSTAR, MSR_CSTAR, 0xC000_0084, 0xC000_0100, 0xC000_0101, MSR_KERNEL_GS_BASE, 0xC000_0103),
    }
)
"""MSRs that the guest has."""

_ORDER: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_BUSY: Final = 2
_RFLAGS_WRITABLE: Final = 0x0025_7FD5
_RFLAGS_FIXED: Final = 2
_LONG_MODE_ACTIVE: Final = 1 << 10
_GPRS: Final = tuple(GPR_NAMES.index(name) for name in Registers._fields[:-1])


def read_registers(engine: Engine) -> Registers:
    """The general registers, RIP and RFLAGS."""
    engine.context.load()
    values = engine.context.gprs_and_rip()
    return Registers._make((*(values[at] for at in _GPRS), engine.get("rflags")))


def write_registers(engine: Engine, registers: Registers) -> None:
    """Set all that `read_registers` gives; flags that no 64-bit guest can have stay as they must be."""
    for name, value in registers._asdict().items():
        engine.set(name, value & _RFLAGS_WRITABLE | _RFLAGS_FIXED if name == "rflags" else value)


def read_system_registers(engine: Engine) -> SystemRegisters:
    """Segments, descriptor tables, control registers."""
    context = engine.context
    context.load()
    cr0, _, cr2, cr3, cr4 = context.control_registers()
    _, gdt_base, gdt_limit, _ = context.segment("gdt")
    _, idt_base, idt_limit, _ = context.segment("idt")
    cs, ds, es, fs, gs, ss, tr, ldt = (_segment(*context.segment(name)) for name in _ORDER)
    tr = tr._replace(type=tr.type | _BUSY)  # LTR marks the task busy; Unicorn keeps the descriptor as it was
    return SystemRegisters(
        cs=cs,
        ds=ds,
        es=es,
        fs=fs,
        gs=gs,
        ss=ss,
        tr=tr,
        ldt=ldt,
        gdt=DescriptorTable(gdt_base, gdt_limit),
        idt=DescriptorTable(idt_base, idt_limit),
        cr0=cr0,
        cr2=cr2,
        cr3=cr3,
        cr4=cr4,
        cr8=engine.get("cr8"),
        efer=engine.efer,
        apic_base=APIC_BASE,
    )


def read_state(engine: Engine) -> VcpuState:
    """All that an event tells of its vCPU."""
    system = read_system_registers(engine)
    context = engine.context
    msrs = EventMsrs(
        sysenter_cs=engine.msr_read(MSR_SYSENTER_CS),
        sysenter_esp=context.msr(MSR_SYSENTER_ESP),
        sysenter_eip=context.msr(MSR_SYSENTER_EIP),
        efer=system.efer,
        star=context.msr(MSR_STAR),
        lstar=context.msr(MSR_LSTAR),
        cstar=context.msr(MSR_CSTAR),
        pat=context.msr(MSR_PAT),
        shadow_gs=context.msr(MSR_KERNEL_GS_BASE),
    )
    return VcpuState(_mode(system), read_registers(engine), system, msrs, engine.view)


def _mode(system: SystemRegisters) -> CpuMode:
    if system.efer & _LONG_MODE_ACTIVE and system.cs.l:
        return CpuMode.LONG
    return CpuMode.PROTECTED if system.cs.db else CpuMode.REAL


@lru_cache(maxsize=256)
def _segment(selector: int, base: int, limit: int, flags: int) -> Segment:
    present = flags >> 15 & 1
    return Segment(
        base=base,
        limit=limit,
        selector=selector & 0xFFFF,
        type=flags >> 8 & 0xF,
        present=present,
        dpl=flags >> 13 & 3,
        db=flags >> 22 & 1,
        s=flags >> 12 & 1,
        l=flags >> 21 & 1,
        g=flags >> 23 & 1,
        avl=flags >> 20 & 1,
        unusable=1 - present,
    )

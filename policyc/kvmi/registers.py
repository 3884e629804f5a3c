"""The register blocks that KVMI carries, as values: general registers, system registers, and an event's MSRs.

Layouts are those of `KVM_GET_REGS` and `KVM_GET_SREGS` (Linux `asm/kvm.h`, x86) and of `struct kvmi_event_arch`.
The flat blocks are named tuples: they are decoded while a vCPU stands still, and a tuple is made three times as fast
as a dataclass. Change one register with `regs._replace(rip=...)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from policyc.kvmi.vocabulary import CpuMode
from policyc.kvmi.wire import SHARED

__all__ = ["DescriptorTable", "EventMsrs", "MsrEntry", "Registers", "Segment", "SystemRegisters", "VcpuState"]

_SREGS = SHARED["kvm_sregs"].struct
_SEGMENT = SHARED["kvm_segment"].struct
_DTABLE = SHARED["kvm_dtable"].struct
_REGS = SHARED["kvm_regs"].struct
_MSRS = SHARED["event_msrs"].struct


class Registers(NamedTuple):
    """The general registers, `struct kvm_regs`."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 0

    def pack(self) -> bytes:
        """The 144 bytes on the wire."""
        return _REGS.pack(*self)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Registers:
        """Read 144 bytes at `offset`."""
        return cls._make(_REGS.unpack_from(data, offset))


class Segment(NamedTuple):
    """A segment register with its hidden part, `struct kvm_segment`."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741  (the kernel's name for the 64-bit code segment bit)
    g: int = 0
    avl: int = 0
    unusable: int = 0


class DescriptorTable(NamedTuple):
    """GDTR or IDTR, `struct kvm_dtable`; `limit` is the last valid byte's offset, as the processor has it."""

    base: int = 0
    limit: int = 0


class EventMsrs(NamedTuple):
    """The MSRs that come with each event; `shadow_gs` is MSR_KERNEL_GS_BASE."""

    sysenter_cs: int = 0
    sysenter_esp: int = 0
    sysenter_eip: int = 0
    efer: int = 0
    star: int = 0
    lstar: int = 0
    cstar: int = 0
    pat: int = 0
    shadow_gs: int = 0

    def pack(self) -> bytes:
        """The 72 bytes on the wire."""
        return _MSRS.pack(*self)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> EventMsrs:
        """Read 72 bytes at `offset`."""
        return cls._make(_MSRS.unpack_from(data, offset))


@dataclass(frozen=True, slots=True)
class MsrEntry:
    """One MSR of a GET_REGISTERS reply, `struct kvm_msr_entry`."""

    index: int
    data: int


_NO_SEGMENT = Segment()
_NO_TABLE = DescriptorTable()
_NO_REGISTERS = Registers()
_NO_MSRS = EventMsrs()


@dataclass(frozen=True, slots=True)
class SystemRegisters:
    """Segments, descriptor tables and control registers, `struct kvm_sregs`."""

    cs: Segment = _NO_SEGMENT
    ds: Segment = _NO_SEGMENT
    es: Segment = _NO_SEGMENT
    fs: Segment = _NO_SEGMENT
    gs: Segment = _NO_SEGMENT
    ss: Segment = _NO_SEGMENT
    tr: Segment = _NO_SEGMENT
    ldt: Segment = _NO_SEGMENT
    gdt: DescriptorTable = _NO_TABLE
    idt: DescriptorTable = _NO_TABLE
    cr0: int = 0
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0
    interrupt_bitmap: bytes = bytes(32)

    def pack(self) -> bytes:
        """The 312 bytes on the wire."""
        return _SREGS.pack(
            *(_SEGMENT.pack(*s) for s in (self.cs, self.ds, self.es, self.fs, self.gs, self.ss, self.tr, self.ldt)),
            _DTABLE.pack(*self.gdt),
            _DTABLE.pack(*self.idt),
            self.cr0,
            self.cr2,
            self.cr3,
            self.cr4,
            self.cr8,
            self.efer,
            self.apic_base,
            self.interrupt_bitmap,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> SystemRegisters:
        """Read 312 bytes at `offset`."""
        cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, *rest = _SREGS.unpack_from(data, offset)
        cs, ds, es, fs, gs, ss, tr, ldt = (_SEGMENT.unpack(segment) for segment in (cs, ds, es, fs, gs, ss, tr, ldt))
        gdt, idt = (_DTABLE.unpack(table) for table in (gdt, idt))
        make = Segment._make
        return cls(
            make(cs),
            make(ds),
            make(es),
            make(fs),
            make(gs),
            make(ss),
            make(tr),
            make(ldt),
            DescriptorTable._make(gdt),
            DescriptorTable._make(idt),
            *rest,
        )


_NO_SYSTEM_REGISTERS = SystemRegisters()


@dataclass(frozen=True, slots=True)
class VcpuState:
    """What a vCPU event tells of its vCPU; `view` is the EPT view in use, sent by kvmi-v7 alone."""

    mode: CpuMode = CpuMode.LONG
    regs: Registers = _NO_REGISTERS
    sregs: SystemRegisters = _NO_SYSTEM_REGISTERS
    msrs: EventMsrs = _NO_MSRS
    view: int = 0

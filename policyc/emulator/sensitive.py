"""The instructions that leave the guest before they run: one row for each, and what its event asks and answers.

Each sends its event if the tool wants it and says how the answer is carried out, or does what the processor would have
done. The answers follow the kernel's handlers (virt/kvm/introspection, arch/x86/kvm/kvmi.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policyc.emulator.cpuid import Leaf, cpuid_table
from policyc.emulator.decode import accesses, register_value
from policyc.emulator.deliver import enter_syscall, enter_sysenter
from policyc.emulator.interrupts import MSR_X2APIC_ICR
from policyc.emulator.registers import READABLE_MSRS
from policyc.emulator.stops import BudgetSpent, Shutdown
from policyc.emulator.unicorn_setup import MSR_EFER
from policyc.emulator.walk import is_canonical
from policyc.kvmi import (
    Action,
    CpuidData,
    CrData,
    Descriptor,
    DescriptorData,
    EventKind,
    EventReplyData,
    MsrData,
    NewValue,
    XsetbvData,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from policyc.emulator.decode import Instruction
    from policyc.emulator.vcpu import Vcpu

__all__ = ["carry_out"]

_LOW32: Final = 0xFFFF_FFFF
_ARITHMETIC_FLAGS: Final = 0x8D5
_CARRY: Final = 1
_INVALID_OPCODE: Final = 6
_GENERAL_PROTECTION: Final = 13

_CR0_NEEDED: Final = 0x8000_0001  # PG and PE, which 64-bit code can't clear
_CR0_TS: Final = 1 << 3
_CR0_PE: Final = 1
_CR0_LMSW: Final = 0xE  # MP, EM, TS; PE can be set by it and not cleared
_CONTROL_REGISTERS: Final = frozenset({"cr0", "cr3", "cr4"})
_LEFT_TO_THE_GUEST: Final[Mapping[tuple[str, int], int]] = {
    ("intel", 0): 1 << 3,  # TS
    ("intel", 4): 1 << 1 | 1 << 3 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10,  # PVI DE PGE PCE OSFXSR OSXMMEXCPT
    ("amd", 0): 1 << 1 | 1 << 3,  # MP TS
}
"""Bits whose change alone makes no exit, and so no event: those that KVM leaves to the guest on VMX, in Linux 5.4
(KVM_CR4_GUEST_OWNED_BITS; later kernels have TSD and FSGSBASE too), and what AMD's selective intercept of CR0 leaves
out.
"""

_CR3_RESERVED: Final = 0x7FF0_0000_0000_0000
_CR4_NEEDED: Final = 1 << 5  # PAE
_CR4_MAX: Final = 1 << 25
_EFER_SCE: Final = 1
_EFER_BITS: Final = 0xFD01
_CANONICAL_MSRS: Final = frozenset({0x175, 0x176, 0xC000_0082, 0xC000_0083, 0xC000_0100, 0xC000_0101, 0xC000_0102})


def carry_out(vcpu: Vcpu, insn: Instruction) -> None:
    """Do what a sensitive instruction at RIP does on a host, its event before it."""
    _SENSITIVE[insn.name](vcpu, insn)


def _native(vcpu: Vcpu) -> None:
    """Let the processor execute the instruction at RIP."""
    stop = vcpu.engine.step()
    if not isinstance(stop, BudgetSpent):
        vcpu.exit(stop)


def _mov_cr(vcpu: Vcpu, insn: Instruction) -> None:
    target, source = insn.registers
    if target not in _CONTROL_REGISTERS:
        _native(vcpu)
    else:
        _write_cr(vcpu, insn, int(target[2:]), register_value(source, vcpu.engine.registers()))


def _clts(vcpu: Vcpu, insn: Instruction) -> None:
    """No event on either maker's processors, since TS is the guest's; a #GP in user mode."""
    _write_cr(vcpu, insn, 0, vcpu.engine.get("cr0") & ~_CR0_TS)


def _lmsw(vcpu: Vcpu, insn: Instruction) -> None:
    word = _operand(vcpu, insn)
    if word is None:
        _native(vcpu)
    else:
        cr0 = vcpu.engine.get("cr0")
        _write_cr(vcpu, insn, 0, (cr0 & ~_CR0_LMSW | word & _CR0_LMSW) | word & _CR0_PE)


def _operand(vcpu: Vcpu, insn: Instruction) -> int | None:
    """What an instruction with one operand reads, whatever the rights; None if it isn't mapped."""
    registers = vcpu.engine.registers()
    if not insn.operands:
        return register_value(insn.registers[0], registers)
    (access,) = accesses(insn, registers)
    data = vcpu.engine.read_virtual(access.gva, access.size)
    return int.from_bytes(data, "little") if len(data) == access.size else None


def _write_cr(vcpu: Vcpu, insn: Instruction, number: int, new: int) -> None:
    name = f"cr{number}"
    old = vcpu.engine.get(name)
    owned = _LEFT_TO_THE_GUEST.get((vcpu.cpu, number), 0)

    def resume(action: Action | None, data: EventReplyData | None) -> None:
        value = data.value if isinstance(data, NewValue) else new
        if action is not Action.CONTINUE:
            vcpu.fault(_GENERAL_PROTECTION, 0)
        elif value == new:
            _native(vcpu)
        elif not _cr_holds(number, value):
            vcpu.die(Shutdown(f"CR{number} was set to {value:#x}, with which no 64-bit guest can be entered"))
        else:
            vcpu.engine.set(name, value)
            vcpu.engine.skip(insn.size)

    if vcpu.engine.cpl or not _cr_holds(number, new):
        vcpu.fault(_GENERAL_PROTECTION, 0)
    elif (new ^ old) & ~owned and number in vcpu.hooks.crs and vcpu.wants(EventKind.CR):
        vcpu.report(EventKind.CR, CrData(number, old, new), resume)
    else:
        _native(vcpu)


def _cr_holds(number: int, value: int) -> bool:
    """Whether a control register can have that value in long mode."""
    if number == 0:
        return value & _CR0_NEEDED == _CR0_NEEDED and value <= _LOW32
    if number == 4:
        return bool(value & _CR4_NEEDED) and value < _CR4_MAX
    return not value & _CR3_RESERVED


def _wrmsr(vcpu: Vcpu, insn: Instruction) -> None:
    engine = vcpu.engine
    index = engine.get("rcx") & _LOW32
    new = (engine.get("rdx") & _LOW32) << 32 | engine.get("rax") & _LOW32
    old = engine.msr_read(index)

    def resume(action: Action | None, data: EventReplyData | None) -> None:
        value = data.value if isinstance(data, NewValue) else new
        if action is not Action.CONTINUE or not _msr_holds(index, value):
            vcpu.fault(_GENERAL_PROTECTION, 0)
        elif index == MSR_X2APIC_ICR:
            vcpu.engine.skip(insn.size)
            vcpu.send_ipi(value)
        elif value == new:
            _native(vcpu)
        else:
            engine.msr_write(index, value)
            vcpu.engine.skip(insn.size)

    if engine.cpl or not _msr_holds(index, new):
        vcpu.fault(_GENERAL_PROTECTION, 0)
    elif new != old and index in vcpu.hooks.msrs and vcpu.wants(EventKind.MSR):
        vcpu.report(EventKind.MSR, MsrData(index, old, new), resume)
    else:
        resume(Action.CONTINUE, None)


def _msr_holds(index: int, value: int) -> bool:
    if index == MSR_EFER:
        return not value & ~_EFER_BITS
    return index in (MSR_X2APIC_ICR, *READABLE_MSRS) and (index not in _CANONICAL_MSRS or is_canonical(value))


_DESCRIPTORS: Final[Mapping[str, tuple[Descriptor, bool]]] = {
    "lidt": (Descriptor.IDTR, True),
    "sidt": (Descriptor.IDTR, False),
    "lgdt": (Descriptor.GDTR, True),
    "sgdt": (Descriptor.GDTR, False),
    "lldt": (Descriptor.LDTR, True),
    "sldt": (Descriptor.LDTR, False),
    "ltr": (Descriptor.TR, True),
    "str": (Descriptor.TR, False),
}


def _descriptor(vcpu: Vcpu, insn: Instruction) -> None:
    def resume(action: Action | None, _: EventReplyData | None) -> None:
        if action is Action.CONTINUE:
            _native(vcpu)

    if vcpu.wants(EventKind.DESCRIPTOR):
        vcpu.report(EventKind.DESCRIPTOR, DescriptorData(*_DESCRIPTORS[insn.name]), resume)
    else:
        _native(vcpu)


def _cpuid(vcpu: Vcpu, insn: Instruction) -> None:
    engine = vcpu.engine
    function, index = engine.get("rax") & _LOW32, engine.get("rcx") & _LOW32
    table = cpuid_table(vcpu.cpu)
    leaf = table.get((function, index)) or table.get((function, 0)) or Leaf(0, 0, 0, 0)
    for name, value in (("rax", leaf.eax), ("rbx", leaf.ebx), ("rcx", leaf.ecx), ("rdx", leaf.edx)):
        engine.set(name, value)

    def resume(action: Action | None, _: EventReplyData | None) -> None:
        if action is Action.CONTINUE:
            vcpu.engine.skip(insn.size)

    if vcpu.wants(EventKind.CPUID):
        vcpu.report(EventKind.CPUID, CpuidData(function, index, insn.size), resume)
    else:
        vcpu.engine.skip(insn.size)


def _xsetbv(vcpu: Vcpu, _: Instruction) -> None:
    """The one event that comes after the fact: XCR0 has changed when it is sent."""
    engine = vcpu.engine
    index = engine.get("rcx") & _LOW32
    new = (engine.get("rdx") & _LOW32) << 32 | engine.get("rax") & _LOW32
    stop = engine.step()
    if not isinstance(stop, BudgetSpent):
        vcpu.exit(stop)
        return
    old, vcpu.xcr0 = vcpu.xcr0, new
    if new != old and vcpu.wants(EventKind.XSETBV):
        vcpu.report(EventKind.XSETBV, XsetbvData(index, old, new), vcpu.go_on)


def _sysenter(vcpu: Vcpu, _: Instruction) -> None:
    """In long mode Intel's processors alone have it (AMD's manual, volume 3, SYSENTER)."""
    if vcpu.cpu == "amd":
        vcpu.fault(_INVALID_OPCODE)
    elif not enter_sysenter(vcpu.engine):
        vcpu.fault(_GENERAL_PROTECTION, 0)


def _invlpg(vcpu: Vcpu, insn: Instruction) -> None:
    (operand,) = accesses(insn, vcpu.engine.registers())
    _native(vcpu)
    vcpu.engine.forget_large_page(operand.gva)


def _rdrand(vcpu: Vcpu, insn: Instruction) -> None:
    """Random bits from the machine's own seed, so that the same calls give the same run."""
    engine = vcpu.engine
    name, bits = _whole_register(insn.registers[0])
    kept = engine.get(name) & ~0xFFFF if bits == 16 else 0
    engine.set(name, kept | vcpu.random.getrandbits(bits))
    engine.set("rflags", engine.get("rflags") & ~_ARITHMETIC_FLAGS | _CARRY)
    vcpu.engine.skip(insn.size)


def _whole_register(name: str) -> tuple[str, int]:
    """The 64-bit register that another is part of, and the bits of that part: 32 of them clear the others."""
    if name[1].isdigit():
        return name.rstrip("dw"), {"d": 32, "w": 16}.get(name[-1], 64)
    return f"r{name[-2:]}", {"r": 64, "e": 32}.get(name[0], 16)


def _vmfunc(vcpu: Vcpu, insn: Instruction) -> None:
    """EPTP switching by the guest, to views that the tool has made visible."""
    engine = vcpu.engine
    view = engine.get("rcx") & _LOW32
    if engine.get("rax") & _LOW32 or view not in vcpu.hooks.views:
        vcpu.fault(_INVALID_OPCODE)
        return
    engine.view = view
    vcpu.engine.skip(insn.size)


def _syscall(vcpu: Vcpu, _: Instruction) -> None:
    if vcpu.engine.msr_read(MSR_EFER) & _EFER_SCE:
        enter_syscall(vcpu.engine)
    else:
        vcpu.fault(_INVALID_OPCODE)


_SENSITIVE: Final[Mapping[str, Callable[[Vcpu, Instruction], None]]] = {
    "mov": _mov_cr,
    "clts": _clts,
    "lmsw": _lmsw,
    "wrmsr": _wrmsr,
    "cpuid": _cpuid,
    "xsetbv": _xsetbv,
    "syscall": _syscall,
    "vmfunc": _vmfunc,
    "rdrand": _rdrand,
    "sysenter": _sysenter,
    "invlpg": _invlpg,
    **dict.fromkeys(_DESCRIPTORS, _descriptor),
}

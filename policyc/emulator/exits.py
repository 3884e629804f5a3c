"""What happens when a processor leaves the guest: one row for each reason, and one for each sensitive instruction.

Each either sends an event and says how its answer is carried out, or does what the processor would have done. The
answers follow the kernel's handlers (virt/kvm/introspection, arch/x86/kvm/kvmi.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from policyc.addresses import GVA_UNKNOWN, Gpa
from policyc.emulator.cpuid import Leaf, cpuid_table
from policyc.emulator.deliver import Delivery, enter_syscall
from policyc.emulator.registers import READABLE_MSRS
from policyc.emulator.step_over import violation
from policyc.emulator.stops import (
    Breakpoint,
    BudgetSpent,
    GuestFault,
    Halted,
    Hypercall,
    PageViolation,
    Sensitive,
    Shutdown,
    SoftwareInterrupt,
    Stop,
)
from policyc.emulator.unicorn_setup import MSR_EFER
from policyc.emulator.walk import is_canonical, translate
from policyc.kvmi import (
    Action,
    BreakpointData,
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

__all__ = ["HYPERCALL_FUNCTION", "HYPERCALL_SUBFUNCTION", "leave"]

HYPERCALL_FUNCTION: Final = 34
HYPERCALL_SUBFUNCTION: Final = 24
_KVM_ENOSYS: Final = 1000

_LOW32: Final = 0xFFFF_FFFF
_MASK: Final = (1 << 64) - 1
_INVALID_OPCODE: Final = 6
_GENERAL_PROTECTION: Final = 13
_BREAKPOINT: Final = 3

_CR0_NEEDED: Final = 0x8000_0001  # PG and PE, which 64-bit code can't clear
_CR0_TS: Final = 1 << 3
_CR3_RESERVED: Final = 0x7FF0_0000_0000_0000
_CR4_NEEDED: Final = 1 << 5  # PAE
_CR4_MAX: Final = 1 << 25
_ARITHMETIC_FLAGS: Final = 0x8D5
_CARRY: Final = 1
_EFER_SCE: Final = 1
_EFER_BITS: Final = 0xFD01
_CANONICAL_MSRS: Final = frozenset({0x175, 0x176, 0xC000_0082, 0xC000_0083, 0xC000_0100, 0xC000_0101, 0xC000_0102})


def leave(vcpu: Vcpu, stop: Stop) -> None:
    """Do what KVM does when the guest was left for this reason."""
    match stop:
        case BudgetSpent():
            pass
        case Halted():
            vcpu.halted = True
        case PageViolation():
            violation(vcpu, stop)
        case GuestFault():
            vcpu.fault(stop.vector, stop.error_code, stop.cr2)
        case SoftwareInterrupt():
            vcpu.deliver(Delivery(stop.vector, software=True))
        case Breakpoint():
            _breakpoint(vcpu, stop)
        case Hypercall():
            _hypercall(vcpu, stop)
        case Sensitive():
            _SENSITIVE[stop.instruction.name](vcpu, stop.instruction)
        case Shutdown():
            vcpu.die(stop)
        case _:
            assert_never(stop)


def _native(vcpu: Vcpu) -> None:
    """Let the processor execute the instruction at RIP."""
    stop = vcpu.engine.step()
    if not isinstance(stop, BudgetSpent):
        leave(vcpu, stop)


def _skip(vcpu: Vcpu, size: int) -> None:
    vcpu.engine.set("rip", vcpu.engine.get("rip") + size & _MASK)


def _breakpoint(vcpu: Vcpu, stop: Breakpoint) -> None:
    def resume(action: Action | None, _: EventReplyData | None) -> None:
        if action is Action.CONTINUE:
            _skip(vcpu, stop.size)
            vcpu.deliver(Delivery(_BREAKPOINT, software=True))

    if not vcpu.wants(EventKind.BREAKPOINT):
        resume(Action.CONTINUE, None)
        return
    engine = vcpu.engine
    gpa = translate(engine.memory, engine.get("cr3"), engine.get("rip"))
    vcpu.report(EventKind.BREAKPOINT, BreakpointData(Gpa(GVA_UNKNOWN) if gpa is None else gpa, stop.size), resume)


def _hypercall(vcpu: Vcpu, stop: Hypercall) -> None:
    engine = vcpu.engine

    def finish(result: int) -> None:
        engine.set("rax", result & _MASK)
        _skip(vcpu, stop.size)

    def resume(_action: Action | None, _: EventReplyData | None) -> None:
        finish(0)

    ours = (engine.get("rax") & _LOW32, engine.get("rdi"), engine.get("rsi")) == (
        HYPERCALL_FUNCTION,
        HYPERCALL_SUBFUNCTION,
        0,
    )
    if ours and vcpu.wants(EventKind.HYPERCALL):
        vcpu.report(EventKind.HYPERCALL, None, resume)
    else:
        finish(-_KVM_ENOSYS)


def _mov_cr(vcpu: Vcpu, insn: Instruction) -> None:
    target, source = insn.registers
    if target == "cr8":
        _native(vcpu)
    else:
        _write_cr(vcpu, insn, int(target[2:]), vcpu.engine.get(source))


def _clts(vcpu: Vcpu, insn: Instruction) -> None:
    _write_cr(vcpu, insn, 0, vcpu.engine.get("cr0") & ~_CR0_TS)


def _write_cr(vcpu: Vcpu, insn: Instruction, number: int, new: int) -> None:
    name = f"cr{number}"
    old = vcpu.engine.get(name)

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
            _skip(vcpu, insn.size)

    if vcpu.engine.cpl or not _cr_holds(number, new):
        vcpu.fault(_GENERAL_PROTECTION, 0)
    elif new != old and number in vcpu.hooks.crs and vcpu.wants(EventKind.CR):
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
        elif value == new:
            _native(vcpu)
        else:
            engine.msr_write(index, value)
            _skip(vcpu, insn.size)

    if engine.cpl or not _msr_holds(index, new):
        vcpu.fault(_GENERAL_PROTECTION, 0)
    elif new != old and index in vcpu.hooks.msrs and vcpu.wants(EventKind.MSR):
        vcpu.report(EventKind.MSR, MsrData(index, old, new), resume)
    else:
        _native(vcpu)


def _msr_holds(index: int, value: int) -> bool:
    if index == MSR_EFER:
        return not value & ~_EFER_BITS
    return index in READABLE_MSRS and (index not in _CANONICAL_MSRS or is_canonical(value))


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
            _skip(vcpu, insn.size)

    if vcpu.wants(EventKind.CPUID):
        vcpu.report(EventKind.CPUID, CpuidData(function, index, insn.size), resume)
    else:
        _skip(vcpu, insn.size)


def _xsetbv(vcpu: Vcpu, _: Instruction) -> None:
    """The one event that comes after the fact: XCR0 has changed when it is sent."""
    engine = vcpu.engine
    index = engine.get("rcx") & _LOW32
    new = (engine.get("rdx") & _LOW32) << 32 | engine.get("rax") & _LOW32
    stop = engine.step()
    if not isinstance(stop, BudgetSpent):
        leave(vcpu, stop)
        return
    old, vcpu.xcr0 = vcpu.xcr0, new
    if new != old and vcpu.wants(EventKind.XSETBV):
        vcpu.report(EventKind.XSETBV, XsetbvData(index, old, new), vcpu.go_on)


def _rdrand(vcpu: Vcpu, insn: Instruction) -> None:
    """Random bits from the machine's own seed, so that the same calls give the same run."""
    engine = vcpu.engine
    name, bits = _whole_register(insn.registers[0])
    kept = engine.get(name) & ~0xFFFF if bits == 16 else 0
    engine.set(name, kept | vcpu.random.getrandbits(bits))
    engine.set("rflags", engine.get("rflags") & ~_ARITHMETIC_FLAGS | _CARRY)
    _skip(vcpu, insn.size)


def _whole_register(name: str) -> tuple[str, int]:
    """The 64-bit register that another is part of, and the bits of that part: 32 of them clear the others."""
    if name[1].isdigit():
        return name.rstrip("dw"), {"d": 32, "w": 16}.get(name[-1], 64)
    return f"r{name[-2:]}", {"r": 64, "e": 32}.get(name[0], 16)


def _syscall(vcpu: Vcpu, _: Instruction) -> None:
    if vcpu.engine.msr_read(MSR_EFER) & _EFER_SCE:
        enter_syscall(vcpu.engine)
    else:
        vcpu.fault(_INVALID_OPCODE)


_SENSITIVE: Final[Mapping[str, Callable[[Vcpu, Instruction], None]]] = {
    "mov": _mov_cr,
    "clts": _clts,
    "wrmsr": _wrmsr,
    "cpuid": _cpuid,
    "xsetbv": _xsetbv,
    "syscall": _syscall,
    "rdrand": _rdrand,
    **dict.fromkeys(_DESCRIPTORS, _descriptor),
}

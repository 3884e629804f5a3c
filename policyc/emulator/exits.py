"""What happens when a processor leaves the guest: one case for each reason.

Each either sends an event and says how its answer is carried out, or does what the processor would have done. The
answers follow the kernel's handlers (virt/kvm/introspection, arch/x86/kvm/kvmi.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from policyc.addresses import GVA_UNKNOWN, Gpa
from policyc.emulator.deliver import Delivery
from policyc.emulator.sensitive import carry_out
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
from policyc.emulator.walk import translate
from policyc.kvmi import Action, BreakpointData, EventKind, EventReplyData

if TYPE_CHECKING:
    from policyc.emulator.vcpu import Vcpu

__all__ = ["HYPERCALL_FUNCTION", "HYPERCALL_SUBFUNCTION", "leave"]

HYPERCALL_FUNCTION: Final = 34
HYPERCALL_SUBFUNCTION: Final = 24
_KVM_ENOSYS: Final = 1000

_LOW32: Final = 0xFFFF_FFFF
_MASK: Final = (1 << 64) - 1
_BREAKPOINT: Final = 3

_HYPERCALL_REGISTERS: Final = {True: ("rax", "rdi", "rsi"), False: ("rax", "rbx", "rcx")}
"""Function, sub-function and what must be 0, by whether it's 64-bit code: the convention of Xen's HVM guests."""


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
            vcpu.deliver(Delivery(stop.vector, software=True, length=stop.size))
        case Breakpoint():
            _breakpoint(vcpu, stop)
        case Hypercall():
            _hypercall(vcpu, stop)
        case Sensitive():
            carry_out(vcpu, stop.instruction)
        case Shutdown():
            vcpu.die(stop)
        case _:
            assert_never(stop)


def _breakpoint(vcpu: Vcpu, stop: Breakpoint) -> None:
    def resume(action: Action | None, _: EventReplyData | None) -> None:
        if action is Action.CONTINUE:
            vcpu.deliver(Delivery(_BREAKPOINT, software=True, length=stop.size))

    if not vcpu.wants(EventKind.BREAKPOINT):
        resume(Action.CONTINUE, None)
        return
    engine = vcpu.engine
    gpa = translate(engine.memory, engine.get("cr3"), engine.get("rip"))
    vcpu.report(EventKind.BREAKPOINT, BreakpointData(Gpa(GVA_UNKNOWN) if gpa is None else gpa, stop.size), resume)


def _hypercall(vcpu: Vcpu, stop: Hypercall) -> None:
    engine = vcpu.engine

    mask = _MASK if engine.code_bits == 64 else _LOW32

    def finish(result: int) -> None:
        engine.set("rax", result & mask)
        engine.skip(stop.size)

    def resume(_action: Action | None, _: EventReplyData | None) -> None:
        finish(0)

    function, subfunction, zero = _HYPERCALL_REGISTERS[engine.code_bits == 64]
    asked = engine.get(function) & _LOW32, engine.get(subfunction) & mask, engine.get(zero) & mask
    if asked == (HYPERCALL_FUNCTION, HYPERCALL_SUBFUNCTION, 0) and vcpu.wants(EventKind.HYPERCALL):
        vcpu.report(EventKind.HYPERCALL, None, resume)
    else:
        finish(-_KVM_ENOSYS)

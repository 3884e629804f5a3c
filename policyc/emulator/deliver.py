"""What the processor does between two instructions: exceptions and interrupts through the guest's IDT, system calls.

Unicorn delivers nothing to the guest by itself. Follows the Intel SDM, volume 3, 6.14 (64-bit mode handling) and
6.15 (double fault), and volume 2, SYSCALL and SYSENTER. A stack that lies in a frame without write is a violation like
any other; that the processor reads the IDT and the TSS is not.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policyc.addresses import Gpa, Gva, gfn_of
from policyc.emulator.engine import VECTORS_WITH_CODE
from policyc.emulator.memory import ALL_RIGHTS
from policyc.emulator.stops import PageViolation, Shutdown
from policyc.emulator.walk import WRITE, is_canonical, translate

if TYPE_CHECKING:
    from collections.abc import Collection

    from policyc.emulator.engine import Engine

__all__ = ["Delivery", "deliver", "enter_syscall", "enter_sysenter"]

DOUBLE_FAULT: Final = 8
GENERAL_PROTECTION: Final = 13
INVALID_TSS: Final = 10
NOT_PRESENT: Final = 11
PAGE_FAULT: Final = 14

_GATE: Final = struct.Struct("<HHBBHIxxxx")  # offset, selector, IST, type, offset, offset
_GATE_BYTES: Final = 16
_INTERRUPT_GATE: Final = 0xE
_TRAP_GATE: Final = 0xF
_TSS_RSP0: Final = 4
_TSS_IST1: Final = 36
_ERROR_IDT: Final = 2
_ERROR_EXTERNAL: Final = 1
_RFLAGS_IF: Final = 1 << 9
_RFLAGS_CLEARED: Final = 0x0003_4100  # TF, NT, RF and VM
_RFLAGS_CLEARED_BY_SYSENTER: Final = 0x0003_0000  # RF and VM
_RFLAGS_FIXED: Final = 2
_MASK: Final = (1 << 64) - 1

MSR_SYSENTER_CS: Final = 0x174
MSR_SYSENTER_ESP: Final = 0x175
MSR_SYSENTER_EIP: Final = 0x176
MSR_STAR: Final = 0xC000_0081
MSR_LSTAR: Final = 0xC000_0082
MSR_SYSCALL_MASK: Final = 0xC000_0084
_SYSCALL_BYTES: Final = 2


class _CannotDeliverError(Exception):
    """Delivery itself raises an exception: its vector and error code."""

    def __init__(self, vector: int, error_code: int) -> None:
        super().__init__(vector)
        self.vector = vector
        self.error_code = error_code


class _RestrictedStackError(Exception):
    """The frame can't be stored, for want of a right."""

    def __init__(self, violation: PageViolation) -> None:
        super().__init__(violation)
        self.violation = violation


@dataclass(frozen=True, slots=True)
class Delivery:
    """Something for the guest's handlers.

    Attributes:
        error_code: None for vectors without one.
        cr2: address of a page fault.
        software: INT n or INT3, which a gate's privilege level may refuse.
        length: bytes of that instruction, which RIP is on: the handler returns behind it, that of a fault on the way
            doesn't.
    """

    vector: int
    error_code: int | None = None
    cr2: int | None = None
    software: bool = False
    length: int = 0


def deliver(engine: Engine, delivery: Delivery, *, lifted: Collection[int] = ()) -> Shutdown | PageViolation | None:
    """Enter the guest's handler.

    Args:
        lifted: numbers of frames whose rights don't count this time.

    Returns:
        None if the handler was entered; a violation if the stack can't be written, and nothing was done; or why the
        processor stopped: not even a double fault could be delivered.
    """
    if delivery.cr2 is not None:
        engine.set("cr2", delivery.cr2)
    try:
        return _attempt(engine, delivery, lifted=lifted)
    except _RestrictedStackError as restricted:
        return restricted.violation


def _attempt(engine: Engine, delivery: Delivery, *, lifted: Collection[int]) -> Shutdown | None:
    try:
        _enter(engine, delivery, lifted=lifted)
    except _CannotDeliverError as fault:
        if delivery.software:
            return _attempt(engine, Delivery(fault.vector, fault.error_code), lifted=lifted)
        try:
            _enter(engine, Delivery(DOUBLE_FAULT, 0), lifted=lifted)
        except _CannotDeliverError:
            return Shutdown(f"a fault while vector {delivery.vector} was delivered, and another for the double fault")
    return None


def enter_syscall(engine: Engine) -> None:
    """SYSCALL at RIP."""
    rflags = engine.get("rflags")
    engine.set("rcx", engine.get("rip") + _SYSCALL_BYTES & _MASK)
    engine.set("r11", rflags)
    selector = engine.msr_read(MSR_STAR) >> 32 & 0xFFFC
    engine.enter(0, selector, selector + 8)
    engine.set("rflags", (rflags & ~engine.msr_read(MSR_SYSCALL_MASK) & ~(1 << 16)) | _RFLAGS_FIXED)
    engine.set("rip", engine.msr_read(MSR_LSTAR))


def enter_sysenter(engine: Engine) -> bool:
    """SYSENTER at RIP; whether there is an entry to go to, else it's a #GP."""
    selector = engine.msr_read(MSR_SYSENTER_CS) & 0xFFFC
    if not selector:
        return False
    engine.enter(0, selector, selector + 8)
    engine.set("rflags", engine.get("rflags") & ~(_RFLAGS_IF | _RFLAGS_CLEARED_BY_SYSENTER))
    engine.set("rsp", engine.msr_read(MSR_SYSENTER_ESP))
    engine.set("rip", engine.msr_read(MSR_SYSENTER_EIP))
    return True


def _enter(engine: Engine, delivery: Delivery, *, lifted: Collection[int]) -> None:
    handler, selector, stack_index, gate_type = _gate(engine, delivery)
    cpl = engine.cpl
    rsp = engine.get("rsp")
    rflags = engine.get("rflags")
    frame = [engine.get("ss"), rsp, rflags, engine.get("cs"), engine.get("rip") + delivery.length & _MASK]
    if delivery.error_code is not None and delivery.vector in VECTORS_WITH_CODE:
        frame.append(delivery.error_code)
    if stack_index:
        rsp = _task_state(engine, _TSS_IST1 + 8 * (stack_index - 1))
    elif cpl:
        rsp = _task_state(engine, _TSS_RSP0)
    rsp = _store(engine, rsp & ~15, frame, lifted=lifted)
    engine.enter(0, selector & ~3, frame[0] if not cpl else 0)
    engine.set("rsp", rsp)
    engine.set("rip", handler)
    rflags &= ~_RFLAGS_CLEARED
    engine.set("rflags", rflags & ~_RFLAGS_IF if gate_type == _INTERRUPT_GATE else rflags)


def _gate(engine: Engine, delivery: Delivery) -> tuple[int, int, int, int]:
    """Handler, selector, IST index and type of a vector's gate."""
    vector, software = delivery.vector, delivery.software
    external = 0 if software else _ERROR_EXTERNAL
    code = vector * 8 + _ERROR_IDT + external
    base, limit = engine.table("idtr")
    if vector * _GATE_BYTES + _GATE_BYTES - 1 > limit:
        raise _CannotDeliverError(GENERAL_PROTECTION, code)
    raw = engine.read_virtual(base + vector * _GATE_BYTES, _GATE_BYTES)
    if len(raw) < _GATE_BYTES:
        raise _CannotDeliverError(PAGE_FAULT, 0)
    low, selector, stack, flags, middle, high = _GATE.unpack(raw)
    gate_type = flags & 0xF
    if gate_type not in (_INTERRUPT_GATE, _TRAP_GATE) or (software and (flags >> 5 & 3) < engine.cpl):
        raise _CannotDeliverError(GENERAL_PROTECTION, code)
    if not flags & 0x80:
        raise _CannotDeliverError(NOT_PRESENT, code)
    handler = low | middle << 16 | high << 32
    if not selector & ~3 or not is_canonical(handler):
        raise _CannotDeliverError(GENERAL_PROTECTION, external)
    return handler, selector, stack & 7, gate_type


def _task_state(engine: Engine, offset: int) -> int:
    base, limit = engine.table("tr")
    raw = engine.read_virtual(base + offset, 8) if offset + 7 <= limit else b""
    if len(raw) < 8:
        raise _CannotDeliverError(INVALID_TSS, 0)
    return int.from_bytes(raw, "little")


def _store(engine: Engine, top: int, frame: list[int], *, lifted: Collection[int]) -> int:
    """Push the values in order, all or none, and give the new stack pointer."""
    memory = engine.memory
    places: list[Gpa] = []
    for number in range(1, len(frame) + 1):
        gva = top - 8 * number & _MASK
        gpa = translate(memory, engine.get("cr3"), gva)
        if gpa is None or gpa + 8 > memory.size:
            raise _CannotDeliverError(PAGE_FAULT, 0)
        rights = memory.views[engine.view].rights.get(gfn_of(gpa), ALL_RIGHTS)
        if engine.enforcing and gfn_of(gpa) not in lifted and not rights & WRITE:
            raise _RestrictedStackError(PageViolation(Gva(gva), gpa, WRITE))
        places.append(engine.backing(gpa))
    for gpa, value in zip(places, frame, strict=True):
        memory.write(gpa, (value & _MASK).to_bytes(8, "little"))
    return top - 8 * len(frame) & _MASK

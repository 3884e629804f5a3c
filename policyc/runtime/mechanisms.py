"""How each effect is brought about on the wire: the catalogue's mechanisms, one function each.

A mechanism ends by answering the event, exactly once, and returns what was done in words for the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policyc.catalog import Mechanism
from policyc.kvmi import Action, CrData, MsrData, NewValue, Refused, SetRegisters
from policyc.plan.model import Effect
from policyc.runtime.facts import Examination
from policyc.runtime.injection import inject_and_retry, inject_until_delivered
from policyc.runtime.outcome import Done
from policyc.runtime.procedure import Answer, Procedure, ask

__all__ = ["MECHANISMS", "RIP_MASK"]

RIP_MASK = (1 << 64) - 1

Carry = Callable[[Examination, Effect], Procedure[Done]]


def let_pass(case: Examination, effect: Effect) -> Procedure[Done]:
    """CONTINUE: the kernel performs the access by emulation, or goes on after the event."""
    data = case.event.data
    if isinstance(data, (CrData, MsrData)):
        return (yield from write_new_value(case, effect))
    yield Answer(case.event, Action.CONTINUE)
    return Done("let through")


def write_new_value(case: Examination, effect: Effect) -> Procedure[Done]:
    """CONTINUE with the value that the guest wrote: a reply without value would write 0."""
    yield Answer(case.event, Action.CONTINUE, NewValue(_register_write(case).new))
    return Done("let through")


def keep_old_value(case: Examination, effect: Effect) -> Procedure[Done]:
    """CONTINUE with the value that the register has."""
    yield Answer(case.event, Action.CONTINUE, NewValue(_register_write(case).old))
    return Done("kept the old value")


def pin_bits(case: Examination, effect: Effect) -> Procedure[Done]:
    """CONTINUE with the new value, the pinned bits as they were set before."""
    data = _register_write(case)
    pinned = data.old & effect.argument
    yield Answer(case.event, Action.CONTINUE, NewValue(data.new | pinned))
    return Done(f"kept the bits {pinned:#x}" if pinned else "let through")


def skip_or_fault(case: Examination, effect: Effect) -> Procedure[Done]:
    """Step over a pure store; raise #GP where stepping over would lose a register or flags."""
    instruction = yield from case.decoded()
    if instruction is not None and instruction.is_pure_store:
        return (yield from skip(case, effect))
    return (yield from inject_and_retry(case, effect))


def skip(case: Examination, effect: Effect) -> Procedure[Done]:
    """SET_REGISTERS with RIP behind the instruction, then RETRY: the vCPU goes on there."""
    instruction = yield from case.decoded()
    if instruction is None:
        return (yield from inject_and_retry(case, effect))
    regs = case.event.regs
    past = regs._replace(rip=(regs.rip + instruction.length) & RIP_MASK)
    result = yield from ask(SetRegisters(case.event.vcpu, past))
    if isinstance(result, Refused):
        return (yield from inject_and_retry(case, effect))
    yield Answer(case.event, Action.RETRY)
    return Done("skipped the instruction", goes_on=True)


def crash(case: Examination, effect: Effect) -> Procedure[Done]:
    """CRASH: the VMM stops the guest. A register write is refused as well, should the guest run on."""
    data = case.event.data
    kept = NewValue(data.old) if isinstance(data, (CrData, MsrData)) else None
    yield Answer(case.event, Action.CRASH, kept)
    return Done("asked the VMM to stop the guest")


MECHANISMS: Mapping[Mechanism, Carry] = {
    Mechanism.PASS: let_pass,
    Mechanism.NEW_VALUE: write_new_value,
    Mechanism.OLD_VALUE: keep_old_value,
    Mechanism.PINNED_VALUE: pin_bits,
    Mechanism.SKIP_OR_FAULT: skip_or_fault,
    Mechanism.SKIP: skip,
    Mechanism.FAULT: inject_and_retry,
    Mechanism.FAULT_UNTIL_TRAP: inject_until_delivered,
    Mechanism.CRASH: crash,
}
"""How each effect on an event with a reply is carried out. RETRY is counted where events are judged, and what has no
reply is only recorded there."""


def _register_write(case: Examination) -> CrData | MsrData:
    data = case.event.data
    assert isinstance(data, (CrData, MsrData)), "only CR and MSR events carry a value"
    return data

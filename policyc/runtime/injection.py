"""Raising exceptions in the guest: asked for with INJECT_EXCEPTION, confirmed by the kernel's TRAP event.

The kernel drops an injected exception where something else has to be delivered first, and TRAP says what was. An event
that is answered RETRY comes back then by itself. A hypercall doesn't, so its exception is asked for again, from the
TRAP event. TRAP's RIP isn't looked at: the guest may have run on by then.
"""

from __future__ import annotations

from policyc.catalog import VECTORS, EffectKind
from policyc.kvmi import Action, ErrorCode, Event, EventKind, InjectException, Refused, TrapData
from policyc.plan.model import Effect
from policyc.runtime.facts import Examination
from policyc.runtime.outcome import Delivered, Done
from policyc.runtime.procedure import Answer, Procedure, TimedOutError, ask, next_event

__all__ = ["MAX_INJECTIONS", "delivered_by", "inject_and_retry", "inject_until_delivered"]

MAX_INJECTIONS = 3
"""How often an exception is asked for on behalf of one hypercall."""

TRAP_PATIENCE = 5.0
"""Seconds until an exception counts as unconfirmed: as long as any command may take."""

BUSY = "the kernel takes no exception now (EBUSY)"
"""One is still to be delivered, or (v12) the vCPU is being stepped: a moment later it may be taken."""


def inject_and_retry(case: Examination, effect: Effect) -> Procedure[Done]:
    """INJECT_EXCEPTION, then RETRY: whatever becomes of the exception, the access isn't performed.

    A `deny` that comes here names no exception: it is carried out by #GP.
    """
    vector = _vector(effect)
    refusal = yield from _ask_for(case.event, vector)
    yield Answer(case.event, Action.RETRY)
    if refusal is not None and refusal != BUSY:
        return Done(f"had the guest try again: {refusal}")
    trap = yield from _next_trap(case.event.vcpu)
    if trap is None:
        unconfirmed = f"asked for exception {vector}, which the kernel never confirmed"
        return Done(unconfirmed if refusal is None else f"had the guest try again: {refusal}")
    yield Answer(trap, Action.CONTINUE)
    # What was pending may have been the same: asked for at the last attempt, while the vCPU was being stepped.
    delivered = delivered_by(trap)
    if delivered != Delivered(vector, 0):
        return Done(f"had the guest try again: exception {vector} was overtaken by {delivered.vector}", delivered)
    return Done(f"injected exception {vector}", delivered)


def inject_until_delivered(case: Examination, effect: Effect) -> Procedure[Done]:
    """INJECT_EXCEPTION, then CONTINUE, and again from the TRAP event of whatever was delivered instead.

    A hypercall does nothing beyond its event, so where the exception is refused for good nothing is lost but the
    punishment. An exception that is still pending is waited for: its TRAP comes first.
    """
    vector = _vector(effect)
    event, delivered = case.event, None
    for _ in range(MAX_INJECTIONS):
        refusal = yield from _ask_for(event, vector)
        yield Answer(event, Action.CONTINUE)
        if refusal is not None and refusal != BUSY:
            return Done(f"not injected: {refusal}", delivered)
        trap = yield from _next_trap(event.vcpu)
        if trap is None:
            return Done(f"asked for exception {vector}, which the kernel never confirmed", delivered)
        event, delivered = trap, delivered_by(trap)
        if refusal is None and delivered == Delivered(vector, 0):
            yield Answer(event, Action.CONTINUE)
            return Done(f"injected exception {vector}", delivered)
    yield Answer(event, Action.CONTINUE)
    return Done(f"not injected: overtaken {MAX_INJECTIONS} times", delivered)


def delivered_by(trap: Event) -> Delivered:
    """What a TRAP event says."""
    data = trap.data
    assert isinstance(data, TrapData), "TRAP events carry what was delivered"
    return Delivered(data.vector, data.error_code)


def _vector(effect: Effect) -> int:
    return effect.argument if effect.kind in (EffectKind.FAULT, EffectKind.INJECT) else VECTORS["gp"]


def _ask_for(event: Event, vector: int) -> Procedure[str | None]:
    """Ask for the exception; None if the kernel took it, else why not. It has to be answered in either case."""
    try:
        result = yield from ask(InjectException(event.vcpu, vector))
    except TimedOutError:
        return "the kernel didn't say whether it takes the exception"
    if not isinstance(result, Refused):
        return None
    return BUSY if result.errno == ErrorCode.EBUSY else f"the exception was refused ({result.name})"


def _next_trap(vcpu: int) -> Procedure[Event | None]:
    """The TRAP event, which the kernel sends before any other event of that vCPU; None if it doesn't."""
    return (yield from next_event(vcpu, lambda event: event.kind is EventKind.TRAP, TRAP_PATIENCE))

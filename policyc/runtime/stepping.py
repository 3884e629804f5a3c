"""Accesses that CONTINUE can't perform: how the guest gets past them.

The kernel of kvmi-v12 sends the same event again, for ever, where its emulator doesn't know the instruction. Then it's
stepped, alone (`single_step`); `_without_step` says what happens where it can't be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyc.addresses import Gfn, frame_start, gfn_of
from policyc.catalog import VECTORS, Access, EffectKind, Mechanism
from policyc.kvmi import Action, Event, EventKind, PageAccess, set_page
from policyc.plan.model import Effect
from policyc.runtime.facts import Examination
from policyc.runtime.mechanisms import MECHANISMS
from policyc.runtime.opened import open_page, page_details
from policyc.runtime.procedure import Answer, Emit, Procedure, TimedOutError, ask, time_now
from policyc.runtime.reach import reach
from policyc.runtime.records import JsonObject, StateRecord
from policyc.runtime.repeats import MAX_FAILURES
from policyc.runtime.single_step import Attempt, Came, is_denied, step_alone

if TYPE_CHECKING:
    from policyc.runtime.state import State

__all__ = ["get_past"]

GENERAL_PROTECTION = Effect(EffectKind.FAULT, VECTORS["gp"])


FAILURES = {Came.FAILED: MAX_FAILURES // 3, Came.TOO_SLOW: 1, Came.REFUSED: 1}
"""How much each says: a busy host may be slow once, what the processor itself gives up it gives up again."""


def get_past(state: State, case: Examination) -> Procedure[str]:
    """Answer a page fault that is to be let through and has come again; what was done, in words. Never raises."""
    try:
        return (yield from _get_past(state, case))
    except TimedOutError:
        # Nothing has been answered yet where this comes from, and nothing was changed.
        yield Answer(case.event, Action.RETRY)
        return "let the guest try again: the kernel doesn't answer"


def _get_past(state: State, case: Examination) -> Procedure[str]:
    event, stepping = case.event, state.stepping
    instruction = yield from case.decoded()
    if not state.is_guarding:
        return (yield from _continue(event, "let through"))
    doubtful = instruction is not None and instruction.is_emulated
    if doubtful and not stepping.repeats.is_loop(event):
        stepping.repeats.take_for_loop(event)
        return (yield from _continue(event, "let through"))
    if stepping.busy:
        return (yield from _continue(event, "let through, after the step that is under way"))
    if not stepping.available:
        return (yield from _without_step(state, case, Came.UNSUPPORTED, doubtful=doubtful))
    if stepping.repeats.is_stuck(event):
        return (yield from _without_step(state, case, Came.STUCK, doubtful=doubtful))
    if state.scheduler.silent:
        # Another vCPU may run for all we know, and asking it again would tell nothing new.
        return (yield from _without_step(state, case, Came.LATE, doubtful=doubtful))
    if not stepping.budget.allows((yield from time_now())):
        return (yield from _without_step(state, case, None, doubtful=doubtful))
    stepping.busy = stepping.chores = True
    try:
        attempt = yield from step_alone(state, event)
    finally:
        stepping.busy = False
    came = yield from _conclude(state, case, attempt)
    if came is Came.PERFORMED:
        return "performed by a single step"
    if came is None:
        return "let the guest try again"
    return (yield from _without_step(state, case, came, doubtful=doubtful))


def _conclude(state: State, case: Examination, attempt: Attempt) -> Procedure[Came | None]:
    """Write down what happened, and answer what stands there now, unless it's the event that all began with.

    None where the instruction wasn't executed and there's nothing left to be answered.
    """
    standing, came, repeats = attempt.standing, attempt.came, state.stepping.repeats
    if came is Came.PERFORMED:
        repeats.forget(case.event.vcpu)
    elif came in FAILURES:
        repeats.note_failure(case.event, FAILURES[came])
    fact = f"stepping an instruction of vCPU {case.event.vcpu}: {came.value}"
    severity = "info" if came is Came.PERFORMED else "high"
    yield Emit(StateRecord(state.phase.value, fact, severity, _details(state, case, attempt.lifted)))
    if standing is case.event:
        return came
    if standing is not None and standing.kind is EventKind.SINGLESTEP:
        yield Answer(standing, Action.CONTINUE)
    elif standing is not None and came is Came.DENIED:
        yield from _fault_or_retry(Examination(standing, state.bound))
    elif standing is not None:
        state.stepping.deferred.append(standing)
        state.stepping.chores = True
    return came if came is Came.PERFORMED else None


def _without_step(state: State, case: Examination, came: Came | None, *, doubtful: bool) -> Procedure[str]:
    """What is left where the instruction isn't stepped; `came` is None where there have been too many steps.

    A page on which a rule denies something is opened only on hosts that can't step at all: whatever the guest can bring
    about (too many steps, a vCPU that doesn't stand still, a step that fails) must not lay it open.
    """
    event = case.event
    if came is Came.DENIED:
        return (yield from _fault(case))
    if doubtful or not state.is_guarding:
        state.stepping.repeats.take_for_loop(event)
        return (yield from _continue(event, "let through"))
    if (yield from is_denied(state, event, (yield from reach(case)))):
        return (yield from _fault(case))
    gfn = gfn_of(event.gpa)
    holds_denied = not state.monitor and bool(state.bound.denied_spans(gfn, Access.R | Access.W | Access.X))
    if holds_denied and came is Came.STUCK:
        return (yield from _fault(case))
    why = "there were too many steps in the last second" if came is None else came.value
    if holds_denied and came is not Came.UNSUPPORTED:
        return (yield from _continue(event, f"let the guest try again: {why}"))
    fact = f"KVM can't perform `{_text(case)}`, and {why}"
    if gfn not in state.bound.rights:
        # Nothing is guarded there any more, and the kernel didn't take back what it had restricted.
        yield from ask(set_page(frame_start(gfn), PageAccess.RWX))
        yield Answer(event, Action.RETRY)
        return "released the page"
    if not (yield from open_page(state, gfn, fact, _details(state, case, {}))):
        return (yield from _continue(event, f"let the guest try again: {why}"))
    state.stepping.repeats.forget(event.vcpu)
    yield Answer(event, Action.RETRY)
    return "opened the page"


def _continue(event: Event, done: str) -> Procedure[str]:
    yield Answer(event, Action.CONTINUE)
    return done


def _fault(case: Examination) -> Procedure[str]:
    yield from MECHANISMS[Mechanism.FAULT](case, GENERAL_PROTECTION)
    return f"injected exception {GENERAL_PROTECTION.argument}: the instruction can't be let through"


def _fault_or_retry(case: Examination) -> Procedure[None]:
    """The same for an event that nobody else will answer."""
    try:
        yield from _fault(case)
    except TimedOutError:
        yield Answer(case.event, Action.RETRY)


def _text(case: Examination) -> str:
    return case.instruction.text if case.instruction is not None else "an instruction that can't be decoded"


def _details(state: State, case: Examination, lifted: dict[Gfn, Access]) -> JsonObject:
    event = case.event
    about: JsonObject = {
        "vcpu": event.vcpu,
        "rip": hex(event.rip),
        "gpa": hex(event.gpa),
        "instruction": _text(case),
    }
    return page_details(state, lifted or [gfn_of(event.gpa)], about)

"""The judgement of one event: what the policy wants, how it is carried out, and what is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from policyc.catalog import EVENTS, LEGALITY, Access, Column, EffectKind
from policyc.kvmi import Action, Event, EventKind, PageAccess
from policyc.plan.model import Effect
from policyc.plan.verdicts import Verdict
from policyc.runtime.event_keys import key_of
from policyc.runtime.facts import Examination
from policyc.runtime.futile import PAUSE
from policyc.runtime.mechanisms import MECHANISMS, keep_old_value, let_pass
from policyc.runtime.moved import has_moved
from policyc.runtime.outcome import Done
from policyc.runtime.procedure import Answer, Emit, Procedure, Sleep, TimedOutError, next_event, time_now
from policyc.runtime.records import StateRecord, VerdictRecord
from policyc.runtime.state import State
from policyc.runtime.stepping import get_past

__all__ = ["RETRY_PATIENCE", "count", "judge", "under_ceiling"]

LET_PASS = Effect(EffectKind.LOG)

_RUNS_ON = "vCPU {} runs on after CRASH: what would stop the guest is kept from happening from now on"

RETRY_PATIENCE = 1.0
"""Seconds within which the guest has to try again, or `retry` counts from the beginning the next time."""


def judge(state: State, event: Event) -> Procedure[None]:
    """Decide, carry out, record; as often as the guest tries the same again where `retry` lets it."""
    retried, column = 0, _column(event)
    while True:
        case = Examination(event, state.bound)
        try:
            verdict = yield from case.verdict()
            while (yield from has_moved(state, event, verdict)) or case.bound is not state.bound:
                case = Examination(event, state.bound)
                verdict = yield from case.verdict()
            verdict = under_ceiling(state, verdict)
            effect = state.aftermath.temper(verdict.effect or LET_PASS, column)
            if effect.retries <= retried:
                if state.aftermath.first_notice(event.vcpu):
                    yield Emit(StateRecord(state.phase.value, _RUNS_ON.format(event.vcpu), "critical"))
                worth_a_record = effect.kind is not EffectKind.CRASH or state.aftermath.note(event.vcpu, column)
                if event.kind is EventKind.PF and effect.kind > EffectKind.LOG and state.futile.note(event):
                    yield Sleep(PAUSE)
                if _comes_again(state, event, effect):
                    done = Done((yield from get_past(state, case)))
                else:
                    done = yield from MECHANISMS[LEGALITY[effect.kind][column]](case, effect)
                if done.goes_on:
                    state.futile.forget(event.vcpu)
                break
        except TimedOutError as error:
            yield from _answer_unjudged(state, case)
            how = "let through unjudged" if state.monitor else "answered strictly"
            yield Emit(StateRecord(state.phase.value, f"an event was {how}: {error}", "high"))
            return
        # Whoever lets two events take turns starts the count anew each time, and gains nothing by it: RETRY performs
        # neither access, so it's a way for the guest to stand still, as a loop is.
        yield Answer(event, Action.RETRY)
        retried += 1
        worth_a_record, done = True, Done("had the guest try again")
        again = yield from next_event(event.vcpu, _repeats(event), RETRY_PATIENCE)
        if again is None:
            break
        event = again
    count(state, verdict)
    # Where nothing but an `allow` applies, nothing would ever be done: there is nothing to record.
    if not worth_a_record or verdict.would is None:
        return
    thinned = state.thinner.admit(verdict.rules, (yield from time_now()))
    if thinned is not None:
        text = case.instruction.text if case.instruction is not None else None
        yield Emit(VerdictRecord(event, verdict, done.text, case.known_size, text, thinned, retried, done.delivered))


def _comes_again(state: State, event: Event, effect: Effect) -> bool:
    """Whether an access that is let through has been let through before, and nothing came of it."""
    if event.kind is not EventKind.PF or effect.kind > EffectKind.LOG:
        return False
    if event.access & PageAccess.W:
        state.bound.code_cache.written(event.gpa)
    return state.stepping.repeats.note(event, event.gpa)


def _repeats(event: Event) -> Callable[[Event], bool]:
    """Whether another event of the same vCPU is this one again."""
    return lambda other: (other.kind, other.rip, other.data) == (event.kind, event.rip, event.data)


def _answer_unjudged(state: State, case: Examination) -> Procedure[None]:
    """What can be said without asking the kernel for anything: the old value, or not yet; anything, if monitored."""
    if state.monitor:
        yield from let_pass(case, LET_PASS)
    elif case.event.kind in (EventKind.CR, EventKind.MSR):
        yield from keep_old_value(case, LET_PASS)
    else:
        yield Answer(case.event, Action.RETRY if Action.RETRY in case.event.actions else Action.CONTINUE)


def _column(event: Event) -> Column:
    if event.kind is EventKind.PF:
        return Column.WRITE if int(event.access) & Access.W else Column.READ_EXECUTE
    return EVENTS[key_of(event).word].column


def count(state: State, verdict: Verdict) -> None:
    counters = state.counters
    if not (verdict.rules or verdict.set_aside or verdict.exempted):
        # As `Verdict.collateral`, which would be a call in the most common case of all.
        counters.collateral += 1
        return
    if verdict.effect is not None:
        word = verdict.effect.kind.name.lower()
        counters.acted[word] = counters.acted.get(word, 0) + 1
    for index in verdict.exempted:
        counters.exempted[index] = counters.exempted.get(index, 0) + 1


def under_ceiling(state: State, verdict: Verdict) -> Verdict:
    """The verdict as `run --monitor` has it: nothing gives the reply, whatever would; who logs only, still does."""
    effect = verdict.effect
    if not state.monitor or effect is None or (effect.kind <= EffectKind.LOG and not effect.retries):
        return verdict
    return replace(verdict, effect=None)

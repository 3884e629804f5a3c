"""Events from the guest's vCPUs: the hot path, the judgement, and those that aren't for the policy.

The common case, a page fault whose verdict is known from its address alone, is answered in one look-up; everything else
runs as a procedure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from policyc.addresses import gfn_of
from policyc.catalog import EVENTS, LEGALITY, Access, Column, EffectKind
from policyc.kvmi import (
    Action,
    Event,
    EventKind,
    PageAccess,
)
from policyc.plan.model import Effect
from policyc.plan.verdicts import NoticedEvent, Origin, Verdict, decide
from policyc.runtime.arming import guard_vcpu
from policyc.runtime.event_keys import key_of
from policyc.runtime.facts import Examination
from policyc.runtime.futile import PAUSE
from policyc.runtime.injection import delivered_by
from policyc.runtime.life import on_leave, start
from policyc.runtime.mechanisms import MECHANISMS, keep_old_value
from policyc.runtime.moved import has_moved
from policyc.runtime.msr_watch import MsrWatch
from policyc.runtime.outcome import Done
from policyc.runtime.procedure import Answer, Emit, Procedure, Sleep, TimedOutError, next_event, time_now
from policyc.runtime.records import StateRecord, VerdictRecord, delivered_json
from policyc.runtime.state import GUARDING, Phase, State
from policyc.runtime.stepping import get_past
from policyc.runtime.steps import (
    Leave,
    Output,
    Reply,
    Write,
)

__all__ = ["on_event"]

LET_PASS = Effect(EffectKind.LOG)

_RUNS_ON = "vCPU {} runs on after CRASH: what would stop the guest is kept from happening from now on"

RETRY_PATIENCE = 1.0
"""Seconds within which the guest has to try again, or `retry` counts from the beginning the next time."""


def on_event(state: State, now: float, event: Event, out: list[Output]) -> None:
    """Answer an event: at once where a look-up is enough, else as a procedure."""
    state.counters.events += 1
    if state.scheduler.awaiting and state.scheduler.offer(event, now, out, judged=event.kind not in _OTHERS):
        return
    bound = state.bound
    if state.msr_watch is not None:
        _look_at_msrs(state, state.msr_watch, event, out)
    if event.kind is EventKind.PF:
        gpa = event.gpa
        verdict = bound.fixed_verdict(event.access, gpa)
        if state.write_watch is not None and int(event.access) & Access.W:
            state.write_watch.writes[gfn_of(gpa)] += 1
        passes = verdict is not None and (verdict.effect is None or _only_logs(verdict.effect))
        if verdict is not None and passes and not state.stepping.repeats.note(event, gpa):
            out.append(Reply(event, Action.CONTINUE))
            if verdict.would is not None:
                verdict = _under_ceiling(state, verdict)
                thinned = state.thinner.admit(verdict.rules, now)
                if thinned is not None:
                    out.append(Write(VerdictRecord(event, verdict, "let through", thinned=thinned)))
            _count(state, verdict)
            return
    _OTHERS.get(event.kind, _judge_event)(state, now, event, out)


def _look_at_msrs(state: State, watch: MsrWatch, event: Event, out: list[Output]) -> None:
    """Compare what the event carries; one about an MSR shows that this kernel reports them after all."""
    if event.kind is EventKind.MSR:
        state.msr_watch = None
    elif event.needs_reply:
        out.extend(map(Write, watch.look(event)))


def _under_ceiling(state: State, verdict: Verdict) -> Verdict:
    """The verdict as `run --monitor` has it: nothing gives the reply, whatever would."""
    return replace(verdict, effect=None) if state.monitor else verdict


def _only_logs(effect: Effect) -> bool:
    return effect.kind <= EffectKind.LOG and not effect.retries


def _count(state: State, verdict: Verdict) -> None:
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


def _judge_event(state: State, now: float, event: Event, out: list[Output]) -> None:
    start(state, _judge(state, event), now, out)


def _judge(state: State, event: Event) -> Procedure[None]:
    """Decide, carry out, record; as often as the guest tries the same again where `retry` lets it."""
    retried, column = 0, _column(event)
    while True:
        case = Examination(event, state.bound)
        try:
            verdict = yield from case.verdict()
            if (yield from has_moved(state, event, verdict)):
                case = Examination(event, state.bound)
                verdict = yield from case.verdict()
            verdict = _under_ceiling(state, verdict)
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
            yield from _answer_strictly(case)
            yield Emit(StateRecord(state.phase.value, f"an event was answered strictly: {error}", "high"))
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
    _count(state, verdict)
    # Where nothing but an `allow` applies, nothing would ever be done: there is nothing to record.
    if not worth_a_record or verdict.would is None:
        return
    thinned = state.thinner.admit(verdict.rules, (yield from time_now()))
    if thinned is not None:
        text = case.instruction.text if case.instruction is not None else None
        yield Emit(VerdictRecord(event, verdict, done.text, case.size, text, thinned, retried, done.delivered))


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


def _answer_strictly(case: Examination) -> Procedure[None]:
    """What can be said without asking the kernel for anything: the old value, or not yet."""
    if case.event.kind in (EventKind.CR, EventKind.MSR):
        yield from keep_old_value(case, LET_PASS)
    else:
        yield Answer(case.event, Action.RETRY if Action.RETRY in case.event.actions else Action.CONTINUE)


def _column(event: Event) -> Column:
    if event.kind is EventKind.PF:
        return Column.WRITE if int(event.access) & Access.W else Column.READ_EXECUTE
    return EVENTS[key_of(event).word].column


def _on_standing_vcpu(state: State, now: float, event: Event, out: list[Output]) -> None:
    """Let a vCPU that was paused or created wait while the guest is being armed; later, guard it at once."""
    if state.phase is Phase.BINDING:
        state.scheduler.hold(event, now, out)
    elif not state.stepping.standstill.take(event, state.scheduler, now, out, busy=state.stepping.busy):
        _welcome_vcpu(state, now, event, out)


def _welcome_vcpu(state: State, now: float, event: Event, out: list[Output]) -> None:
    """A vCPU before its first instruction: give it the plan's events, then let it run."""
    start(state, _guard(state, event), now, out)


def _guard(state: State, event: Event) -> Procedure[None]:
    if state.phase in GUARDING:
        try:
            refused = yield from guard_vcpu(state.plan, event.vcpu)
        except TimedOutError as error:
            refused = (str(error),)
        if refused and state.phase in GUARDING:
            fact = f"vCPU {event.vcpu} isn't guarded: {'; '.join(refused)}"
            state.degrade()
            yield Emit(StateRecord(Phase.DEGRADED.value, fact, "critical"))
    if event.kind is EventKind.CREATE_VCPU:
        yield from _judge(state, event)
    else:
        yield Answer(event, Action.CONTINUE)


def _on_trap(state: State, now: float, event: Event, out: list[Output]) -> None:
    """An exception of ours is confirmed to whoever waits for that; this one was delivered on behalf of nobody."""
    out.append(Reply(event, Action.CONTINUE))
    delivered = delivered_by(event)
    fact = f"exception {delivered.vector} was delivered to vCPU {event.vcpu}, and nobody waits for that"
    out.append(Write(StateRecord(state.phase.value, fact, "high", delivered_json(delivered))))


def _on_unasked(state: State, now: float, event: Event, out: list[Output]) -> None:
    """An event that nobody switched on: let the vCPU go on, and say so."""
    out.append(Reply(event, Action.CONTINUE))
    if event.vcpu in state.stepping.stepped:
        return
    fact = f"vCPU {event.vcpu} sent a {event.kind.value} event that nobody asked for"
    out.append(Write(StateRecord(state.phase.value, fact, "high")))


def _on_unhook(state: State, now: float, event: Event, out: list[Output]) -> None:
    """The VMM waits for us to leave, not for a reply: what rules say of it is recorded."""
    verdict = decide(state.bound.table, NoticedEvent(key_of(event), Origin(rip=0)))
    if isinstance(verdict, Verdict) and verdict.would is not None:
        verdict = _under_ceiling(state, verdict)
        _count(state, verdict)
        thinned = state.thinner.admit(verdict.rules, now)
        if thinned is not None:
            out.append(Write(VerdictRecord(event, verdict, "let go", thinned=thinned)))
    on_leave(state, now, Leave("the VMM asks to be let go"), out)


def _on_command_error(state: State, now: float, event: Event, out: list[Output]) -> None:
    out.append(Write(StateRecord(state.phase.value, f"a command failed unseen: {event.data}", "high")))


_OTHERS: Mapping[EventKind, Callable[[State, float, Event, list[Output]], None]] = {
    EventKind.PAUSE: _on_standing_vcpu,
    EventKind.CREATE_VCPU: _on_standing_vcpu,
    EventKind.TRAP: _on_trap,
    EventKind.SINGLESTEP: _on_unasked,
    EventKind.UNHOOK: _on_unhook,
    EventKind.CMD_ERROR: _on_command_error,
}
"""The events that aren't for the policy, or not only; every other kind is judged."""

"""Events from the guest's vCPUs: the hot path, the judgement, and those that aren't for the policy.

The common case, a page fault whose verdict is known from its address alone, is answered in one look-up; everything else
runs as a procedure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from policyc.catalog import EVENTS, LEGALITY, Access, Column, EffectKind
from policyc.kvmi import (
    Action,
    Event,
    EventKind,
    PageAccess,
)
from policyc.plan.model import Effect
from policyc.plan.verdicts import Verdict
from policyc.runtime.arming import guard_vcpu
from policyc.runtime.event_keys import key_of
from policyc.runtime.facts import Examination
from policyc.runtime.life import on_leave, start
from policyc.runtime.mechanisms import MECHANISMS, keep_old_value
from policyc.runtime.procedure import Answer, Emit, Procedure, TimedOutError
from policyc.runtime.records import StateRecord, VerdictRecord
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


def on_event(state: State, now: float, event: Event, out: list[Output]) -> None:
    """Answer an event: at once where a look-up is enough, else as a procedure."""
    state.counters.events += 1
    if state.scheduler.awaiting and state.scheduler.offer(event, now, out, judged=event.kind not in _OTHERS):
        return
    bound = state.bound
    if event.kind is EventKind.PF:
        gpa = event.gpa
        verdict = bound.fixed_verdict(event.access, gpa)
        passes = verdict is not None and (verdict.effect is None or verdict.effect.kind <= EffectKind.LOG)
        if verdict is not None and passes and not state.stepping.repeats.note(event, gpa):
            out.append(Reply(event, Action.CONTINUE))
            if verdict.would is not None:
                thinned = state.thinner.admit(verdict.rules, now)
                if thinned is not None:
                    out.append(Write(VerdictRecord(event, verdict, "let through", thinned=thinned)))
            _count(state, verdict)
            return
    _OTHERS.get(event.kind, _judge_event)(state, now, event, out)


def _count(state: State, verdict: Verdict) -> None:
    counters = state.counters
    if verdict.collateral:
        counters.collateral += 1
    elif verdict.effect is not None:
        word = verdict.effect.kind.name.lower()
        counters.acted[word] = counters.acted.get(word, 0) + 1
    for index in verdict.exempted:
        counters.exempted[index] = counters.exempted.get(index, 0) + 1


def _judge_event(state: State, now: float, event: Event, out: list[Output]) -> None:
    start(state, _judge(state, event, now), now, out)


def _judge(state: State, event: Event, now: float) -> Procedure[None]:
    case, again = Examination(event, state.bound), False
    try:
        verdict = yield from case.verdict()
        if state.monitor:
            verdict = replace(verdict, effect=None)
        effect = verdict.effect or LET_PASS
        if event.kind is EventKind.PF and effect.kind <= EffectKind.LOG:
            if event.access & PageAccess.W:
                state.bound.code_cache.written(event.gpa)
            again = state.stepping.repeats.note(event, event.gpa)
        if again:
            done = yield from get_past(state, case)
        else:
            done = yield from MECHANISMS[LEGALITY[effect.kind][_column(event)]](case, effect)
    except TimedOutError as error:
        yield from _answer_strictly(case)
        yield Emit(StateRecord(state.phase.value, f"an event was answered strictly: {error}", "high"))
        return
    _count(state, verdict)
    # Where nothing but an `allow` applies, nothing would ever be done: there is nothing to record.
    thinned = state.thinner.admit(verdict.rules, now) if verdict.would is not None else None
    if thinned is not None:
        text = case.instruction.text if case.instruction is not None else None
        yield Emit(VerdictRecord(event, verdict, done, case.size, text, thinned))


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
    start(state, _guard(state, event, now), now, out)


def _guard(state: State, event: Event, now: float) -> Procedure[None]:
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
        yield from _judge(state, event, now)
    else:
        yield Answer(event, Action.CONTINUE)


def _on_trap(state: State, now: float, event: Event, out: list[Output]) -> None:
    """The kernel confirms what it delivered; if that wasn't ours, the access comes back by itself."""
    out.append(Reply(event, Action.CONTINUE))


def _on_unasked(state: State, now: float, event: Event, out: list[Output]) -> None:
    """An event that nobody switched on: let the vCPU go on, and say so."""
    out.append(Reply(event, Action.CONTINUE))
    if event.vcpu in state.stepping.stepped:
        return
    fact = f"vCPU {event.vcpu} sent a {event.kind.value} event that nobody asked for"
    out.append(Write(StateRecord(state.phase.value, fact, "high")))


def _on_unhook(state: State, now: float, event: Event, out: list[Output]) -> None:
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

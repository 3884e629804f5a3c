"""Events from the guest's vCPUs: the hot path and those that aren't for the policy.

The common case, a page fault whose verdict is known from its address alone, is answered in one look-up; everything else
runs as a procedure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policyc.addresses import gfn_of
from policyc.catalog import Access, EffectKind
from policyc.kvmi import (
    Action,
    Event,
    EventKind,
)
from policyc.plan.accesses import NoticedEvent, Origin
from policyc.plan.model import Effect
from policyc.plan.verdicts import Verdict, decide
from policyc.runtime.arming import guard_vcpu
from policyc.runtime.event_keys import key_of
from policyc.runtime.injection import delivered_by
from policyc.runtime.judging import count, judge, under_ceiling
from policyc.runtime.life import on_leave, start
from policyc.runtime.msr_watch import MsrWatch
from policyc.runtime.procedure import Answer, Emit, Procedure, TimedOutError
from policyc.runtime.records import StateRecord, VerdictRecord, delivered_json
from policyc.runtime.single_step import switch_off
from policyc.runtime.state import Phase, State
from policyc.runtime.steps import (
    Leave,
    Output,
    Reply,
    Write,
)

__all__ = ["on_event"]


def on_event(state: State, now: float, event: Event, out: list[Output]) -> None:
    """Answer an event: at once where a look-up is enough, else as a procedure."""
    scheduler = state.scheduler
    # What no vCPU stands at, such as a VMM's wish to be let go, tells of none, and is never what somebody waits for.
    if scheduler.forgotten.silent and event.needs_reply:
        scheduler.forgotten.heard(event.vcpu)
    offered = scheduler.awaiting and event.needs_reply
    if offered and scheduler.offer(event, now, out, judged=event.kind not in _OTHERS):
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
                verdict = under_ceiling(state, verdict)
                _record(state, now, event, verdict, "let through", out)
            count(state, verdict)
            return
    _OTHERS.get(event.kind, _judge_event)(state, now, event, out)


def _record(state: State, now: float, event: Event, verdict: Verdict, done: str, out: list[Output]) -> None:
    """Write down what was done at once, as far as the rules' rate allows."""
    thinned = state.thinner.admit(verdict.rules, now)
    if thinned is not None:
        out.append(Write(VerdictRecord(event, verdict, done, thinned=thinned)))


def _take_up(state: State, now: float, event: Event, procedure: Procedure[None], out: list[Output]) -> None:
    """Let a procedure answer an event; its vCPU stands still until then."""
    state.scheduler.stand(event, now, out)
    start(state, procedure, now, out)


def _look_at_msrs(state: State, watch: MsrWatch, event: Event, out: list[Output]) -> None:
    """Compare what the event carries; one about an MSR shows that this kernel reports them after all."""
    if event.kind is EventKind.MSR:
        state.msr_watch = None
    elif event.needs_reply:
        out.extend(map(Write, watch.look(event)))


def _only_logs(effect: Effect) -> bool:
    return effect.kind <= EffectKind.LOG and not effect.retries


def _judge_event(state: State, now: float, event: Event, out: list[Output]) -> None:
    _take_up(state, now, event, judge(state, event), out)


def _on_standing_vcpu(state: State, now: float, event: Event, out: list[Output]) -> None:
    """Let a vCPU that was paused or created wait while the guest is being armed; later, guard it at once.

    One that has its events already was stopped for a step, which may be over by now.
    """
    scheduler, guarded = state.scheduler, event.kind is EventKind.PAUSE and event.vcpu in state.guarded
    if state.phase is Phase.BINDING or (guarded and event.vcpu in scheduler.standing.stopped):
        scheduler.hold(event, now, out)
    elif guarded:
        out.append(Reply(event, Action.CONTINUE))
    elif state.stepping.busy:
        # It comes into being just now, and must not run while pages are open.
        state.stepping.deferred.append(event)
        scheduler.stand(event, now, out)
    else:
        _take_up(state, now, event, _guard(state, event), out)


def _guard(state: State, event: Event) -> Procedure[None]:
    """A vCPU before its first instruction: give it the plan's events, then let it run."""
    if state.is_guarding:
        try:
            refused = yield from guard_vcpu(state.plan, event.vcpu)
        except TimedOutError as error:
            refused = (str(error),)
        if refused and state.is_guarding:
            fact = f"vCPU {event.vcpu} isn't guarded: {'; '.join(refused)}"
            state.degrade()
            yield Emit(StateRecord(Phase.DEGRADED.value, fact, "critical"))
        elif not refused:
            state.guarded.add(event.vcpu)
    if event.kind is EventKind.CREATE_VCPU:
        yield from judge(state, event)
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
    if event.vcpu in state.stepping.left_on:
        _take_up(state, now, event, _off_again(state, event), out)
        return
    out.append(Reply(event, Action.CONTINUE))
    if event.vcpu in state.stepping.stepped:
        return
    fact = f"vCPU {event.vcpu} sent a {event.kind.value} event that nobody asked for"
    out.append(Write(StateRecord(state.phase.value, fact, "high")))


def _off_again(state: State, event: Event) -> Procedure[None]:
    """A step's single-step is still on, since the kernel wouldn't switch it off."""
    yield from switch_off(state, event.vcpu)
    yield Answer(event, Action.CONTINUE)


def _on_unhook(state: State, now: float, event: Event, out: list[Output]) -> None:
    """The VMM waits for us to leave, not for a reply: what rules say of it is recorded."""
    verdict = decide(state.bound.table, NoticedEvent(key_of(event), Origin(rip=0)))
    if isinstance(verdict, Verdict) and verdict.would is not None:
        verdict = under_ceiling(state, verdict)
        count(state, verdict)
        _record(state, now, event, verdict, "let go", out)
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

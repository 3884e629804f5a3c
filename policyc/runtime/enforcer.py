"""The enforcer: `step(state, now, input) -> outputs`, for one connection to one guest.

No socket, no clock, no file: a transcript of inputs gives a transcript of outputs. The common case, a page fault whose
verdict is known from its address alone, is answered in one look-up; everything else runs as a procedure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from policyc.catalog import EVENTS, LEGALITY, Access, Column, EffectKind
from policyc.kvmi.dialects import Dialect
from policyc.kvmi.events import Event
from policyc.kvmi.handshake import Hello
from policyc.kvmi.messages import Command, GetInfo, GetRegisters, ReadPhysical, Refused, ReplyData, TranslateGva
from policyc.kvmi.tool import EventReplyRefused, Negotiated
from policyc.kvmi.vocabulary import Action, EventKind
from policyc.plan.model import Effect, Plan
from policyc.plan.verdicts import Verdict
from policyc.runtime.arming import Armed, ArmingOptions, Refusal, arm, disarm, guard_vcpu
from policyc.runtime.bound import UNBOUND, BoundPlan
from policyc.runtime.event_keys import key_of
from policyc.runtime.facts import Examination
from policyc.runtime.mechanisms import MECHANISMS, keep_old_value
from policyc.runtime.procedure import Answer, Emit, Procedure, TimedOutError, ask
from policyc.runtime.records import StateRecord, VerdictRecord
from policyc.runtime.steps import (
    Answered,
    Disconnect,
    GreetVmm,
    Input,
    Inquire,
    Leave,
    Lost,
    Output,
    Reply,
    TimePassed,
    Told,
    Write,
)
from policyc.runtime.tasks import Scheduler

__all__ = ["GUARDING", "Counters", "Phase", "State", "begin", "step"]

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for the hello, and again for finding out the dialect: QEMU's own handshake_timeout."""

LEAVE_TIMEOUT = 10.0
"""Seconds for lifting restrictions before we close all the same; QEMU cuts the line after 60."""


LET_PASS = Effect(EffectKind.LOG)


class Phase(Enum):
    """How far the enforcement of a guest has come."""

    HANDSHAKE = "HANDSHAKE"
    NEGOTIATING = "NEGOTIATING"
    BINDING = "BINDING"
    ARMED = "ARMED"
    DEGRADED = "DEGRADED"
    REFUSED = "REFUSED"
    UNHOOKING = "UNHOOKING"
    LOST = "LOST"


HARMLESS = (GetInfo, GetRegisters, ReadPhysical, TranslateGva)
"""Commands that others may have the enforcer send: they change nothing in the guest."""

GUARDING = frozenset({Phase.ARMED, Phase.DEGRADED})
"""The phases in which the plan is in force."""


@dataclass(slots=True)
class Counters:
    """What has happened on the connection.

    Attributes:
        events: answered events of all kinds.
        collateral: page faults that no rule is about.
        exempted: accesses that an exception let through.
        acted: events by what the policy did to them, in its own words.
    """

    events: int = 0
    collateral: int = 0
    exempted: int = 0
    acted: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class State:
    """Everything the enforcer knows of one connection.

    Attributes:
        plan: what is to be enforced.
        monitor: a ceiling: every event is let through, whatever the plan says, and recorded as it would have been.
        phase: how far enforcement has come.
        bound: the plan in this guest's memory; one without rules until it is armed.
        hello: how the VMM introduced the guest.
        dialect: what the kernel speaks.
        outcome: why the guest was refused, if it was.
        left: whether the restrictions have been lifted, so that nothing but open events keeps us here.
    """

    plan: Plan
    arming: ArmingOptions = field(default_factory=ArmingOptions)
    monitor: bool = False
    phase: Phase = Phase.HANDSHAKE
    bound: BoundPlan = UNBOUND
    hello: Hello | None = None
    dialect: Dialect | None = None
    outcome: Refusal | None = None
    left: bool = False
    counters: Counters = field(default_factory=Counters)
    scheduler: Scheduler = field(default_factory=Scheduler)
    phase_deadline: float | None = None

    @property
    def deadline(self) -> float | None:
        """When `step` wants to be called with `TimePassed` at the latest."""
        moments = [moment for moment in (self.phase_deadline, self.scheduler.deadline) if moment is not None]
        return min(moments, default=None)


def step(state: State, now: float, input: Input) -> list[Output]:
    """Take one input in and say what is to be done, in order. `now` is seconds on any clock that never runs back."""
    out: list[Output] = []
    if type(input) is Event:
        _on_event(state, now, input, out)
    else:
        _HANDLERS[type(input)](state, now, input, out)
    return out


def begin(state: State, now: float) -> None:
    """A VMM has connected."""
    state.phase_deadline = now + HANDSHAKE_TIMEOUT


# --- the hot path ---


def _on_event(state: State, now: float, event: Event, out: list[Output]) -> None:
    state.counters.events += 1
    bound = state.bound
    if event.kind is EventKind.PF:
        verdict = bound.fixed_verdict(event.access, event.gpa)
        if verdict is not None and (verdict.effect is None or verdict.effect.kind <= EffectKind.LOG):
            out.append(Reply(event, Action.CONTINUE))
            if verdict.rules:
                out.append(Write(VerdictRecord(event, verdict, "let through")))
            _count(state, verdict)
            return
    _EVENTS.get(event.kind, _judge_event)(state, now, event, out)


def _count(state: State, verdict: Verdict) -> None:
    counters = state.counters
    if verdict.collateral:
        counters.collateral += 1
    elif verdict.effect is not None:
        word = verdict.effect.kind.name.lower()
        counters.acted[word] = counters.acted.get(word, 0) + 1
    elif verdict.exempted:
        counters.exempted += 1


# --- events that need more than a look ---


def _judge_event(state: State, now: float, event: Event, out: list[Output]) -> None:
    _start(state, _judge(state, event), now, out)


def _judge(state: State, event: Event) -> Procedure[None]:
    case = Examination(event, state.bound)
    try:
        verdict = yield from case.verdict()
        effect = LET_PASS if state.monitor or verdict.effect is None else verdict.effect
        done = yield from MECHANISMS[LEGALITY[effect.kind][_column(event)]](case, effect)
    except TimedOutError as error:
        yield from _answer_strictly(case)
        yield Emit(StateRecord(state.phase.value, f"an event was answered strictly: {error}", "high"))
        return
    _count(state, verdict)
    if verdict.rules or verdict.exempted:
        text = case.instruction.text if case.instruction is not None else None
        yield Emit(VerdictRecord(event, verdict, done, case.size, text))


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


def _on_pause(state: State, now: float, event: Event, out: list[Output]) -> None:
    """Stand still for arming; later, it is a vCPU that has just been started."""
    if state.phase is Phase.BINDING:
        state.scheduler.hold(event, now, out)
    else:
        _welcome_vcpu(state, now, event, out)


def _welcome_vcpu(state: State, now: float, event: Event, out: list[Output]) -> None:
    """A vCPU before its first instruction: give it the plan's events, then let it run."""
    _start(state, _guard(state, event), now, out)


def _guard(state: State, event: Event) -> Procedure[None]:
    if state.phase in GUARDING:
        try:
            refused = yield from guard_vcpu(state.plan, event.vcpu)
        except TimedOutError as error:
            refused = (str(error),)
        if refused:
            fact = f"vCPU {event.vcpu} isn't guarded: {'; '.join(refused)}"
            state.phase = Phase.DEGRADED
            yield Emit(StateRecord(Phase.DEGRADED.value, fact, "critical"))
    yield Answer(event, Action.CONTINUE)


def _on_trap(state: State, now: float, event: Event, out: list[Output]) -> None:
    """The kernel confirms what it delivered; if that wasn't ours, the access comes back by itself."""
    out.append(Reply(event, Action.CONTINUE))


def _on_unhook(state: State, now: float, event: Event, out: list[Output]) -> None:
    _on_leave(state, now, Leave("the VMM asks to be let go"), out)


def _on_command_error(state: State, now: float, event: Event, out: list[Output]) -> None:
    out.append(Write(StateRecord(state.phase.value, f"a command failed unseen: {event.data}", "high")))


_EVENTS: Mapping[EventKind, Callable[[State, float, Event, list[Output]], None]] = {
    EventKind.PAUSE: _on_pause,
    EventKind.CREATE_VCPU: _welcome_vcpu,
    EventKind.TRAP: _on_trap,
    EventKind.UNHOOK: _on_unhook,
    EventKind.CMD_ERROR: _on_command_error,
}
"""The events that aren't for the policy, or not only; every other kind is judged."""


# --- the life of a connection ---


def _on_hello(state: State, now: float, hello: Hello, out: list[Output]) -> None:
    state.hello = hello
    out.append(GreetVmm())
    _enter(state, Phase.NEGOTIATING, f"guest `{hello.name}` connected", out, uuid=hello.uuid.hex())
    state.phase_deadline = now + HANDSHAKE_TIMEOUT


def _on_negotiated(state: State, now: float, negotiated: Negotiated, out: list[Output]) -> None:
    state.dialect = negotiated.dialect
    state.phase_deadline = None
    _enter(state, Phase.BINDING, f"the kernel speaks {negotiated.dialect.name}", out, dialect=negotiated.dialect.name)
    procedure = arm(state.plan, negotiated.dialect, state.arming)
    state.scheduler.start(procedure, lambda result, at, more: _on_armed(state, result, at, more), now, out)


def _on_armed(state: State, result: Armed | Refusal, now: float, out: list[Output]) -> None:
    if isinstance(result, Refusal):
        state.outcome = result
        _enter(state, Phase.REFUSED, result.fact, out, "critical", details=list(result.details))
        out.append(Disconnect(result.fact))
        return
    state.bound = result.bound
    _enter(
        state,
        Phase.ARMED,
        f"{len(result.bound.rights)} pages guarded on {result.vcpus} vCPU{'s' if result.vcpus > 1 else ''}",
        out,
        slide=hex(result.bound.slide),
        pages=len(result.bound.rights),
        vcpus=result.vcpus,
        stopped_ms=round(state.scheduler.longest_stop * 1000, 3),
        unmapped=[f"{p.place} [{p.gva_start:#x}, {p.gva_end:#x}): {p.reason}" for p in result.bound.unbound],
        notes=list(result.bound.notes),
    )


def _on_answered(state: State, now: float, answered: Answered, out: list[Output]) -> None:
    state.scheduler.answered(answered.ticket, answered.result, now, out)


def _on_reply_refused(state: State, now: float, refused: EventReplyRefused, out: list[Output]) -> None:
    fact = f"the kernel refused the reply to event {refused.seq}: {refused.name}"
    out.append(Write(StateRecord(state.phase.value, fact, "critical")))


def _on_time(state: State, now: float, passed: TimePassed, out: list[Output]) -> None:
    if state.phase_deadline is not None and now >= state.phase_deadline:
        state.phase_deadline = None
        leaving = state.phase is Phase.UNHOOKING
        silence = f"the peer was silent for {HANDSHAKE_TIMEOUT:g} seconds"
        out.append(Disconnect("the guest wasn't let go in time" if leaving else silence))
        return
    state.scheduler.time_passed(now, out)


def _on_leave(state: State, now: float, leave: Leave, out: list[Output]) -> None:
    if state.phase is Phase.UNHOOKING:
        return
    guarding = state.phase in GUARDING
    _enter(state, Phase.UNHOOKING, leave.reason, out)
    if not guarding:
        state.scheduler.cancel()
        state.scheduler.release(now, out)
        out.append(Disconnect(leave.reason))
        return
    state.phase_deadline = now + LEAVE_TIMEOUT
    _start(state, _let_go(state), now, out)


def _let_go(state: State) -> Procedure[None]:
    try:
        refused = yield from disarm(state.bound)
    except TimedOutError as error:
        refused = (str(error),)
    fact = f"restrictions lifted from {len(state.bound.rights)} pages"
    if refused:
        fact = f"not every restriction could be lifted: {'; '.join(refused)}"
    state.left = True
    yield Emit(StateRecord(Phase.UNHOOKING.value, fact, "high" if refused else "info"))


def _on_lost(state: State, now: float, lost: Lost, out: list[Output]) -> None:
    protected = state.phase in GUARDING
    state.scheduler.cancel()
    state.scheduler.held.clear()
    state.bound = UNBOUND
    state.phase_deadline = None
    if state.phase not in (Phase.REFUSED, Phase.UNHOOKING):
        fact = f"{lost.reason}: every restriction is gone" if protected else lost.reason
        _enter(state, Phase.LOST, fact, out, "critical" if protected else "high")


def _on_inquiry(state: State, now: float, inquiry: Inquire, out: list[Output]) -> None:
    """Ask the kernel for somebody else; what could change anything isn't asked."""
    if state.dialect is None or not isinstance(inquiry.command, HARMLESS):
        out.append(Told(inquiry.number, None))
        return
    state.scheduler.start(
        _inquire(inquiry.command), lambda result, at, more: more.append(Told(inquiry.number, result)), now, out
    )


def _inquire(command: Command) -> Procedure[ReplyData | Refused | None]:
    try:
        return (yield from ask(command))
    except TimedOutError:
        return None


# Each handler takes the one type it stands under.
_HANDLERS: Mapping[type, Callable[[State, float, Any, list[Output]], None]] = {
    Hello: _on_hello,
    Negotiated: _on_negotiated,
    Answered: _on_answered,
    EventReplyRefused: _on_reply_refused,
    TimePassed: _on_time,
    Leave: _on_leave,
    Lost: _on_lost,
    Inquire: _on_inquiry,
}


def _start(state: State, procedure: Procedure[None], now: float, out: list[Output]) -> None:
    state.scheduler.start(procedure, lambda result, at, more: _after(state, more), now, out)


def _after(state: State, out: list[Output]) -> None:
    """Close once the guest has been let go and every event that had come is answered."""
    if state.left and state.scheduler.is_idle:
        out.append(Disconnect("the guest has been let go"))


def _enter(state: State, phase: Phase, fact: str, out: list[Output], severity: str = "info", **details: object) -> None:
    state.phase = phase
    out.append(Write(StateRecord(phase.value, fact, severity, details)))

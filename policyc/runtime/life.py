"""The life of a connection: hello, dialect, arming, inquiries, farewell and loss, one handler each."""

from __future__ import annotations

from functools import partial

from policyc.kvmi import (
    Command,
    EventKind,
    EventReplyRefused,
    GetInfo,
    GetRegisters,
    Hello,
    Negotiated,
    ReadPhysical,
    Refused,
    ReplyData,
    TranslateGva,
)
from policyc.runtime.aftermath import Aftermath
from policyc.runtime.arming import Armed, arm, disarm
from policyc.runtime.bound import BoundPlan
from policyc.runtime.frame_trials import Watch
from policyc.runtime.futile import Futile
from policyc.runtime.locate import Refusal
from policyc.runtime.msr_watch import MsrWatch
from policyc.runtime.needs import needs_of
from policyc.runtime.new_vcpus import watch_vcpus
from policyc.runtime.procedure import Emit, Procedure, TimedOutError, ask
from policyc.runtime.records import StateRecord
from policyc.runtime.self_test import self_test
from policyc.runtime.state import Phase, State, enter
from policyc.runtime.stepping_state import Stepping
from policyc.runtime.steps import (
    Answered,
    Connected,
    Disconnect,
    GreetVmm,
    Inquire,
    Leave,
    Lost,
    Output,
    TimePassed,
    Told,
    Write,
)
from policyc.runtime.verify import Verification

__all__ = [
    "on_answered",
    "on_connected",
    "on_hello",
    "on_inquiry",
    "on_leave",
    "on_lost",
    "on_negotiated",
    "on_reply_refused",
    "on_time",
    "start",
]

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for the hello, and again for finding out the dialect: QEMU's own handshake_timeout."""

LEAVE_TIMEOUT = 10.0
"""Seconds for lifting restrictions before we close all the same; QEMU cuts the line after 60."""


HARMLESS = (GetInfo, GetRegisters, ReadPhysical, TranslateGva)
"""Commands that others may have the enforcer send: they change nothing in the guest."""


def on_connected(state: State, now: float, connected: Connected, out: list[Output]) -> None:
    """Give the peer so long for its hello."""
    state.phase_deadline = now + HANDSHAKE_TIMEOUT


def on_hello(state: State, now: float, hello: Hello, out: list[Output]) -> None:
    state.hello = hello
    out.append(GreetVmm())
    enter(state, Phase.NEGOTIATING, f"guest `{hello.name}` connected", out, uuid=hello.uuid.hex())
    state.phase_deadline = now + HANDSHAKE_TIMEOUT


def on_negotiated(state: State, now: float, negotiated: Negotiated, out: list[Output]) -> None:
    state.dialect = negotiated.dialect
    state.stepping.available = negotiated.features.singlestep
    state.phase_deadline = None
    enter(state, Phase.BINDING, f"the kernel speaks {negotiated.dialect.name}", out, dialect=negotiated.dialect.name)
    procedure = arm(state.plan, negotiated.dialect, state.arming, steps=negotiated.features.singlestep)
    state.scheduler.start(procedure, lambda result, at, more: _armed(state, result, at, more), now, out)


def _armed(state: State, result: Armed | Refusal, now: float, out: list[Output]) -> None:
    if isinstance(result, Refusal):
        state.outcome = result
        enter(state, Phase.REFUSED, result.fact, out, "critical", details=list(result.details))
        out.append(Disconnect(result.fact))
        return
    state.put_in_force(result.binding)
    state.guarded = set(result.guarded)
    state.unmended = result.overlong_stop or bool(result.limits)
    if not result.announced:
        start(state, watch_vcpus(state, result.vcpus), now, out)
    enter(
        state,
        Phase.DEGRADED if result.overlong_stop or result.limits else Phase.ARMED,
        f"{len(state.bound.rights)} pages guarded on {result.vcpus} vCPU{'s' if result.vcpus > 1 else ''}",
        out,
        slide=hex(state.bound.slide),
        pages=len(state.bound.rights),
        vcpus=result.vcpus,
        stopped_ms=round(state.scheduler.standing.longest * 1000, 3),
        unmapped=[f"{p.place} [{p.gva_start:#x}, {p.gva_end:#x}): {p.reason}" for p in state.bound.unbound],
        notes=[*state.bound.notes, *(f"on {one.cpu.upper()} hosts, {one.fact}: {one.help}" for one in result.limits)],
    )
    if any(limit.kvmi == EventKind.MSR.name for limit in result.limits):
        watch = state.msr_watch = MsrWatch(
            state.bound, needs_of(state.plan).msrs, result.msrs, lambda: state.phase.value
        )
        start(state, watch.run(partial(_msrs_are_unreported, state, watch)), now, out)
    # Under the ceiling everybody may write.
    if state.arming.verify and not state.monitor:
        verification = Verification(partial(_guarded, state), state.arming.verify, partial(_degrade, state))
        start(state, verification.run(), now, out)

    if state.arming.self_test and result.binding.plan.rights:
        start(state, _test_itself(state, result), now, out)


def _test_itself(state: State, armed: Armed) -> Procedure[None]:
    """Take evidence, counting the writes that are reported meanwhile."""
    watch = state.write_watch = Watch()
    end = state.hello.max_gpa if state.hello is not None else None
    try:
        yield from self_test(
            state.plan,
            lambda gfn: state.bound.allowed(gfn),
            armed.found,
            end,
            watch,
            partial(_degrade, state),
            lambda: state.phase.value,
        )
    finally:
        state.write_watch = None


def _degrade(state: State) -> str:
    state.degrade()
    return state.phase.value


def _guarded(state: State) -> BoundPlan | None:
    return state.bound if state.is_guarding else None


def _msrs_are_unreported(state: State, watch: MsrWatch) -> bool:
    return state.msr_watch is watch and state.is_guarding


def on_answered(state: State, now: float, answered: Answered, out: list[Output]) -> None:
    state.scheduler.answered(answered.ticket, answered.result, now, out)


def on_reply_refused(state: State, now: float, refused: EventReplyRefused, out: list[Output]) -> None:
    fact = f"the kernel refused the reply to event {refused.seq}: {refused.name}"
    out.append(Write(StateRecord(state.phase.value, fact, "critical")))


def on_time(state: State, now: float, passed: TimePassed, out: list[Output]) -> None:
    if state.phase_deadline is not None and now >= state.phase_deadline:
        state.phase_deadline = None
        leaving = state.phase is Phase.UNHOOKING
        silence = f"the peer was silent for {HANDSHAKE_TIMEOUT:g} seconds"
        out.append(Disconnect("the guest wasn't let go in time" if leaving else silence))
        return
    state.scheduler.time_passed(now, out)


def on_leave(state: State, now: float, leave: Leave, out: list[Output]) -> None:
    if state.phase is Phase.UNHOOKING:
        return
    guarding = state.is_guarding
    enter(state, Phase.UNHOOKING, leave.reason, out)
    if not guarding:
        state.scheduler.cancel()
        state.scheduler.standing.release(now, out)
        out.append(Disconnect(leave.reason))
        return
    state.phase_deadline = now + LEAVE_TIMEOUT
    start(state, _let_go(state), now, out)


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


def on_lost(state: State, now: float, lost: Lost, out: list[Output]) -> None:
    protected = state.is_guarding
    state.scheduler.give_up(now, out)
    state.scheduler.cancel()
    state.aftermath = Aftermath()
    state.scheduler.standing.clear()
    state.guarded.clear()
    state.stepping = Stepping()
    state.futile = Futile()
    state.put_in_force(None)
    state.msr_watch = None
    state.phase_deadline = None
    if state.phase not in (Phase.REFUSED, Phase.UNHOOKING):
        fact = f"{lost.reason}: every restriction is gone" if protected else lost.reason
        enter(state, Phase.LOST, fact, out, "critical" if protected else "high")


def on_inquiry(state: State, now: float, inquiry: Inquire, out: list[Output]) -> None:
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


def start(state: State, procedure: Procedure[None], now: float, out: list[Output]) -> None:
    """Run a procedure about the connection; when the last one has ended after a farewell, close."""
    state.scheduler.start(procedure, lambda result, at, more: _after(state, more), now, out)


def _after(state: State, out: list[Output]) -> None:
    """Close once the guest has been let go and every event that had come is answered."""
    if state.left and state.scheduler.is_idle:
        out.append(Disconnect("the guest has been let go"))

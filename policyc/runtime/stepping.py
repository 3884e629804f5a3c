"""Accesses that CONTINUE can't perform: the instruction is executed by the processor itself, alone, on open pages.

The kernel of kvmi-v12 sends the same event again, for ever, where its emulator doesn't know the instruction. Then every
other vCPU is stopped, the whole of what the instruction accesses is put to the policy once more, and its pages are
opened for this one instruction. Whatever goes wrong on the way, everything is put back before anybody goes on.

Where there's no single-step to be had, `_without_step` says what happens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from policyc.addresses import Gfn, frame_start, gfn_of
from policyc.catalog import VECTORS, Access, EffectKind, Mechanism
from policyc.kvmi import (
    Action,
    Command,
    ControlEvents,
    ControlSinglestep,
    Event,
    EventKind,
    PageAccess,
    Refused,
    SinglestepData,
    set_page,
)
from policyc.plan.model import Effect
from policyc.runtime.facts import Examination
from policyc.runtime.mechanisms import MECHANISMS
from policyc.runtime.opened import OpenedPages, note_open, open_page, page_details
from policyc.runtime.procedure import Answer, Emit, Limit, Procedure, TimedOutError, ask, ask_all, next_event, time_now
from policyc.runtime.reach import Piece, needed_rights, reach
from policyc.runtime.records import JsonObject, StateRecord
from policyc.runtime.repeats import MAX_FAILURES, Repeats
from policyc.runtime.standstill import Standstill, let_go, stop_others

if TYPE_CHECKING:
    from policyc.runtime.state import State

__all__ = ["MAX_PAGES", "MAX_STEPS", "MAX_STOPPED", "STOP_LIMIT", "Stepping", "get_past"]

STOP_LIMIT = 0.02
"""Seconds that a guest may stand still for one step."""

RESTORE_LIMIT = 0.1
"""Seconds for putting pages back, before the others go on all the same."""

MAX_STEPS = 100
MAX_STOPPED = 0.1
"""Steps a second, and seconds in each that the guest may stand still for them."""

MAX_PAGES = 32
"""Pages that are opened for one instruction; a scatter reaches no more."""

GENERAL_PROTECTION = Effect(EffectKind.FAULT, VECTORS["gp"])


class Came(Enum):
    """What came of trying to step one instruction."""

    PERFORMED = "it was executed"
    DENIED = "a byte that it would access is denied"
    LATE = "another vCPU didn't stand still in time"
    INTERRUPTED = "its vCPU did something else first"
    TOO_SLOW = "it wasn't executed in time"
    FAILED = "it couldn't be stepped"
    STUCK = "it can't be stepped"
    UNSUPPORTED = "this host has no single-step"


FAILURES = {Came.FAILED: MAX_FAILURES // 3, Came.TOO_SLOW: 1}
"""How much each says: a busy host may be slow once, what the processor itself gives up it gives up again."""


class Budget:
    """Steps that were made in the last second, and how long the guest stood still for them."""

    def __init__(self) -> None:
        self._spent: deque[tuple[float, float]] = deque(maxlen=MAX_STEPS)

    def allows(self, now: float) -> bool:
        """Whether there is room for one more."""
        while self._spent and now - self._spent[0][0] >= 1.0:
            self._spent.popleft()
        return len(self._spent) < MAX_STEPS and sum(seconds for _, seconds in self._spent) < MAX_STOPPED

    def spend(self, now: float, seconds: float) -> None:
        """One has been made."""
        self._spent.append((now, seconds))


@dataclass(slots=True)
class Stepping:
    """What stepping knows of one connection.

    Attributes:
        available: whether the host can single-step, as far as it has said.
        busy: whether a step is under way: one a guest at a time.
        stepped: vCPUs whose single-step was switched on, so that late events of it surprise nobody.
        chores: something waits to be begun once no step is under way: events that were put off, pages to be closed.
    """

    available: bool = False
    busy: bool = False
    chores: bool = False
    stepped: set[int] = field(default_factory=set)
    repeats: Repeats = field(default_factory=Repeats)
    budget: Budget = field(default_factory=Budget)
    standstill: Standstill = field(default_factory=Standstill)
    opened: OpenedPages = field(default_factory=OpenedPages)

    def take_deferred(self) -> list[Event]:
        """The events that were put off, in the order they came."""
        events, self.standstill.deferred = self.standstill.deferred, []
        return events


@dataclass(slots=True)
class _Attempt:
    """One instruction under way.

    Attributes:
        first: the event that it was begun with.
        standing: the event of its vCPU that isn't answered yet; None while the vCPU runs.
        lifted: what the pages that are open allow.
        on: single-step has been asked for.
    """

    first: Event
    standing: Event | None
    lifted: dict[Gfn, Access] = field(default_factory=dict)
    on: bool = False


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
    if not stepping.budget.allows((yield from time_now())):
        return (yield from _without_step(state, case, None, doubtful=doubtful))
    stepping.busy = stepping.chores = True
    try:
        came = yield from _step(state, case)
    finally:
        stepping.busy = False
    if came is Came.PERFORMED:
        return "performed by a single step"
    if came is None:
        return "let the guest try again"
    return (yield from _without_step(state, case, came, doubtful=doubtful))


def _step(state: State, case: Examination) -> Procedure[Came | None]:
    """Stop the others, try, put everything back. None where the event has been answered and nothing came of it."""
    begun = yield from time_now()
    attempt = _Attempt(case.event, case.event)
    yield Limit(begun + STOP_LIMIT)
    try:
        stopped = yield from stop_others(state.stepping.standstill, case.event.vcpu)
        came = (yield from _attempt(state, attempt)) if stopped else Came.LATE
    except TimedOutError:
        came = Came.TOO_SLOW if attempt.on else Came.LATE
    yield from _restore(state, attempt)
    yield from let_go(state.stepping.standstill)
    now = yield from time_now()
    state.stepping.budget.spend(now, now - begun)
    yield Limit(None)
    yield from _switch_off(state, attempt)
    return (yield from _conclude(state, case, attempt, came))


def _attempt(state: State, attempt: _Attempt) -> Procedure[Came]:
    """Open what the instruction needs, page after page as it asks for them, and let it run."""
    vcpu = attempt.first.vcpu
    while attempt.standing is not None:
        event = attempt.standing
        # Read again: nobody else can change the code, the page tables or the registers any more.
        pieces = yield from reach(Examination(event, state.bound))
        if (yield from _is_denied(state, event, pieces)):
            return Came.DENIED
        needed = needed_rights(pieces, {**state.bound.rights, **attempt.lifted})
        if not needed or len(attempt.lifted.keys() | needed.keys()) > MAX_PAGES:
            return Came.FAILED
        refused = yield from _open(state, attempt, needed)
        if refused is not None:
            return refused
        attempt.standing = None
        yield Answer(event, Action.RETRY)
        attempt.standing = yield from _next(state, vcpu)
        again = attempt.standing is not None and attempt.standing.kind is EventKind.PF
        if attempt.standing is None or not again or attempt.standing.regs_raw != attempt.first.regs_raw:
            break
    return _outcome(attempt)


def _next(state: State, vcpu: int) -> Procedure[Event | None]:
    """The next event of the vCPU that is stepped, but for a PAUSE event that an earlier step has asked for."""
    while True:
        event = yield from next_event(vcpu, lambda event: True, STOP_LIMIT)
        if event is None or not state.stepping.standstill.settle(event):
            return event
        yield Answer(event, Action.CONTINUE)


def _outcome(attempt: _Attempt) -> Came:
    event = attempt.standing
    if event is None:
        return Came.TOO_SLOW
    if event.kind is not EventKind.SINGLESTEP:
        return Came.INTERRUPTED
    failed = isinstance(event.data, SinglestepData) and event.data.failed
    return Came.FAILED if failed or event.regs_raw == attempt.first.regs_raw else Came.PERFORMED


def _is_denied(state: State, event: Event, pieces: tuple[Piece, ...]) -> Procedure[bool]:
    """Whether the policy wants anything of this stopped."""
    if state.monitor:
        return False
    case = Examination(event, state.bound)
    for piece in pieces:
        if gfn_of(piece.gpa) in state.bound.rights:
            verdict = yield from case.verdict_on(piece.access, piece.gpa, piece.size)
            if verdict.effect is not None and verdict.effect.kind > EffectKind.LOG:
                return True
    return False


def _open(state: State, attempt: _Attempt, needed: dict[Gfn, Access]) -> Procedure[Came | None]:
    """Give the pages these rights, and switch single-step on; why not, where the kernel refuses."""
    vcpu = attempt.first.vcpu
    if not state.is_guarding:
        return Came.INTERRUPTED
    for gfn in needed:
        state.bound.code_cache.distrust(gfn)
    attempt.lifted.update(needed)
    commands: list[Command] = [set_page(frame_start(gfn), PageAccess(int(needed[gfn]))) for gfn in sorted(needed)]
    pages = len(commands)
    if not attempt.on:
        # v7 sends the event only where it's switched on; to v12 it's all the same.
        commands += [ControlEvents(vcpu, EventKind.SINGLESTEP, enable=True), ControlSinglestep(vcpu, enable=True)]
        state.stepping.stepped.add(vcpu)
        attempt.on = True
    results = yield from ask_all(commands)
    if any(isinstance(result, Refused) for result in results[:pages]):
        return Came.FAILED
    if any(isinstance(result, Refused) for result in results[pages:]):
        state.stepping.available = False
        return Came.UNSUPPORTED
    return None


def _restore(state: State, attempt: _Attempt) -> Procedure[None]:
    """Give every page the rights that it had; what can't be confirmed counts as open."""
    if not attempt.lifted or not state.is_guarding:
        return
    frames = sorted(attempt.lifted)
    still_open = [gfn for gfn in frames if gfn in state.stepping.opened.pages]
    frames = [gfn for gfn in frames if gfn not in state.stepping.opened.pages]
    yield Limit((yield from time_now()) + RESTORE_LIMIT)
    commands = [set_page(frame_start(gfn), PageAccess(int(state.bound.rights[gfn]))) for gfn in frames]
    commands += [set_page(frame_start(gfn), PageAccess.RWX) for gfn in still_open]
    try:
        results = yield from ask_all(commands)
        failed = [gfn for gfn, result in zip(frames, results, strict=False) if isinstance(result, Refused)]
    except TimedOutError:
        failed = frames
    for gfn in failed:
        yield from note_open(state, gfn)
    if failed:
        fact = "pages that were opened for one instruction couldn't be closed"
        yield Emit(StateRecord(state.phase.value, fact, "critical", page_details(state, failed, {})))


def _switch_off(state: State, attempt: _Attempt) -> Procedure[None]:
    if not attempt.on:
        return
    vcpu = attempt.first.vcpu
    try:
        result = yield from ask(ControlSinglestep(vcpu, enable=False))
        failure = str(result) if isinstance(result, Refused) and state.stepping.available else None
    except TimedOutError as error:
        failure = str(error)
    if failure is not None:
        fact = f"single-step of vCPU {vcpu} couldn't be switched off: {failure}"
        yield Emit(StateRecord(state.phase.value, fact, "high"))


def _conclude(state: State, case: Examination, attempt: _Attempt, came: Came) -> Procedure[Came | None]:
    """Answer what stands there now, and write down what happened."""
    standing, repeats = attempt.standing, state.stepping.repeats
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
        state.stepping.standstill.deferred.append(standing)
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
        return (yield from _continue(event, "let through"))
    if (yield from _is_denied(state, event, (yield from reach(case)))):
        return (yield from _fault(case))
    gfn = gfn_of(event.gpa)
    holds_denied = not state.monitor and bool(state.bound.denied_spans(gfn, Access.R | Access.W | Access.X))
    if holds_denied and came is Came.STUCK:
        return (yield from _fault(case))
    why = "there were too many steps in the last second" if came is None else came.value
    if holds_denied and came is not Came.UNSUPPORTED:
        return (yield from _continue(event, f"let the guest try again: {why}"))
    fact = f"KVM can't perform `{_text(case)}`, and {why}"
    if gfn not in state.bound.rights or not (yield from open_page(state, gfn, fact, _details(state, case, {}))):
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

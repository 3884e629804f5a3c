"""One instruction executed by the processor itself, on pages that are open for it, while every other vCPU stands still.

The whole of what it accesses is put to the policy first, when nobody can change code, page tables or registers any
more. Whatever goes wrong on the way, everything is put back before anybody goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from policyc.addresses import Gfn, frame_start, gfn_of
from policyc.catalog import Access, EffectKind
from policyc.kvmi import (
    Action,
    Command,
    ControlEvents,
    ControlSinglestep,
    ErrorCode,
    Event,
    EventKind,
    PageAccess,
    Refused,
    SinglestepData,
    set_page,
)
from policyc.runtime.exception_stacks import frames
from policyc.runtime.facts import Examination
from policyc.runtime.opened import note_open, page_details
from policyc.runtime.procedure import (
    Answer,
    Emit,
    Limit,
    Procedure,
    Resume,
    TimedOutError,
    ask,
    ask_all,
    ask_each,
    next_event,
    time_now,
)
from policyc.runtime.reach import Piece, needed_rights, reach
from policyc.runtime.records import StateRecord
from policyc.runtime.standstill import stop_others

if TYPE_CHECKING:
    from policyc.runtime.state import State

__all__ = ["MAX_PAGES", "STOP_LIMIT", "Attempt", "Came", "is_denied", "step_alone", "switch_off"]

STOP_LIMIT = 0.02
"""Seconds that a guest may stand still for one step."""

RESTORE_LIMIT = 0.1
"""Seconds for putting pages back, before the others go on all the same."""

MAX_PAGES = 32
"""Pages that are opened for one instruction; a scatter reaches no more."""


class Came(Enum):
    """What came of trying to step one instruction."""

    PERFORMED = "it was executed"
    DENIED = "a byte that it would access is denied"
    LATE = "another vCPU didn't stand still in time"
    INTERRUPTED = "its vCPU did something else first"
    TOO_SLOW = "it wasn't executed in time"
    FAILED = "it couldn't be stepped"
    STUCK = "it can't be stepped"
    REFUSED = "the kernel refused to step it"
    UNSUPPORTED = "this host has no single-step"


@dataclass(slots=True)
class Attempt:
    """One instruction under way.

    Attributes:
        first: the event that it was begun with.
        standing: the event of its vCPU that isn't answered yet; None while the vCPU runs.
        lifted: what the pages that are open allow.
        on: single-step has been asked for.
        came: what came of it.
    """

    first: Event
    standing: Event | None
    lifted: dict[Gfn, Access] = field(default_factory=dict)
    on: bool = False
    came: Came = Came.LATE


def step_alone(state: State, event: Event) -> Procedure[Attempt]:
    """Stop the others, let one instruction through, put everything back; never raises.

    What stands at an event in the end is left for the caller to answer.
    """
    begun = yield from time_now()
    attempt = Attempt(event, event)
    yield Limit(begun + STOP_LIMIT)
    try:
        stopped = yield from stop_others(event.vcpu)
        attempt.came = (yield from _attempt(state, attempt)) if stopped else Came.LATE
    except TimedOutError:
        attempt.came = Came.TOO_SLOW if attempt.on else Came.LATE
    yield from _restore(state, attempt)
    yield Resume()
    now = yield from time_now()
    state.stepping.budget.spend(now, now - begun)
    yield Limit(None)
    yield from _switch_off(state, attempt)
    return attempt


def _attempt(state: State, attempt: Attempt) -> Procedure[Came]:
    """Open what the instruction needs, page after page as it asks for them, and let it run."""
    vcpu = attempt.first.vcpu
    while attempt.standing is not None:
        event, bound = attempt.standing, state.bound
        # Read again: nobody else can change the code, the page tables or the registers any more.
        pieces = yield from reach(Examination(event, state.bound))
        if (yield from is_denied(state, event, pieces)):
            return Came.DENIED
        needed = needed_rights(pieces, lambda gfn: attempt.lifted.get(gfn, state.bound.rights.get(gfn)))
        if (yield from _may_push_onto_denied(state, event, {**attempt.lifted, **needed})):
            return Came.DENIED
        if state.bound is not bound:
            # What has just been judged isn't what is in force.
            continue
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
        if event is None or event.kind is not EventKind.PAUSE:
            return event
        yield Answer(event, Action.CONTINUE)


def _outcome(attempt: Attempt) -> Came:
    event = attempt.standing
    if event is None:
        return Came.TOO_SLOW
    if event.kind is not EventKind.SINGLESTEP:
        return Came.INTERRUPTED
    failed = isinstance(event.data, SinglestepData) and event.data.failed
    return Came.FAILED if failed or event.regs_raw == attempt.first.regs_raw else Came.PERFORMED


def is_denied(state: State, event: Event, pieces: tuple[Piece, ...]) -> Procedure[bool]:
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


def _may_push_onto_denied(state: State, event: Event, opened: Mapping[Gfn, Access]) -> Procedure[bool]:
    """Whether an exception of the instruction could have its frame pushed onto denied bytes of a page that is open."""
    writable = {gfn for gfn, rights in opened.items() if rights & Access.W and state.bound.denied_spans(gfn, Access.W)}
    if not writable or state.monitor:
        return False
    found = yield from frames(event)
    if found is None:
        return True
    pieces = tuple(Piece(Access.W, gpa, size) for gpa, size in found if gfn_of(gpa) in writable)
    return (yield from is_denied(state, event, pieces))


def _open(state: State, attempt: Attempt, needed: dict[Gfn, Access]) -> Procedure[Came | None]:
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
    refused = [result for result in results[pages:] if isinstance(result, Refused)]
    if not refused:
        return None
    attempt.on = not isinstance(results[-1], Refused)
    # Only this says that the host can't. What else is refused may be had the next time, and mustn't open a page.
    if all(result.errno != ErrorCode.EOPNOTSUPP for result in refused):
        return Came.REFUSED
    state.stepping.available = False
    return Came.UNSUPPORTED


def _restore(state: State, attempt: Attempt) -> Procedure[None]:
    """Give every page the rights that it had; what can't be confirmed counts as open."""
    if not attempt.lifted or not state.is_guarding:
        return
    lifted = sorted(attempt.lifted)
    yield Limit((yield from time_now()) + RESTORE_LIMIT)
    # One that was open before is closed early: nobody can open by mistake what has been closed meanwhile.
    commands = [set_page(frame_start(gfn), PageAccess(int(state.bound.allowed(gfn)))) for gfn in lifted]
    results = yield from ask_each(commands)
    failed = [gfn for gfn, result in zip(lifted, results, strict=True) if result is None or isinstance(result, Refused)]
    for gfn in failed:
        yield from note_open(state, gfn)
    if failed:
        fact = "pages that were opened for one instruction couldn't be closed"
        yield Emit(StateRecord(state.phase.value, fact, "critical", page_details(state, failed, {})))


def _switch_off(state: State, attempt: Attempt) -> Procedure[None]:
    if attempt.on:
        yield from switch_off(state, attempt.first.vcpu)


def switch_off(state: State, vcpu: int) -> Procedure[None]:
    """Switch single-step of a vCPU off; where that fails, the vCPU's next event of it has it tried again."""
    state.stepping.left_on.discard(vcpu)
    try:
        result = yield from ask(ControlSinglestep(vcpu, enable=False))
        failure = str(result) if isinstance(result, Refused) and state.stepping.available else None
    except TimedOutError as error:
        failure = str(error)
    if failure is not None:
        state.stepping.left_on.add(vcpu)
        fact = f"single-step of vCPU {vcpu} couldn't be switched off: {failure}"
        yield Emit(StateRecord(state.phase.value, fact, "high"))

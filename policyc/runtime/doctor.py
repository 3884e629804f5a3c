"""An examination of one connection: `step(checkup, now, input) -> outputs`, from the hello until everything was asked.

It runs in the loop that enforcement runs in, and like it has no socket and no clock. It restricts nothing but what the
write test protects for a moment, answers every event CONTINUE, and leaves when it is done or asked to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from policyc.addresses import gfn_of
from policyc.guest.profile import Profile
from policyc.kvmi import (
    Action,
    Event,
    EventKind,
    EventReplyRefused,
    Hello,
    Negotiated,
    NewValue,
    PageAccess,
    RemoteProtocolError,
)
from policyc.runtime.doctor_chart import Chart, Stage
from policyc.runtime.doctor_examine import examine
from policyc.runtime.frame_trials import Watch
from policyc.runtime.locate import Refusal
from policyc.runtime.state import Phase
from policyc.runtime.steps import (
    Answered,
    Connected,
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
)
from policyc.runtime.tasks import Scheduler

__all__ = ["Checkup", "conclude", "step"]

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for the hello, and again for finding out the dialect: QEMU's own handshake_timeout."""

EXAMINATION_TIMEOUT = 90.0
"""Seconds for everything after that; a guest that answers each question just in time doesn't keep us for ever."""

DONE = "everything was asked"


@dataclass(slots=True)
class Checkup:
    """An examination under way.

    Attributes:
        profile: the kernel to look for, if any.
        watch: where reported writes are counted; given, the write test is made.
        chart: what has been found out.
        outcome: a guest is never refused here; what there is to say is in the chart.
    """

    profile: Profile | None = None
    watch: Watch | None = None
    chart: Chart = field(default_factory=Chart)
    phase: Phase = Phase.HANDSHAKE
    outcome: Refusal | None = None
    scheduler: Scheduler = field(default_factory=Scheduler)
    phase_deadline: float | None = None

    @property
    def deadline(self) -> float | None:
        """When `step` wants to be called with `TimePassed` at the latest."""
        moments = [moment for moment in (self.phase_deadline, self.scheduler.deadline) if moment is not None]
        return min(moments, default=None)


def step(checkup: Checkup, now: float, input: Input) -> list[Output]:
    """Take one input in and say what is to be done, in order. `now` is seconds on any clock that never runs back."""
    out: list[Output] = []
    if isinstance(input, Event):
        _on_event(checkup, now, input, out)
    else:
        _HANDLERS[type(input)](checkup, now, input, out)
    return out


def conclude(checkup: Checkup, reason: str, fault: RemoteProtocolError | None) -> Chart:
    """The chart, once the connection has ended for this reason."""
    chart = checkup.chart
    if chart.stage is not Stage.EXAMINED:
        chart.ended = reason
        chart.fault = fault
    return chart


def _on_connected(checkup: Checkup, now: float, connected: Connected, out: list[Output]) -> None:
    checkup.phase_deadline = now + HANDSHAKE_TIMEOUT


def _on_hello(checkup: Checkup, now: float, hello: Hello, out: list[Output]) -> None:
    checkup.chart.hello = hello
    checkup.chart.stage = Stage.GREETED
    checkup.phase = Phase.NEGOTIATING
    checkup.phase_deadline = now + HANDSHAKE_TIMEOUT
    out.append(GreetVmm())


def _on_negotiated(checkup: Checkup, now: float, negotiated: Negotiated, out: list[Output]) -> None:
    checkup.chart.negotiated = negotiated
    checkup.chart.stage = Stage.NEGOTIATED
    checkup.phase = Phase.BINDING
    checkup.phase_deadline = now + EXAMINATION_TIMEOUT
    procedure = examine(checkup.chart, negotiated.dialect, checkup.profile, checkup.watch)
    checkup.scheduler.start(procedure, lambda result, at, more: more.append(Disconnect(DONE)), now, out)


def _on_answered(checkup: Checkup, now: float, answered: Answered, out: list[Output]) -> None:
    checkup.scheduler.answered(answered.ticket, answered.result, now, out)


def _on_event(checkup: Checkup, now: float, event: Event, out: list[Output]) -> None:
    """Let the guest do what it wants; a CR or MSR that is answered without a value would become 0."""
    if event.kind is EventKind.UNHOOK:
        _leave(checkup, "the VMM asks to be let go", out)
        return
    if event.kind is EventKind.PAUSE:
        checkup.scheduler.hold(event, now, out)
        return
    if event.kind is EventKind.PF and checkup.watch is not None and event.access & PageAccess.W:
        checkup.watch.writes[gfn_of(event.gpa)] += 1
    if event.needs_reply:
        new = getattr(event.data, "new", None)
        carries_value = event.kind in (EventKind.CR, EventKind.MSR)
        out.append(Reply(event, Action.CONTINUE, NewValue(new) if carries_value and new is not None else None))


def _on_time(checkup: Checkup, now: float, passed: TimePassed, out: list[Output]) -> None:
    if checkup.phase_deadline is not None and now >= checkup.phase_deadline:
        examining = checkup.phase is Phase.BINDING
        silence = f"the peer was silent for {HANDSHAKE_TIMEOUT:g} seconds"
        slow = f"the guest's kernel took more than {EXAMINATION_TIMEOUT:g} seconds to answer everything"
        _leave(checkup, slow if examining else silence, out)
        return
    checkup.scheduler.time_passed(now, out)


def _on_leave(checkup: Checkup, now: float, leave: Leave, out: list[Output]) -> None:
    _leave(checkup, leave.reason, out)


def _leave(checkup: Checkup, reason: str, out: list[Output]) -> None:
    """Close at once: the kernel lifts every restriction and lets every vCPU go on when the socket closes."""
    checkup.phase = Phase.UNHOOKING
    checkup.phase_deadline = None
    checkup.scheduler.cancel()
    out.append(Disconnect(reason))


def _on_lost(checkup: Checkup, now: float, lost: Lost, out: list[Output]) -> None:
    checkup.scheduler.cancel()
    checkup.scheduler.standing.clear()
    checkup.phase_deadline = None


def _on_inquiry(checkup: Checkup, now: float, inquiry: Inquire, out: list[Output]) -> None:
    out.append(Told(inquiry.number, None))


def _on_reply_refused(checkup: Checkup, now: float, refused: EventReplyRefused, out: list[Output]) -> None:
    checkup.chart.silences.append(f"the kernel refused the reply to event {refused.seq}: {refused.name}")


# Each handler takes the one type it stands under.
_HANDLERS: Mapping[type, Callable[[Checkup, float, Any, list[Output]], None]] = {
    Connected: _on_connected,
    Hello: _on_hello,
    Negotiated: _on_negotiated,
    Answered: _on_answered,
    EventReplyRefused: _on_reply_refused,
    TimePassed: _on_time,
    Leave: _on_leave,
    Lost: _on_lost,
    Inquire: _on_inquiry,
}

"""The enforcer: `step(state, now, input) -> outputs`, for one connection to one guest.

No socket, no clock, no file: a transcript of inputs gives a transcript of outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from policyc.kvmi import (
    Event,
    EventReplyRefused,
    Hello,
    Negotiated,
)
from policyc.runtime import life
from policyc.runtime.events import on_event
from policyc.runtime.opened import close_pages
from policyc.runtime.state import State
from policyc.runtime.steps import (
    Answered,
    Connected,
    Input,
    Inquire,
    Leave,
    Lost,
    Output,
    TimePassed,
)

__all__ = ["step"]


def step(state: State, now: float, input: Input) -> list[Output]:
    """Take one input in and say what is to be done, in order. `now` is seconds on any clock that never runs back."""
    out: list[Output] = []
    if isinstance(input, Event):
        state.counters.events += 1
        on_event(state, now, input, out)
    else:
        _HANDLERS[type(input)](state, now, input, out)
    if state.stepping.chores:
        _catch_up(state, now, out)
    return out


def _catch_up(state: State, now: float, out: list[Output]) -> None:
    """Begin what had to wait until a step was over."""
    if state.stepping.busy:
        return
    state.stepping.chores = False
    if state.stepping.opened.wants_closing:
        life.start(state, close_pages(state), now, out)
    for event in state.stepping.take_deferred():
        state.scheduler.standing.pending.pop(event.vcpu, None)
        on_event(state, now, event, out)


# Each handler takes the one type it stands under.
_HANDLERS: Mapping[type, Callable[[State, float, Any, list[Output]], None]] = {
    Connected: life.on_connected,
    Hello: life.on_hello,
    Negotiated: life.on_negotiated,
    Answered: life.on_answered,
    EventReplyRefused: life.on_reply_refused,
    TimePassed: life.on_time,
    Leave: life.on_leave,
    Lost: life.on_lost,
    Inquire: life.on_inquiry,
}

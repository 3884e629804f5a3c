"""Conversations with the kernel, written as generators: they yield what they wait for and are sent what came of it.

A procedure performs no I/O and reads no clock. The enforcer runs several side by side, one for arming or leaving and
one for each vCPU whose event needs more than a look at a table.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from policyc.addresses import PAGE_SIZE, Gfn, frame_start
from policyc.guest.requests import PageReply, PageRequest
from policyc.kvmi import (
    Action,
    Command,
    ErrorCode,
    Event,
    EventReplyData,
    ReadPhysical,
    ReadPhysicalReply,
    Refused,
    ReplyData,
)
from policyc.runtime.records import Record

__all__ = [
    "Answer",
    "Commands",
    "Emit",
    "Held",
    "Limit",
    "NextEvent",
    "Now",
    "Pause",
    "Procedure",
    "Resume",
    "Sleep",
    "Stop",
    "TimedOutError",
    "UnreadableError",
    "Wait",
    "ask",
    "ask_all",
    "ask_each",
    "held_vcpus",
    "next_event",
    "read_pages",
    "stop_at_events",
    "time_now",
]

Result: TypeAlias = ReplyData | Refused


@dataclass(frozen=True, slots=True)
class Commands:
    """Send these; resumed with a tuple of their results, in order.

    Attributes:
        partial: have None in the place of what isn't answered in time, instead of a `TimedOutError`.
    """

    commands: tuple[Command, ...]
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait until each of these vCPUs stands still, at its PAUSE event or where `Stop` keeps it; resumed with None."""

    vcpus: frozenset[int]


@dataclass(frozen=True, slots=True)
class Stop:
    """Let none of these vCPUs go on from an event before `Resume`.

    Resumed at once with those that stand at one, as a frozenset: they send no PAUSE event before it is answered.
    """

    vcpus: frozenset[int]


@dataclass(frozen=True, slots=True)
class Held:
    """Resumed at once with the vCPUs that stand still, as a frozenset."""


@dataclass(frozen=True, slots=True)
class Now:
    """Resumed at once with the time, in seconds on the enforcer's clock."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Let every vCPU go on that is held or was stopped; resumed with None at once."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Resumed with None after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer an event; resumed with None at once."""

    event: Event
    action: Action
    data: EventReplyData | None = None


@dataclass(frozen=True, slots=True)
class Emit:
    """Write a record; resumed with None at once."""

    record: Record


@dataclass(frozen=True, slots=True)
class NextEvent:
    """Wait for the next event of a vCPU, which goes on meanwhile; resumed with it if it is `wanted`.

    Resumed with None where the policy has to judge another event of that vCPU first, where none comes within so many
    seconds, and where the connection ends.
    """

    vcpu: int
    wanted: Callable[[Event], bool]
    seconds: float


@dataclass(frozen=True, slots=True)
class Limit:
    """Let no later wait of this procedure last beyond a moment; None takes that back. Resumed with None at once."""

    moment: float | None


Wait: TypeAlias = Commands | Pause | Stop | Held | NextEvent | Now | Limit | Resume | Sleep | Answer | Emit
Sent: TypeAlias = "tuple[Result | None, ...] | frozenset[int] | Event | float | None"
T = TypeVar("T")
Procedure: TypeAlias = Generator[Wait, Sent, T]


class TimedOutError(Exception):
    """Thrown into a procedure whose wait went past its deadline; the text says what never came."""


class UnreadableError(TimedOutError):
    """The kernel refuses to read a frame, and not because the guest has no memory there: nothing is known of it."""


def ask_all(commands: Iterable[Command]) -> Procedure[tuple[Result, ...]]:
    """Send commands and take all of their results, in order.

    Raises:
        TimedOutError: one of them isn't answered in time, or would go to a vCPU that still owes an answer.
    """
    results = yield from _results(Commands(tuple(commands)))
    return tuple(result for result in results if result is not None)


def ask_each(commands: Iterable[Command]) -> Procedure[tuple[Result | None, ...]]:
    """Send commands and take their results, in order; None for what isn't answered in time."""
    return (yield from _results(Commands(tuple(commands), partial=True)))


def ask(command: Command) -> Procedure[Result]:
    """Send one command and take its result."""
    (result,) = yield from ask_all((command,))
    return result


def _results(wait: Commands) -> Procedure[tuple[Result | None, ...]]:
    if not wait.commands:
        return ()
    results = yield wait
    assert isinstance(results, tuple), "the scheduler resumes Commands with their results"
    return results


def held_vcpus() -> Procedure[frozenset[int]]:
    """The vCPUs that stand still."""
    held = yield Held()
    assert isinstance(held, frozenset), "the scheduler resumes Held with vCPUs"
    return held


def stop_at_events(vcpus: frozenset[int]) -> Procedure[frozenset[int]]:
    """Let none of these vCPUs go on from an event before `Resume`; which of them stand at one already."""
    standing = yield Stop(vcpus)
    assert isinstance(standing, frozenset), "the scheduler resumes Stop with vCPUs"
    return standing


def next_event(vcpu: int, wanted: Callable[[Event], bool], seconds: float) -> Procedure[Event | None]:
    """The vCPU's next event if it is `wanted`; None as `NextEvent` says. Whoever takes it has to answer it."""
    event = yield NextEvent(vcpu, wanted, seconds)
    assert event is None or isinstance(event, Event), "the scheduler resumes NextEvent with an event"
    return event


def time_now() -> Procedure[float]:
    """The time, in seconds on the enforcer's clock."""
    now = yield Now()
    assert isinstance(now, float), "the scheduler resumes Now with the time"
    return now


def read_pages(asking: Generator[PageRequest, PageReply, T]) -> Procedure[T]:
    """Run a generator that asks for guest frames, reading them with READ_PHYSICAL.

    Raises:
        TimedOutError, UnreadableError: one of them can't be read.
    """
    try:
        request = next(asking)
        while True:
            request = asking.send((yield from _pages(request)))
    except StopIteration as end:
        answer: T = end.value
        return answer


def _pages(request: PageRequest) -> Procedure[PageReply]:
    results = yield from ask_all(ReadPhysical(frame_start(gfn), PAGE_SIZE) for gfn in request.gfns)
    pages: dict[Gfn, bytes | None] = {}
    for gfn, result in zip(request.gfns, results, strict=True):
        if isinstance(result, Refused) and result.errno != ErrorCode.ENOENT:
            raise UnreadableError(f"frame {gfn:#x} can't be read: {result}")
        pages[gfn] = result.data if isinstance(result, ReadPhysicalReply) else None
    return pages

"""What goes into the enforcer and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from policyc.kvmi import (
    Action,
    Command,
    Event,
    EventReplyData,
    EventReplyRefused,
    Hello,
    Negotiated,
    Refused,
    ReplyData,
)
from policyc.runtime.records import Record

__all__ = [
    "Answered",
    "Connected",
    "Disconnect",
    "GreetVmm",
    "Input",
    "Inquire",
    "Leave",
    "Lost",
    "Output",
    "Reply",
    "Send",
    "TimePassed",
    "Told",
    "Write",
]


@dataclass(frozen=True, slots=True)
class Connected:
    """A VMM has connected; its hello is to come."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The result of a command that was sent with this ticket."""

    ticket: int
    result: ReplyData | Refused


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing came; a deadline may have."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Let go of the guest: lift what is restricted, then close."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is gone, and with it every restriction."""

    reason: str


@dataclass(frozen=True, slots=True)
class Inquire:
    """Somebody beside the plan wants to know something; `number` comes back with the result."""

    number: int
    command: Command


Input: TypeAlias = (
    Connected | Hello | Negotiated | Event | EventReplyRefused | Answered | TimePassed | Leave | Lost | Inquire
)


@dataclass(frozen=True, slots=True)
class GreetVmm:
    """Answer the hello."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a command; its result is to come back with the ticket."""

    ticket: int
    command: Command


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer an event: its vCPU goes on."""

    event: Event
    action: Action
    data: EventReplyData | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """Write a record, after everything that is to be sent has been."""

    record: Record


@dataclass(frozen=True, slots=True)
class Told:
    """What came of an `Inquire`; None where it couldn't be asked."""

    number: int
    result: ReplyData | Refused | None


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection."""

    reason: str


Output: TypeAlias = GreetVmm | Send | Reply | Write | Told | Disconnect

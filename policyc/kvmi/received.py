"""What a connection hands to its caller besides events: greetings, replies, commands, and answers to events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policyc.kvmi.codec import CommandCodec
    from policyc.kvmi.dialects import Dialect
    from policyc.kvmi.event_data import EventReplyData
    from policyc.kvmi.messages import Command, Features, Refused, ReplyData
    from policyc.kvmi.vocabulary import Action, EventKind

__all__ = [
    "BadCommandReceived",
    "CommandReceived",
    "EventReplyReceived",
    "EventReplyRefused",
    "HelloAnswer",
    "Negotiated",
    "Received",
    "Reply",
]


# --- at the tool's end ---


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The peer's dialect is known; from now on commands may be sent and events may come."""

    dialect: Dialect
    features: Features
    max_message_size: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a command: what it brought, or why it was refused."""

    seq: int
    command: Command
    result: ReplyData | Refused


@dataclass(frozen=True, slots=True)
class EventReplyRefused:
    """The kernel didn't accept our reply to event `seq`; its vCPU may still wait. Doesn't happen to correct replies."""

    seq: int
    errno: int
    name: str


# --- at the kernel's end ---


@dataclass(frozen=True, slots=True)
class HelloAnswer:
    """The tool has answered; compare with `cookie_hash(secret)` if the VMM was given one."""

    cookie_hash: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """Something to answer, once, with `answer` or `refuse`.

    Attributes:
        seq: the tool's number; not unique, for the tool may choose what it likes.
        vcpu: the vCPU in whose queue it belongs, or None if the receiver carries it out at once.
        silent: replies are off, so an answer goes nowhere.
    """

    seq: int
    vcpu: int | None
    silent: bool
    _codec: CommandCodec


@dataclass(frozen=True, slots=True, eq=False)
class CommandReceived(Received):
    """A command to carry out and to answer."""

    command: Command


@dataclass(frozen=True, slots=True, eq=False)
class BadCommandReceived(Received):
    """A command that its vCPU will refuse with `errno` when its turn comes: `refuse(received, received.errno)`."""

    errno: int


@dataclass(frozen=True, slots=True)
class EventReplyReceived:
    """The tool's answer to an event; the vCPU goes on.

    Attributes:
        action: None if the event doesn't support what was asked for: the kernel logs it and doesn't continue.
        data: what the event's reply carries, zeros where the tool left it out.
    """

    seq: int
    vcpu: int
    kind: EventKind
    action: Action | None
    data: EventReplyData | None

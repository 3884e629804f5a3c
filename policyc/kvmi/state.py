"""The states of a connection and what moves it from one to the other.

Everything that decides about a state is in `TRANSITIONS`; the diagram in the documentation is drawn from it.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TRANSITIONS", "Side", "State", "Trigger", "diagram"]


class Side(Enum):
    """Which end of the connection we are."""

    TOOL = "tool"
    KERNEL = "kernel"


class State(Enum):
    """How far the conversation has come."""

    HANDSHAKE = "HANDSHAKE"
    NEGOTIATING = "NEGOTIATING"
    OPEN = "OPEN"
    UNHOOKING = "UNHOOKING"
    CLOSED = "CLOSED"
    ERROR = "ERROR"


class Trigger(Enum):
    """What happens to a connection."""

    HELLO_ANSWERED = "hello answered"
    DIALECT_KNOWN = "dialect known"
    UNHOOK = "UNHOOK event"
    END = "end of stream"
    FAULT = "protocol broken by the peer"


_ENDS: Final = {Trigger.END: State.CLOSED, Trigger.FAULT: State.ERROR}

TRANSITIONS: Final[Mapping[Side, Mapping[State, Mapping[Trigger, State]]]] = {
    Side.TOOL: {
        State.HANDSHAKE: {Trigger.HELLO_ANSWERED: State.NEGOTIATING, **_ENDS},
        State.NEGOTIATING: {Trigger.DIALECT_KNOWN: State.OPEN, **_ENDS},
        State.OPEN: {Trigger.UNHOOK: State.UNHOOKING, **_ENDS},
        State.UNHOOKING: {Trigger.UNHOOK: State.UNHOOKING, **_ENDS},
        State.CLOSED: {Trigger.END: State.CLOSED},
        State.ERROR: {Trigger.END: State.ERROR, Trigger.FAULT: State.ERROR},
    },
    Side.KERNEL: {
        State.HANDSHAKE: {Trigger.HELLO_ANSWERED: State.OPEN, **_ENDS},
        State.OPEN: {Trigger.UNHOOK: State.UNHOOKING, **_ENDS},
        State.UNHOOKING: {Trigger.UNHOOK: State.UNHOOKING, **_ENDS},
        State.CLOSED: {Trigger.END: State.CLOSED},
        State.ERROR: {Trigger.END: State.ERROR, Trigger.FAULT: State.ERROR},
    },
}
"""By side and state, where each trigger leads. A trigger that isn't listed can't happen there."""


def diagram(side: Side) -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.HANDSHAKE.value}"]
    lines += [
        f"    {state.value} --> {target.value}: {trigger.value}"
        for state, row in TRANSITIONS[side].items()
        for trigger, target in row.items()
        if target is not state
    ]
    return "\n".join(lines) + "\n"

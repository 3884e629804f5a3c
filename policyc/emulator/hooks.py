"""What the tool has asked for of one vCPU: it outlives INIT, and is gone when the connection ends."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyc.emulator.vcpu import Vcpu
    from policyc.kvmi import Action, EventData, EventKind, EventReplyData, Registers

__all__ = ["PAUSES_MAX", "Hooks", "Injection", "Tool", "Waiting"]

PAUSES_MAX: Final = 1002
"""Unanswered PAUSE requests of one vCPU, as seen on a running v7 kernel."""


class Tool(Protocol):
    """The other end of the connection, and the kernel in between, as a vCPU sees them."""

    @property
    def steps_by_itself(self) -> bool:
        """Whether the kernel single-steps what its emulator doesn't know."""

    @property
    def fetches_twice(self) -> bool:
        """Whether an execute violation is reported for the processor's fetch and again for KVM's emulator's."""

    def report(self, vcpu: Vcpu, kind: EventKind, data: EventData | None) -> None:
        """Send an event; the answer comes through `Vcpu.answer`."""

    def created(self, vcpu: Vcpu) -> None:
        """The vCPU runs for the first time since the connection began."""

    def crash(self, vcpu: Vcpu) -> None:
        """The tool answered CRASH."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that isn't answered yet, and what happens when it is: `resume(action, data)`.

    An action of None is one that the event doesn't support; data of None stands for the guest's own values.
    """

    kind: EventKind
    resume: Callable[[Action | None, EventReplyData | None], None]


@dataclass(frozen=True, slots=True)
class Injection:
    """An exception that the tool wants raised before the guest goes on."""

    vector: int
    error_code: int
    address: int


@dataclass(slots=True)
class Hooks:
    """The state of introspection on one vCPU.

    Attributes:
        events: events that are switched on.
        unavailable: events that are on and never come, for want of hardware.
        views: EPT views that the guest may switch to by itself.
        crs, msrs: registers whose writes are intercepted, if their event is on too.
        pauses: PAUSE requests whose event has not been sent.
        registers: set by SET_REGISTERS, applied with the next event reply.
        jobs: commands that wait until the vCPU may run.
    """

    events: set[EventKind] = field(default_factory=set)
    unavailable: set[EventKind] = field(default_factory=set)
    views: set[int] = field(default_factory=set)
    crs: set[int] = field(default_factory=set)
    msrs: set[int] = field(default_factory=set)
    singlestep: bool = False
    pauses: int = 0
    registers: Registers | None = None
    injection: Injection | None = None
    jobs: deque[Callable[[], None]] = field(default_factory=deque)

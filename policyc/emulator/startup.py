"""How a vCPU comes to run: KVM's `mp_state`, and the INIT and start-up interrupts that change it.

Signals are latched, as KVM's `apic->pending_events` are, and taken before all else when the vCPU is about to run.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from policyc.emulator.image import BootState

__all__ = ["Board", "Signals", "Startup"]


class Startup(Enum):
    """How far a vCPU is from running."""

    RUNNING = auto()
    UNINITIALIZED = auto()
    WAITING_FOR_SIPI = auto()


class Board(Protocol):
    """What a vCPU reaches of the machine that it is in."""

    def send_ipi(self, sender: int, value: int) -> None:
        """A value was written to the interrupt command register."""

    def output(self, port: int, size: int, value: int) -> None:
        """A value was written to a port."""

    def startup_state(self, vector: int) -> BootState | None:
        """Where a start-up interrupt of that vector makes a processor begin; None if nowhere."""


class Signals:
    """What has been sent to a vCPU and hasn't been taken yet."""

    __slots__ = ("_init", "_vector")

    def __init__(self) -> None:
        self._init = False
        self._vector: int | None = None

    def init(self) -> None:
        """INIT, which forgets a start-up interrupt that came before it."""
        self._init = True
        self._vector = None

    def startup(self, vector: int) -> None:
        """A start-up interrupt."""
        self._vector = vector

    def pending(self, state: Startup) -> bool:
        """Whether taking them would change anything."""
        return self._init or (self._vector is not None and state is Startup.WAITING_FOR_SIPI)

    def take_init(self) -> bool:
        """Whether INIT came; it is taken."""
        taken, self._init = self._init, False
        return taken

    def take_startup(self) -> int | None:
        """The vector of a start-up interrupt, which is taken; None if none came."""
        taken, self._vector = self._vector, None
        return taken

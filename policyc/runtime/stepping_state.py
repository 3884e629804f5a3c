"""What is known of stepping on one connection: whether it can be done, what is under way, how much there has been."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from policyc.kvmi import Event
from policyc.runtime.opened_pages import OpenedPages
from policyc.runtime.repeats import Repeats

__all__ = ["MAX_STEPS", "MAX_STOPPED", "Budget", "Stepping"]

MAX_STEPS = 100
MAX_STOPPED = 0.1
"""Steps a second, and seconds in each that the guest may stand still for them."""


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
        left_on: vCPUs whose single-step couldn't be switched off.
        deferred: events that mustn't be begun with before the step under way is over.
        chores: something waits to be begun once no step is under way: events that were put off, pages to be closed.
    """

    available: bool = False
    busy: bool = False
    chores: bool = False
    stepped: set[int] = field(default_factory=set)
    left_on: set[int] = field(default_factory=set)
    repeats: Repeats = field(default_factory=Repeats)
    budget: Budget = field(default_factory=Budget)
    deferred: list[Event] = field(default_factory=list)
    opened: OpenedPages = field(default_factory=OpenedPages)

    def take_deferred(self) -> list[Event]:
        """The events that were put off, in the order they came."""
        events, self.deferred = self.deferred, []
        return events

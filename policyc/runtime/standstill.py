"""Every vCPU but one stands still while that one executes an instruction on pages that are open.

A vCPU that stands at its PAUSE event sends no other. One that hasn't started is given no PAUSE: each would be waiting
for it when it does. Whoever is late still sends the PAUSE event that was asked for, which is owed an answer then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from policyc.addresses import Gva
from policyc.kvmi import Action, ErrorCode, Event, EventKind, PauseVcpu, Refused, TranslateGva
from policyc.runtime.arming import vcpu_count
from policyc.runtime.procedure import Pause, Procedure, Resume, ask_all
from policyc.runtime.steps import Output, Reply
from policyc.runtime.tasks import Scheduler

__all__ = ["Standstill", "let_go", "stop_others"]


@dataclass(slots=True)
class Standstill:
    """Who was asked to stand still.

    Attributes:
        expected: vCPUs that the step under way needs to stand still; empty where there is none.
        owed: PAUSE events that are still to come, by vCPU.
        deferred: events that mustn't be answered before the step is over.
    """

    expected: set[int] = field(default_factory=set)
    owed: dict[int, int] = field(default_factory=dict)
    deferred: list[Event] = field(default_factory=list)

    def take(self, event: Event, scheduler: Scheduler, now: float, out: list[Output], *, busy: bool) -> bool:
        """Deal with an event of a vCPU that stands still because of a step; False where it's about something else.

        Args:
            busy: whether a step is under way.
        """
        vcpu = event.vcpu
        if self.settle(event):
            if vcpu in self.expected:
                scheduler.hold(event, now, out)
            else:
                out.append(Reply(event, Action.CONTINUE))
            return True
        if busy:
            # It comes into being just now, and must not run while pages are open.
            self.deferred.append(event)
        return busy

    def settle(self, event: Event) -> bool:
        """Whether this is a PAUSE event that was owed; it isn't any more."""
        if event.kind is not EventKind.PAUSE or event.vcpu not in self.owed:
            return False
        self._settle(event.vcpu)
        return True

    def owe(self, vcpu: int) -> None:
        """A PAUSE event has been asked for."""
        self.owed[vcpu] = self.owed.get(vcpu, 0) + 1

    def refuse(self, vcpu: int) -> None:
        """It won't come."""
        self._settle(vcpu)

    def _settle(self, vcpu: int) -> None:
        left = self.owed.get(vcpu, 0) - 1
        if left > 0:
            self.owed[vcpu] = left
        else:
            self.owed.pop(vcpu, None)


def stop_others(standstill: Standstill, vcpu: int) -> Procedure[bool]:
    """Stop every vCPU but this one, which stands at an event; False where that can't be had.

    Raises:
        TimedOutError: one of them doesn't come to stand in time.
    """
    count = yield from vcpu_count()
    if count is None:
        return False
    others = [other for other in range(count) if other != vcpu]
    started = yield from _started(others)
    standstill.expected.update(started)
    for other in started:
        standstill.owe(other)
    results = yield from ask_all(PauseVcpu(other) for other in started)
    refused = [other for other, result in zip(started, results, strict=True) if isinstance(result, Refused)]
    for other in refused:
        standstill.refuse(other)
    if refused:
        return False
    yield Pause(frozenset(started))
    # Another one may have been started while these still ran.
    return not (yield from _started([other for other in others if other not in standstill.expected]))


def let_go(standstill: Standstill) -> Procedure[None]:
    """Let everyone go on who stands still."""
    standstill.expected.clear()
    yield Resume()


def _started(vcpus: Sequence[int]) -> Procedure[list[int]]:
    """Those of the vCPUs that have been started: the others refuse every command."""
    results = yield from ask_all(TranslateGva(vcpu, Gva(0)) for vcpu in vcpus)
    return [
        vcpu
        for vcpu, result in zip(vcpus, results, strict=True)
        if not (isinstance(result, Refused) and result.errno == ErrorCode.EAGAIN)
    ]

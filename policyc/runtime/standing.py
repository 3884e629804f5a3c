"""Which vCPUs stand still, at which of their events, and which of them mustn't go on yet.

A vCPU executes nothing from the moment it sends an event until that event is answered, and sends no other meanwhile,
not even the PAUSE event that it was asked for. So whoever has to have it stand still can keep the answer back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from policyc.kvmi import Action, Event
from policyc.runtime.steps import Output, Reply

__all__ = ["Standing"]


@dataclass(slots=True)
class Standing:
    """The vCPUs of one guest, as far as they stand still.

    Attributes:
        held: the PAUSE event of each vCPU that was asked to stand still, by index.
        pending: the event that each vCPU stands at for as long as a procedure hasn't answered it, by index.
        stopped: vCPUs that don't go on before `release`, whatever is answered to them.
        since: when the first vCPU was held; None while all run.
        longest: seconds that vCPUs were held the longest time.
    """

    held: dict[int, Event] = field(default_factory=dict)
    pending: dict[int, Event] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    since: float | None = None
    longest: float = 0.0
    _kept: list[Reply] = field(default_factory=list)

    def holds(self, vcpus: Iterable[int]) -> bool:
        """Whether each of these stands still and will until `release`."""
        return all(vcpu in self.held or (vcpu in self.pending and vcpu in self.stopped) for vcpu in vcpus)

    def stop(self, vcpus: frozenset[int]) -> frozenset[int]:
        """Let none of these go on from an event before `release`; which of them stand at one already."""
        self.stopped |= vcpus
        return vcpus.intersection(self.pending)

    def hold(self, event: Event, now: float) -> None:
        """A vCPU stands at the PAUSE event that was asked for."""
        if not self.held:
            self.since = now
        self.held[event.vcpu] = event

    def answer(self, reply: Reply, out: list[Output]) -> None:
        """Answer an event, or keep the answer back until its vCPU may go on."""
        if reply.event.vcpu in self.stopped:
            self._kept.append(reply)
            return
        self.pending.pop(reply.event.vcpu, None)
        out.append(reply)

    def release(self, now: float, out: list[Output]) -> None:
        """Let every vCPU go on that is held or whose answer was kept back."""
        out.extend(Reply(event, Action.CONTINUE) for event in self.held.values())
        self.held.clear()
        self.stopped.clear()
        kept, self._kept = self._kept, []
        for reply in kept:
            self.answer(reply, out)
        if self.since is not None:
            self.longest = max(self.longest, now - self.since)
            self.since = None

    def clear(self) -> None:
        """The connection is gone, and with it every event."""
        for part in (self.held, self.pending, self.stopped, self._kept):
            part.clear()
        self.since = None

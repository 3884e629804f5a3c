"""Denials that change nothing: the same vCPU comes back with the same registers, again and again.

That happens where a fault can't be delivered without what is denied, since its frame would go onto guarded bytes. The
vCPU stands where it is, and nothing is written; but it shouldn't keep the tool busy, nor fill the log.
"""

from __future__ import annotations

from policyc.kvmi import Event

__all__ = ["PATIENCE", "PAUSE", "Futile"]

PATIENCE = 16
"""Denials in a row that are answered at once."""

PAUSE = 0.1
"""Seconds that the answer to each further one waits."""


class Futile:
    """Counts, for each vCPU, how often the last denied access has come with the same registers."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[tuple[int, int, bytes], int]] = {}

    def forget(self, vcpu: int) -> None:
        """What was denied let the vCPU go on."""
        self._last.pop(vcpu, None)

    def note(self, event: Event) -> bool:
        """Note that a page fault is denied; whether its answer should wait."""
        seen = (int(event.access), event.gpa, event.regs_raw)
        last, count = self._last.get(event.vcpu, (seen, 0))
        count = count + 1 if last == seen else 1
        self._last[event.vcpu] = seen, count
        return count > PATIENCE

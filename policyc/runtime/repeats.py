"""Events that come again although they were answered CONTINUE: the kernel couldn't perform the access.

A vCPU that sends the same event with the same registers has executed nothing in between, unless it runs in a loop that
changes no register. One instruction may rightly send two events about one byte, for reading and for writing: it takes
three to know, and they are counted for each kind of access.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from policyc.kvmi import Event

__all__ = ["LOOP_EVENTS", "MAX_FAILURES", "REPEATS", "Repeats"]

REPEATS = 1
"""Repetitions that are taken for an instruction that can't be performed: of the byte once, then of all registers."""

LOOP_EVENTS = 1000
"""How many more are put up with where KVM's emulator knows the instruction, and the guest probably loops."""

MAX_FAILURES = 9
"""Failures, by their weight, after which an instruction isn't stepped again."""

MAX_PLACES = 64
"""Bytes at which one vCPU's repetitions are told apart: no instruction sends more events than that."""


@dataclass(slots=True)
class _Run:
    """One vCPU that doesn't get on.

    Attributes:
        counts: repetitions, by gpa and access.
        due: the count at which something has to be done.
        loops: the instruction is one that the kernel performs, as far as we know.
        failures: how often stepping it has failed, by weight.
    """

    counts: dict[tuple[int, int], int] = field(default_factory=dict)
    due: int = REPEATS
    loops: bool = False
    failures: int = 0


class Repeats:
    """The last place and registers of each vCPU, and how often they have come again."""

    __slots__ = ("_places", "_registers", "_runs")

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._registers: dict[int, bytes] = {}
        self._runs: dict[int, _Run] = {}

    def note(self, event: Event, gpa: int) -> bool:
        """Count a page fault at `gpa` that is let through; whether CONTINUE has proved to be no answer to it.

        Registers are looked at only where the byte is that of the vCPU's last event, which is rare.
        """
        vcpu = event.vcpu
        if self._places.get(vcpu) == gpa:
            return self._same_place(event)
        self._places[vcpu] = gpa
        if self._registers:
            self._registers.pop(vcpu, None)
        return False

    def is_loop(self, event: Event) -> bool:
        """Whether the instruction has been taken for a loop that the kernel performs, for long enough by now."""
        run = self._runs.get(event.vcpu)
        return run is not None and run.loops

    def take_for_loop(self, event: Event) -> None:
        """Put up with many more repetitions of this vCPU's instruction."""
        run = self._runs.setdefault(event.vcpu, _Run())
        run.loops = True
        run.due += LOOP_EVENTS

    def is_stuck(self, event: Event) -> bool:
        """Whether stepping this vCPU's instruction has failed too often to be tried again."""
        run = self._runs.get(event.vcpu)
        return run is not None and run.failures >= MAX_FAILURES

    def note_failure(self, event: Event, weight: int) -> None:
        """Stepping this vCPU's instruction has failed."""
        self._runs.setdefault(event.vcpu, _Run()).failures += weight

    def forget(self, vcpu: int) -> None:
        """The vCPU has got on."""
        self._places.pop(vcpu, None)
        self._registers.pop(vcpu, None)
        self._runs.pop(vcpu, None)

    def _same_place(self, event: Event) -> bool:
        registers = event.regs_raw
        if self._registers.get(event.vcpu) == registers:
            return self._count(event)
        self._registers[event.vcpu] = registers
        self._runs.pop(event.vcpu, None)
        return False

    def _count(self, event: Event) -> bool:
        run = self._runs.setdefault(event.vcpu, _Run())
        key = (int(event.gpa), int(event.access))
        if key not in run.counts and len(run.counts) == MAX_PLACES:
            run.counts.clear()
        count = run.counts[key] = run.counts.get(key, 0) + 1
        return count >= run.due

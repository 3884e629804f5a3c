"""What the guest is to do, in order: lines from the console, the attacks asked for, or a tour of everything."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Final

from policyc.emulator.console import Console, ConsoleCommand, ConsoleError, panic_of, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policyc.emulator.machine import Machine
    from policyc.emulator.routines import Routine, RoutineRun

__all__ = ["Script"]

STUCK: Final = 1.0
"""Seconds that a console line waits for the routine before it; then lines that start no routine go first."""


HELD: Final = 10.0
"""Seconds that a tour or an `--attack` waits for one routine, which then counts as held where it is."""


class Script:
    """Each vCPU does one routine at a time, and a line waits until what came before it is finished, or seems stuck.

    Args:
        routines: what the guest can be asked for.
        attacks: names to run when the tool is ready; none of them is a tour, unless the console has something to say.
    """

    def __init__(self, routines: Mapping[str, Routine], attacks: Iterable[str], out: Console) -> None:
        self._out = out
        self._routines = routines
        self._asked = [ConsoleCommand(routines[name].kind.value, routines[name]) for name in attacks]
        # What may hold the first vCPU for good comes last.
        in_order = sorted(routines.values(), key=lambda routine: routine.may_hold)
        self._tour = [ConsoleCommand(routine.kind.value, routine) for routine in in_order]
        self._waiting: deque[ConsoleCommand] = deque()
        self._lines: deque[ConsoleCommand | ConsoleError] = deque()
        self._runs: dict[int, tuple[RoutineRun, str]] = {}
        self._begun = 0.0
        self._released = False
        self._spoken_to = False

    @property
    def exhausted(self) -> bool:
        """Whether everything asked for so far has been done."""
        return self._released and not (self._runs or self._lines or self._waiting)

    def take(self, line: str) -> None:
        """Read a console line."""
        try:
            command = parse(line, self._routines)
        except ConsoleError as error:
            self._lines.append(error)
        else:
            if command is not None:
                self._spoken_to = True
                self._lines.append(command)

    def release(self) -> None:
        """The tool is ready, or won't be: what was asked for beforehand may begin."""
        if not self._released:
            self._released = True
            self._waiting.extend(self._asked or (() if self._spoken_to else self._tour))

    def forget(self, reason: str) -> None:
        """The machine that ran routines is no more."""
        for run, word in self._runs.values():
            self._out.lost(run.routine, word, reason)
        self._runs.clear()

    def advance(self, machine: Machine, now: float) -> ConsoleCommand | None:
        """Report what is finished and start what is next; a line that starts no routine is handed back.

        Args:
            now: a clock in seconds.
        """
        self._report(machine)
        head = self._lines[0] if self._lines else None
        patient = not self._runs or now - self._begun > STUCK
        if isinstance(head, ConsoleError):
            if patient:
                self._lines.popleft()
                self._out.say("error", str(head))
        elif head is not None:
            routine = _routine_of(head, machine)
            if routine is None:
                if not patient:
                    return None
                self._lines.popleft()
                return head
            if _settled(machine) and patient and routine.vcpu not in self._runs:
                self._lines.popleft()
                self._start(machine, routine, head.word, now)
        elif self._waiting and not self._runs and _settled(machine):
            command = self._waiting.popleft()
            assert command.routine is not None
            self._start(machine, command.routine, command.word, now)
        elif self._runs and not self._spoken_to:
            self._lose_patience(machine, now)
        return None

    def _lose_patience(self, machine: Machine, now: float) -> None:
        """Go on without a routine that is denied for ever, and without what its vCPU was to do next."""
        if machine.stopped:
            self._begun = now
        if now < self.deadline:
            return
        for vcpu, (run, word) in self._runs.items():
            self._out.held(run.result(), word)
            for command in self._waiting:
                if command.routine is not None:
                    self._out.lost(command.routine, command.word, f"vCPU {vcpu} is held")
        self._runs.clear()
        self._waiting.clear()

    def due(self, machine: Machine) -> bool:
        """Whether `advance` would do something now."""
        if self._runs:
            return any(run.finished for run, _ in self._runs.values())
        return bool(self._lines or self._waiting) and _settled(machine)

    @property
    def deadline(self) -> float:
        """When `advance` loses its patience, on its clock; infinite if nothing is under way."""
        return self._begun + HELD if self._runs and not self._spoken_to else inf

    def _report(self, machine: Machine) -> None:
        for vcpu, (run, word) in list(self._runs.items()):
            if run.finished:
                self._out.result(run.result(), word)
                del self._runs[vcpu]
        if self._runs and machine.panicked is not None:
            self.forget(panic_of(machine.panicked))

    def _start(self, machine: Machine, routine: Routine, word: str, now: float) -> None:
        if machine.panicked is not None:
            self._out.lost(routine, word, panic_of(machine.panicked))
            return
        try:
            self._runs[routine.vcpu] = (machine.begin(routine), word)
        except ValueError as error:
            self._out.lost(routine, word, str(error))
        self._begun = now


def _settled(machine: Machine) -> bool:
    """Whether a routine can begin, or never will."""
    return machine.booted or machine.panicked is not None


def _routine_of(command: ConsoleCommand, machine: Machine) -> Routine | None:
    """The routine that a line asks for; None if it asks for something else."""
    if command.routine is not None or command.number is None:
        return command.routine
    routine = machine.processor_routines.get(command.word)
    if routine is None:
        return None
    if routine.takes_number:
        return replace(routine, argument=command.number)
    return routine.on(command.number)

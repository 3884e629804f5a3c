"""What the guest is to do, in order: lines from the console, the attacks asked for, or a tour of everything."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from policyc.emulator.console import Console, ConsoleCommand, ConsoleError, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policyc.emulator.machine import Machine
    from policyc.emulator.routines import Routine, RoutineRun

__all__ = ["Script"]

STUCK: Final = 1.0
"""Seconds that a console line waits for the routine before it; then lines that start no routine go first."""


class Script:
    """Routines are started one at a time, each when the one before is finished.

    Args:
        routines: what the guest can be asked for.
        attacks: names to run when the tool is ready; none of them is a tour, unless the console has something to say.
    """

    def __init__(self, routines: Mapping[str, Routine], attacks: Iterable[str], out: Console) -> None:
        self._out = out
        self._routines = routines
        self._asked = [routines[name] for name in attacks]
        self._waiting: deque[Routine] = deque()
        self._lines: deque[ConsoleCommand | ConsoleError] = deque()
        self._run: RoutineRun | None = None
        self._begun = 0.0
        self._released = False
        self._spoken_to = False

    @property
    def exhausted(self) -> bool:
        """Whether everything asked for so far has been done."""
        return self._released and not (self._run or self._lines or self._waiting)

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
            self._waiting.extend(self._asked or (() if self._spoken_to else self._routines.values()))

    def forget(self, reason: str) -> None:
        """The machine that ran a routine is no more."""
        if self._run is not None:
            self._out.lost(self._run.routine, reason)
            self._run = None

    def advance(self, machine: Machine, now: float) -> ConsoleCommand | None:
        """Report what is finished and start what is next; a line that starts no routine is handed back.

        Args:
            now: a clock in seconds.
        """
        if self._run is not None:
            if self._run.finished:
                self._out.result(self._run.result())
                self._run = None
            elif machine.panicked is not None:
                self.forget(f"the guest's kernel panicked on exception {machine.panicked}")
        next_line = self._lines[0] if self._lines else None
        if isinstance(next_line, ConsoleError):
            self._out.say("error", str(self._lines.popleft()))
        elif next_line is not None and next_line.routine is None:
            if self._run is None or now - self._begun > STUCK:
                self._lines.popleft()
                return next_line
        elif self._run is None and machine.booted:
            if next_line is not None and next_line.routine is not None:
                self._lines.popleft()
                self._start(machine, next_line.routine, now)
            elif self._waiting:
                self._start(machine, self._waiting.popleft(), now)
        return None

    def due(self, machine: Machine) -> bool:
        """Whether `advance` would do something now."""
        if self._run is not None:
            return self._run.finished
        return bool(self._lines or self._waiting) and machine.booted

    def _start(self, machine: Machine, routine: Routine, now: float) -> None:
        if machine.panicked is not None:
            self._out.lost(routine, f"the guest's kernel panicked on exception {machine.panicked}")
        else:
            self._run = machine.begin(routine)
            self._begun = now

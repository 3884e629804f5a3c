"""The lines that `policyc guest` reads and writes.

A line in is a command with at most one word after it. A line out answers it, or reports what a routine did: a sentence
for people, or one JSON object for programs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, TextIO

from policyc.emulator.routines import Kind, Routine, RoutineResult

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["COMMANDS", "Console", "ConsoleCommand", "ConsoleError", "parse"]

COMMANDS: Final[Mapping[str, str]] = {
    "attack": "NAME  let the guest's rootkit do something; `list` names what there is",
    "act": "NAME  let the guest's kernel do something it may",
    "status": "what the guest and the connection are at",
    "list": "attacks and acts",
    "unhook": "ask the tool to leave, as a VMM does before a migration",
    "reset": "reset the machine: it boots anew and connects again",
    "boot": "end the firmware's time and start the kernel",
    "stop": "stop the vCPUs; commands to them stay unanswered",
    "cont": "let the vCPUs run again",
    "help": "this list",
    "quit": "end",
}
LINE_MAX: Final = 1024


class ConsoleError(ValueError):
    """A line that isn't understood; the message says what would be."""


@dataclass(frozen=True, slots=True)
class ConsoleCommand:
    """A line that was understood; `routine` is there for `attack` and `act`."""

    word: str
    routine: Routine | None = None


def parse(line: str, routines: Mapping[str, Routine]) -> ConsoleCommand | None:
    """Read one line; None if it's empty or a comment.

    Args:
        routines: what the guest can be asked for, by name.

    Raises:
        ConsoleError: it isn't a command.
    """
    if len(line) > LINE_MAX:
        raise ConsoleError(f"a line has at most {LINE_MAX} characters")
    words = line.split("#", 1)[0].split()
    if not words:
        return None
    word, *rest = words
    if word not in COMMANDS:
        raise ConsoleError(_no_such("command", word, COMMANDS))
    if word not in {kind.value for kind in Kind}:
        if rest:
            raise ConsoleError(f"`{word}` takes nothing after it")
        return ConsoleCommand(word)
    names = [name for name, routine in routines.items() if routine.kind.value == word]
    if len(rest) != 1:
        raise ConsoleError(f"`{word}` takes one name: {', '.join(names)}")
    if rest[0] not in names:
        raise ConsoleError(_no_such(word, rest[0], names))
    return ConsoleCommand(word, routines[rest[0]])


class Console:
    """Writes answers and reports.

    Args:
        as_json: one JSON object a line.
    """

    def __init__(self, out: TextIO, *, as_json: bool) -> None:
        self._out = out
        self._as_json = as_json

    def say(self, kind: str, sentence: str, **fields: object) -> None:
        """Write one line: the sentence, or its fields under a `kind`."""
        line = json.dumps({"kind": kind, **(fields or {"text": sentence})}) if self._as_json else sentence
        self._out.write(line + "\n")
        self._out.flush()

    def result(self, result: RoutineResult) -> None:
        """Report a finished routine."""
        routine = result.routine
        self.say(
            routine.kind.value,
            _sentence(result),
            name=routine.name,
            outcome=_outcome(result),
            target=str(routine.target) if routine.target is not None else None,
            before=result.before.hex(),
            after=result.after.hex(),
            fault=result.fault,
            returned=result.value if result.fault is None else None,
            jiffies=list(result.jiffies),
            instructions=result.instructions,
            events=result.events,
        )

    def lost(self, routine: Routine, reason: str) -> None:
        """Report a routine that will never finish."""
        self.say(
            routine.kind.value,
            f"{routine.kind.value} {routine.name}: never finished: {reason}",
            name=routine.name,
            outcome="lost",
            reason=reason,
        )

    def help(self) -> None:
        """Write what can be asked for."""
        for word, what in COMMANDS.items():
            self.say("help", f"{word:7} {what}", command=word, what=what)

    def routines(self, routines: Mapping[str, Routine]) -> None:
        """Write all attacks and acts."""
        for routine in routines.values():
            self.say(
                "routine",
                f"{routine.kind.value:6} {routine.name:16} {routine.what}",
                type=routine.kind.value,
                name=routine.name,
                what=routine.what,
            )


def _outcome(result: RoutineResult) -> str:
    if result.routine.target is None:
        return "done" if result.fault is None else "refused"
    return "changed" if result.changed else "unchanged"


def _sentence(result: RoutineResult) -> str:
    routine = result.routine
    parts = [f"{routine.kind.value} {routine.name}: {_outcome(result)}"]
    if routine.target is not None:
        shown = f"{routine.target} {result.before.hex()}"
        parts.append(f"{shown} -> {result.after.hex()}" if result.changed else shown)
    parts.append("returned" if result.fault is None else f"ended by exception {result.fault}")
    parts.append(f"{result.events} event{'' if result.events == 1 else 's'}")
    parts.append(f"{result.instructions} instructions")
    return ", ".join(parts)


def _no_such(what: str, word: str, known: Mapping[str, str] | list[str]) -> str:
    close = get_close_matches(word, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"no such {what}: {word!r}; {hint}"

"""The lines that `policyc guest` reads and writes.

A line in is a command and what it takes. A line out answers it, or reports what a routine did: a sentence
for people, or one JSON object for programs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, TextIO

from policyc.emulator.routines import Kind, Routine, RoutineResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["COMMANDS", "Console", "ConsoleCommand", "ConsoleError", "panic_of", "parse"]

COMMANDS: Final[Mapping[str, str]] = {
    "attack": "NAME[@N]  let the guest's rootkit do something, on vCPU N; `list` names what there is",
    "act": "NAME[@N]  let the guest's kernel do something it may",
    "online": "N  let the guest start vCPU N",
    "offline": "N  let the guest take vCPU N down",
    "hotplug": "one more vCPU, not started",
    "dma": "SYMBOL[+OFFSET] HEX  let a device store these bytes",
    "status": "what the guest, its vCPUs and the connection are at",
    "list": "attacks and acts",
    "unhook": "ask the tool to leave, as a VMM does before a migration",
    "hangup": "[N]  break the connection, or break it after N messages of the tool",
    "reset": "reset the machine: it boots anew and connects again",
    "boot": "end the firmware's time: load the kernel and start it",
    "stop": "stop the vCPUs; commands to them stay unanswered",
    "cont": "let the vCPUs run again",
    "shutdown": "switch the machine off",
    "help": "this list",
    "quit": "end",
}
LINE_MAX: Final = 1024
_NUMBER_DIGITS: Final = 6


class ConsoleError(ValueError):
    """A line that isn't understood, or can't be obeyed now; the message says what would be."""


@dataclass(frozen=True, slots=True)
class ConsoleCommand:
    """A line that was understood.

    Attributes:
        routine: for `attack` and `act`, on the vCPU that was named.
        number: what stands after `online`, `offline`, and perhaps after `hangup`.
        symbol, offset, data: what stands after `dma`.
    """

    word: str
    routine: Routine | None = None
    number: int | None = None
    symbol: str = ""
    offset: int = 0
    data: bytes = b""


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
    if word in {kind.value for kind in Kind}:
        return _routine(word, rest, routines)
    if reader := _READERS.get(word):
        return reader(word, rest)
    if rest:
        raise ConsoleError(f"`{word}` takes nothing after it")
    return ConsoleCommand(word)


def _routine(word: str, rest: list[str], routines: Mapping[str, Routine]) -> ConsoleCommand:
    names = [name for name, routine in routines.items() if routine.kind.value == word]
    vcpu = 0
    name, at, number = " ".join(rest).partition("@")
    if at:
        vcpu = _number(number, "@ stands before the number of a vCPU")
        rest = name.split()
    if len(rest) != 1:
        raise ConsoleError(f"`{word}` takes one name: {', '.join(names)}")
    if rest[0] not in names:
        raise ConsoleError(_no_such(word, rest[0], names))
    return ConsoleCommand(word, routines[rest[0]].on(vcpu))


def _numbered(word: str, rest: list[str]) -> ConsoleCommand:
    hint = f"`{word}` takes the number of a vCPU"
    if len(rest) != 1:
        raise ConsoleError(hint)
    return ConsoleCommand(word, number=_number(rest[0], hint))


def _perhaps_numbered(word: str, rest: list[str]) -> ConsoleCommand:
    hint = f"`{word}` takes a number of messages from 1 on, or nothing"
    number = _number(rest[0], hint) if rest else None
    if len(rest) > 1 or number == 0:
        raise ConsoleError(hint)
    return ConsoleCommand(word, number=number)


def _store(word: str, rest: list[str]) -> ConsoleCommand:
    hint = f"`{word}` takes a symbol and bytes in hexadecimal, such as `sys_call_table+0x8 9090`"
    if len(rest) != 2:
        raise ConsoleError(hint)
    symbol, _, offset = rest[0].partition("+")
    try:
        return ConsoleCommand(word, symbol=symbol, offset=int(offset or "0", 0), data=bytes.fromhex(rest[1]))
    except ValueError:
        raise ConsoleError(hint) from None


_READERS: Final[Mapping[str, Callable[[str, list[str]], ConsoleCommand]]] = {
    "online": _numbered,
    "offline": _numbered,
    "hangup": _perhaps_numbered,
    "dma": _store,
}
"""How the commands are read that take something else than a routine's name."""


def _number(text: str, hint: str) -> int:
    if not (text.isdecimal() and text.isascii() and len(text) <= _NUMBER_DIGITS):
        raise ConsoleError(hint)
    return int(text)


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

    def result(self, result: RoutineResult, word: str) -> None:
        """Report a finished routine under the word that asked for it."""
        self._report(result, word, _outcome(result), _sentence(result, word))

    def held(self, result: RoutineResult, word: str) -> None:
        """Report a routine whose vCPU doesn't get on: what it has done so far."""
        known = ", ".join((*_seen(result), f"{result.events} events"))
        self._report(result, word, "held", f"{_named(result.routine, word)}: held, its vCPU doesn't go on: {known}")

    def _report(self, result: RoutineResult, word: str, outcome: str, text: str) -> None:
        routine = result.routine
        self.say(
            word,
            text,
            name=routine.name,
            vcpu=routine.subject,
            outcome=outcome,
            target=str(routine.target) if routine.target is not None else None,
            before=result.before.hex(),
            after=result.after.hex(),
            fault=result.fault,
            returned=result.value if result.fault is None else None,
            jiffies=list(result.jiffies),
            instructions=result.instructions,
            events=result.events,
        )

    def lost(self, routine: Routine, word: str, reason: str) -> None:
        """Report a routine that will never finish, or that couldn't begin."""
        self.say(
            word,
            f"{_named(routine, word)}: never finished: {reason}",
            name=routine.name,
            vcpu=routine.subject,
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
        return "done" if result.fault is None and result.refusal is None else "refused"
    return "changed" if result.changed else "unchanged"


def panic_of(exception: int) -> str:
    """That the guest's kernel is no more, in words."""
    return f"the guest's kernel panicked on exception {exception}"


def _named(routine: Routine, word: str) -> str:
    if routine.name == word:
        return f"{word} {routine.subject}"
    return f"{word} {routine.name} @{routine.vcpu}" if routine.vcpu else f"{word} {routine.name}"


def _seen(result: RoutineResult) -> tuple[str, ...]:
    """The target as it was, and as it is where that's different; nothing if there is none."""
    if result.routine.target is None:
        return ()
    shown = f"{result.routine.target} {result.before.hex()}"
    return (f"{shown} -> {result.after.hex()}" if result.changed else shown,)


def _sentence(result: RoutineResult, word: str) -> str:
    parts = [f"{_named(result.routine, word)}: {_outcome(result)}{f': {result.refusal}' if result.refusal else ''}"]
    parts += _seen(result)
    returned = f"returned {result.value}" if result.value else "returned"
    parts.append(returned if result.fault is None else f"ended by exception {result.fault}")
    parts.append(f"{result.events} event{'' if result.events == 1 else 's'}")
    parts.append(f"{result.instructions} instructions")
    return ", ".join(parts)


def _no_such(what: str, word: str, known: Mapping[str, str] | list[str]) -> str:
    close = get_close_matches(word, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"no such {what}: {word!r}; {hint}"

"""How a command ends: the exit codes, and which failure ends with which of them.

Scripts rely on the numbers; they are documented for users and never change their meaning.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["FAILURES", "CommandError", "ExitCode", "Failure", "failure_of"]


class ExitCode(IntEnum):
    """What the shell gets to see."""

    OK = 0
    FINDINGS = 1
    """There is something to say about the input: diagnostics, differences, failed tests."""
    USAGE = 2
    """The command was called wrongly, or a file that it names can't be read or written."""
    ARTIFACT_REFUSED = 3
    """A profile, plan or configuration isn't one, or is of a version that this program doesn't know."""
    TARGET_REFUSED = 4
    """The guest or its kernel can't hold the plan."""
    PROTECTION_LOST = 5
    """The guest was protected and no longer is."""
    INTERNAL = 70
    """A defect of this program (EX_SOFTWARE of sysexits.h)."""
    INPUT_OUTPUT = 74
    """The operating system failed to read or write (EX_IOERR of sysexits.h)."""
    INTERRUPTED = 130
    """Ctrl-C: 128 and the number of SIGINT, as shells have it."""
    READER_GONE = 141
    """Whoever read the output has closed it: 128 and the number of SIGPIPE."""


class CommandError(Exception):
    """A command can't do what it was asked to: `fact` says why, `help` what would.

    Both are one line, in lower case and without a full stop, as diagnostics are.
    """

    def __init__(self, code: ExitCode, fact: str, *, help: str | None = None) -> None:
        super().__init__(fact)
        self.code = code
        self.fact = fact
        self.help = help

    def lines(self) -> Iterator[str]:
        """What the user reads; nothing in it acts on a terminal."""
        # Imported here because almost no run comes by.
        from policyc.diagnostics import printable

        yield f"error: {printable(self.fact)}"
        if self.help:
            yield f"  help: {printable(self.help)}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Exceptions of one class, named so that the table costs no import, end with `code`."""

    module: str
    name: str
    code: ExitCode

    def covers(self, error: BaseException) -> bool:
        """Whether `error` is one of these. What was never imported was never raised either."""
        known = getattr(sys.modules.get(self.module), self.name, None)
        return isinstance(known, type) and isinstance(error, known)


FAILURES: tuple[Failure, ...] = (
    Failure("policyc.guest.errors", "ProfileError", ExitCode.ARTIFACT_REFUSED),
    Failure("policyc.plan.store", "PlanRefusedError", ExitCode.ARTIFACT_REFUSED),
    Failure("policyc.emulator.recording", "RecordingError", ExitCode.ARTIFACT_REFUSED),
    Failure("policyc.emulator.process", "UnusableError", ExitCode.USAGE),
    Failure("policyc.plan.tables", "UnresolvedPlaceError", ExitCode.ARTIFACT_REFUSED),
    Failure("policyc.runtime.service", "PlanUnsupportedError", ExitCode.ARTIFACT_REFUSED),
    Failure("policyc.runtime.transport", "TransportError", ExitCode.INPUT_OUTPUT),
    Failure("policyc.runtime.audit", "AuditError", ExitCode.INPUT_OUTPUT),
    Failure("builtins", "FileNotFoundError", ExitCode.USAGE),
    Failure("builtins", "IsADirectoryError", ExitCode.USAGE),
    Failure("builtins", "NotADirectoryError", ExitCode.USAGE),
    Failure("builtins", "PermissionError", ExitCode.USAGE),
    Failure("builtins", "OSError", ExitCode.INPUT_OUTPUT),
)
"""The first row that covers an exception decides. What no row covers is a defect."""


def failure_of(error: BaseException) -> CommandError | None:
    """`error` as the user reads it, or None where it is none of the expected failures."""
    if isinstance(error, CommandError):
        return error
    for failure in FAILURES:
        if failure.covers(error):
            return CommandError(failure.code, _fact(error), help=getattr(error, "help", None))
    return None


def _fact(error: BaseException) -> str:
    """The sentence that `error` says: its `message` where it has one, as those that come with a `help` do."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror[:1].lower() + error.strerror[1:]
        return f"`{error.filename}`: {reason}" if error.filename is not None else reason
    return str(getattr(error, "message", error))

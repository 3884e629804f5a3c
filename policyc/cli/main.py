"""The entry point of `policyc`: the table of commands, and the one place where an outcome becomes an exit code."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from policyc import __version__
from policyc.cli.color import color_option
from policyc.cli.command_table import CommandRow, CommandTable
from policyc.cli.exit_codes import ExitCode, failure_of

__all__ = ["COMMANDS", "DEBUG_VARIABLE", "main"]

DEBUG_VARIABLE = "POLICYC_DEBUG"
"""Set to 1, it shows the traceback behind an error."""

COMPLETION_VARIABLE = "_POLICYC_COMPLETE"
"""Set by the shell function that click's completion installs."""

COMMANDS: tuple[CommandRow, ...] = (
    CommandRow("Policies", "check", "check", "say what is wrong with policy files"),
    CommandRow("Policies", "compile", "compile", "turn policy files into a plan"),
    CommandRow("Policies", "fmt", "fmt", "write policy files in the canonical form"),
    CommandRow("Policies", "explain", "explain", "say how a plan decides, and why"),
    CommandRow("Policies", "test", "test", "run the tests that stand in policy files"),
    CommandRow("Policies", "words", "words", "look up the words of the language"),
    CommandRow("Guests", "profile", "profile", "find out where a guest's kernel has its sections and symbols"),
    CommandRow("Guests", "guest", "guest", "run a guest that speaks KVMI, without KVM"),
    CommandRow("Enforcement", "demo", "demo", "see attacks on a small guest stopped"),
    CommandRow("Enforcement", "run", "run", "enforce a plan on the guest that connects"),
    CommandRow("Enforcement", "doctor", "doctor", "explain what is there between policyc and a guest"),
)
"""Every command of `policyc`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (by default the process's own) name.

    Returns:
        An exit code, see `ExitCode`. What went wrong has been said on standard error.
    """
    _prepare_streams()
    if COMPLETION_VARIABLE in os.environ:
        _commands().main(prog_name="policyc")
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        return ExitCode.INTERRUPTED
    except Exception as error:
        return ExitCode.READER_GONE if _reader_is_gone(error) else _report(error)
    return code


def _prepare_streams() -> None:
    """Make the standard streams usable whatever the caller did to them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # Python has None there where the descriptor was closed, as `>&-` does.
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open as long as the process runs
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A policy may hold characters that the terminal's encoding lacks; they are no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")


def _commands() -> CommandTable:
    version = click.version_option(__version__, message="policyc %(version)s")
    table = CommandTable(
        name="policyc",
        rows=COMMANDS,
        params=[color_option(default="auto")],
        help="Write, compile and enforce policies that guard KVM virtual machines from outside.",
    )
    return version(table)


def _run(arguments: Sequence[str]) -> int:
    try:
        with _commands().make_context("policyc", [*arguments]) as context:
            outcome = context.command.invoke(context)
    except click.exceptions.Exit as asked:
        return asked.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return outcome if isinstance(outcome, int) else ExitCode.OK


def _reader_is_gone(error: Exception) -> bool:
    """Whether `error` means that whoever read our output has closed it.

    A guest's socket may break as well, and that is never quiet: so the output itself is asked.
    """
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        output = sys.stdout.fileno()
    except OSError:
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not poll.poll(0):
        return False
    # What is still buffered would be written, and fail again, when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _report(error: Exception) -> int:
    """Say what happened, in one line where it is a defect."""
    if os.environ.get(DEBUG_VARIABLE) == "1":
        sys.excepthook(type(error), error, error.__traceback__)
    if failure := failure_of(error):
        for line in failure.lines():
            click.echo(line, err=True)
        return failure.code
    click.echo(
        f"internal error: {type(error).__name__}: {' '.join(str(error).split())} (this is a defect of policyc: please "
        f"report it as CONTRIBUTING.md says, with the output of the same command under {DEBUG_VARIABLE}=1)",
        err=True,
    )
    return ExitCode.INTERNAL

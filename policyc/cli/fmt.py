"""`policyc fmt`: writes policy files in the one canonical form."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from policyc.catalog import PLAIN_EFFECT_WORDS
from policyc.cli.artifact_files import STDIN
from policyc.cli.atomic_file import write_atomically
from policyc.cli.color import wants_color
from policyc.cli.command_table import examples
from policyc.cli.exit_codes import CommandError, ExitCode
from policyc.cli.policy_files import read_policies
from policyc.cli.policy_options import report
from policyc.cli.progress import progress
from policyc.cli.unified_diff import unified_diff
from policyc.diagnostics import Diagnostic, Source, Span, printable
from policyc.lang.format import format_policy
from policyc.lang.parse import parse

__all__ = ["command"]


@dataclass(frozen=True, slots=True)
class Input:
    """What is to be formatted: a text under the name that the user typed, and its file; None is standard input."""

    source: Source
    path: Path | None

    @property
    def name(self) -> str:
        """The name as it is shown."""
        return printable(self.source.name)


@dataclass(frozen=True, slots=True)
class Formatted:
    """An input and its canonical form."""

    input: Input
    text: str

    @property
    def changes(self) -> bool:
        """Whether the input isn't in its canonical form."""
        return self.text != self.input.source.text


@click.command(
    "fmt",
    epilog=examples(
        "policyc fmt policies/",
        "policyc fmt kernel.policy --diff",
        "policyc fmt policies/ --check",
    ),
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--check", is_flag=True, help="Write nothing: list the files that would change, and fail if one would.")
@click.option("--diff", is_flag=True, help="Write nothing: show what would change; with --check, in place of the list.")
def command(files: tuple[str, ...], check: bool, diff: bool) -> ExitCode:
    """Write policies in the canonical form.

    FILE is a policy file, a folder whose *.policy files are meant, or - for standard input, whose canonical form goes
    to standard output. A file is rewritten in its place, whole or not at all, and only if that changes it. What a
    policy means stays the same, and so do its comments.

    A text with a syntax error stays as it is, and the others are formatted nevertheless. Findings go to standard
    error.

    Exit code 1 means that there is a syntax error, or with --check that a file would change.
    """
    inputs, unreadable = _read(files)
    if not check and not diff:
        _refuse_what_is_no_file(inputs)
    outcomes, findings = _format(inputs)
    changed = [outcome for outcome in outcomes if outcome.changes]
    if diff:
        _show(changed)
    elif check:
        click.echo("".join(f"{outcome.input.name}\n" for outcome in changed), nl=False)
    else:
        _write(outcomes)
    code = report([*unreadable, *findings], sys.stderr, format="text", deny=None)
    return ExitCode.FINDINGS if check and changed else code


def _read(names: Iterable[str]) -> tuple[list[Input], list[Diagnostic]]:
    """Every text that is meant, each once; and why others are no text.

    Raises:
        OSError: a file can't be read.
        CommandError: a name is empty, or a folder has no policy file or too many.
    """
    inputs: dict[str, Input] = {}
    unreadable: list[Diagnostic] = []
    for name in dict.fromkeys(names):
        policies = read_policies([name])
        unreadable += policies.unreadable
        for kept in policies.sources:
            typed = policies.span_as_typed(Span(kept, 0, 0)).source
            path = None if name == STDIN else Path(name, kept.name) if Path(name).is_dir() else Path(name)
            inputs.setdefault(STDIN if path is None else os.path.realpath(path), Input(typed, path))
    return [*inputs.values()], list(dict.fromkeys(unreadable))


def _refuse_what_is_no_file(inputs: Iterable[Input]) -> None:
    """Refuse what can't be replaced by another content, before anything is written.

    Raises:
        CommandError: a path leads to a pipe or a device.
    """
    for input in inputs:
        if input.path is not None and not input.path.is_file():
            fact = f"`{input.name}` isn't a regular file, so it can't be rewritten"
            raise CommandError(ExitCode.USAGE, fact, help="give - to format standard input")


def _format(inputs: Sequence[Input]) -> tuple[list[Formatted], list[Diagnostic]]:
    """The canonical form of each input without a syntax error, and everything found."""
    outcomes: list[Formatted] = []
    findings: list[Diagnostic] = []
    with progress("formatting", len(inputs)) as tick:
        for input in inputs:
            file, found = parse(input.source, PLAIN_EFFECT_WORDS)
            findings += found
            if file is not None:
                text = format_policy(file)
                again, _ = parse(Source(input.source.name, text), PLAIN_EFFECT_WORDS)
                # Nobody reads again what a formatter wrote, so it may never say anything else.
                if again is None or (again.header, again.statements) != (file.header, file.statements):
                    raise RuntimeError(f"the canonical form of `{input.name}` would say something else")
                outcomes.append(Formatted(input, text))
            tick()
    return outcomes, findings


def _show(changed: Iterable[Formatted]) -> None:
    color = wants_color(sys.stdout)
    for outcome in changed:
        name = outcome.input.name
        click.echo(unified_diff(outcome.input.source.text, outcome.text, name, color=color), nl=False)


def _write(outcomes: Iterable[Formatted]) -> None:
    """Put each text where it belongs, and name the files that it changes."""
    for outcome in outcomes:
        if outcome.input.path is None:
            # As bytes: a policy is UTF-8, whatever the terminal's encoding is.
            click.echo(outcome.text.encode(), nl=False)
        elif outcome.changes:
            write_atomically(outcome.input.path, outcome.text.encode())
            click.echo(f"{outcome.input.name}: formatted", err=True)

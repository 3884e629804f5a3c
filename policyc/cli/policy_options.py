"""What the commands that compile policies share: which files, for which guest, and how findings are said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO, TypeVar

import click

from policyc.catalog import TARGETS
from policyc.cli.artifact_files import load_profile
from policyc.cli.color import wants_color
from policyc.cli.diagnostic_formats import FORMATS, render
from policyc.cli.exit_codes import ExitCode
from policyc.cli.policy_files import PolicyFiles, read_policies
from policyc.diagnostics import Diagnostic, Severity
from policyc.plan.pages import CPUS

if TYPE_CHECKING:
    from policyc.plan.model import Plan

__all__ = ["compile_files", "policy_options", "report"]

Command = TypeVar("Command", bound=Callable[..., ExitCode])


def policy_options(*, profile_required: bool) -> Callable[[Command], Command]:
    """Adds the arguments `files`, `profile`, `target`, `cpu`, `format` and `deny`."""
    options = (
        click.argument("files", nargs=-1, required=True, metavar="FILE..."),
        click.option(
            "--profile",
            required=profile_required,
            metavar="FILE",
            help="The guest's profile, as `policyc profile build` made it; - is standard input.",
        ),
        click.option(
            "--target",
            type=click.Choice(["any", *TARGETS]),
            default="any",
            show_default=True,
            help="The KVMI dialect that everything must be legal in.",
        ),
        click.option(
            "--cpu",
            type=click.Choice(CPUS),
            default="any",
            show_default=True,
            help="The processor whose page tables must hold the rights.",
        ),
        click.option(
            "--format",
            type=click.Choice([*FORMATS]),
            default="text",
            show_default=True,
            help="How findings are written.",
        ),
        click.option("--deny", type=click.Choice(["warnings"]), help="Let warnings fail the command too."),
    )

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def compile_files(
    files: Sequence[str], *, profile: str | None, target: str, cpu: str
) -> tuple[PolicyFiles, Plan | None, list[Diagnostic]]:
    """Read and compile what the user named.

    Returns:
        The files; the plan, None after an error or without a profile; and all findings, in the user's names of files.

    Raises:
        OSError: a file can't be read.
        CommandError: a folder holds no policy, or the profile is refused.
    """
    from policyc.compiler.checks import CheckOptions
    from policyc.compiler.pipeline import compile_policies

    if profile == "-" and "-" in files:
        raise click.UsageError("standard input can't be both the policy and the profile")
    policies = read_policies(files)
    known = load_profile(profile) if profile is not None else None
    result = compile_policies(policies.sources, known, CheckOptions(target=target, cpu=cpu))
    findings = [*policies.unreadable, *policies.as_typed(result.diagnostics)]
    return policies, None if policies.unreadable else result.plan, findings


def report(findings: Sequence[Diagnostic], stream: TextIO, *, format: str, deny: str | None) -> ExitCode:
    """Write `findings` to `stream`, and say how the command ends because of them."""
    click.echo(render(findings, format=format, color=wants_color(stream)), file=stream, nl=False)
    fatal = {Severity.ERROR, Severity.WARNING} if deny == "warnings" else {Severity.ERROR}
    return ExitCode.FINDINGS if any(found.severity in fatal for found in findings) else ExitCode.OK

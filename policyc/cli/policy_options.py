"""What the commands that compile policies share: which files, for which guest, and how findings are said."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO, TypeVar

import click

from policyc.catalog import TARGETS
from policyc.cli.artifact_files import STDIN, load_profile
from policyc.cli.color import wants_color
from policyc.cli.diagnostic_formats import FORMATS, render
from policyc.cli.exit_codes import ExitCode
from policyc.cli.policy_files import PolicyFiles, read_policies
from policyc.diagnostics import Diagnostic, Severity
from policyc.plan.pages import CPUS

if TYPE_CHECKING:
    from policyc.compiler.options import CheckOptions
    from policyc.guest.profile import Profile
    from policyc.plan.model import Plan

__all__ = ["compile_files", "compile_inputs", "plan_options", "policy_options", "read_inputs", "report"]

Command = TypeVar("Command", bound=Callable[..., ExitCode])


def plan_options(*, profile_required: bool, files: bool = True) -> Callable[[Command], Command]:
    """Adds the arguments `files` (unless a command reads its own), `profile`, `target` and `cpu`."""
    return _all_of(
        *([click.argument("files", nargs=-1, required=True, metavar="FILE...")] if files else []),
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
    )


def policy_options(*, profile_required: bool) -> Callable[[Command], Command]:
    """Adds the arguments `files`, `profile`, `target`, `cpu`, `accept_hot_pages`, `format` and `deny`."""
    return _all_of(
        plan_options(profile_required=profile_required),
        click.option(
            "--accept-hot-pages",
            is_flag=True,
            help="Let rules guard pages that the guest uses all the time, whatever that costs it.",
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


def compile_files(
    files: Sequence[str], *, profile: str | None, target: str, cpu: str, accept_hot_pages: bool
) -> tuple[PolicyFiles, Plan | None, list[Diagnostic]]:
    """Read and compile what the user named.

    Returns:
        The files; the plan, None after an error or without a profile; and all findings, in the user's names of files.

    Raises:
        OSError: a file can't be read.
        CommandError: a folder holds no policy, or the profile is refused.
    """
    from policyc.compiler.options import CheckOptions

    policies, known = read_inputs(files, profile)
    options = CheckOptions(target=target, cpu=cpu, accept_hot_pages=accept_hot_pages, today=datetime.date.today())
    plan, findings = compile_inputs(policies, known, options)
    return policies, plan, findings


def read_inputs(files: Sequence[str], profile: str | None) -> tuple[PolicyFiles, Profile | None]:
    """The policies and the profile that the user named.

    Raises:
        OSError: a file can't be read.
        CommandError: a folder holds no policy, or the profile is refused.
    """
    if profile == STDIN and STDIN in files:
        raise click.UsageError("standard input can't be both the policy and the profile")
    return read_policies(files), load_profile(profile) if profile is not None else None


def compile_inputs(
    policies: PolicyFiles, profile: Profile | None, options: CheckOptions
) -> tuple[Plan | None, list[Diagnostic]]:
    """One plan of all the policies, None after an error or without a profile; and all findings, in the user's names."""
    from policyc.compiler.pipeline import compile_policies

    result = compile_policies(policies.sources, profile, options, policies.load)
    findings = [*policies.unreadable, *policies.as_typed(result.diagnostics)]
    return None if policies.unreadable else result.plan, findings


def report(findings: Sequence[Diagnostic], stream: TextIO, *, format: str, deny: str | None) -> ExitCode:
    """Write `findings` to `stream`, and say how the command ends because of them."""
    click.echo(render(findings, format=format, color=wants_color(stream)), file=stream, nl=False)
    fatal = {Severity.ERROR, Severity.WARNING} if deny == "warnings" else {Severity.ERROR}
    return ExitCode.FINDINGS if any(found.severity in fatal for found in findings) else ExitCode.OK


def _all_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add

"""`policyc check`: says everything that is wrong with policy files."""

from __future__ import annotations

import sys

import click

from policyc.cli.command_table import examples
from policyc.cli.exit_codes import ExitCode
from policyc.cli.policy_options import compile_files, policy_options, report

__all__ = ["command"]


@click.command(
    "check",
    epilog=examples(
        "policyc check policies/",
        "policyc check kernel.policy --profile kernel.profile --deny warnings",
        "policyc check policies/ --profile kernel.profile --format github",
    ),
)
@policy_options(profile_required=False)
def command(
    files: tuple[str, ...],
    profile: str | None,
    target: str,
    cpu: str,
    accept_hot_pages: bool,
    format: str,
    deny: str | None,
) -> ExitCode:
    """Say what is wrong with policies.

    FILE is a policy file, a folder whose *.policy files are meant, or - for standard input. All of them together are
    what would be enforced. Without a profile, no symbol or section is looked up.

    Exit code 0 means that nothing is wrong, 1 that something is.
    """
    policies, _, findings = compile_files(
        files, profile=profile, target=target, cpu=cpu, accept_hot_pages=accept_hot_pages
    )
    code = report(findings, sys.stdout, format=format, deny=deny)
    if format == "text" and not findings:
        count = len(policies)
        looked_up = "" if profile is not None else ", without a profile to look places up in"
        click.echo(f"{count} file{'' if count == 1 else 's'} checked{looked_up}: nothing to report")
    return code

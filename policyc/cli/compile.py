"""`policyc compile`: turns policy files and a profile into the plan that is enforced."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from policyc.cli.artifact_files import shown_name
from policyc.cli.atomic_file import write_atomically
from policyc.cli.command_table import examples
from policyc.cli.exit_codes import ExitCode
from policyc.cli.policy_options import compile_files, policy_options, report

__all__ = ["command"]


@click.command(
    "compile",
    epilog=examples(
        "policyc compile kernel.policy --profile kernel.profile -o plan.json",
        "policyc compile policies/ --profile kernel.profile --target kvmi-v7 -o plan.json",
    ),
)
@policy_options(profile_required=True)
@click.option("-o", "--output", required=True, metavar="FILE", help="Where the plan goes; - is standard output.")
def command(
    files: tuple[str, ...],
    profile: str,
    target: str,
    cpu: str,
    accept_hot_pages: bool,
    format: str,
    deny: str | None,
    output: str,
) -> ExitCode:
    """Compile policies into one plan.

    FILE is a policy file, a folder whose *.policy files are meant, or - for standard input. The same policies give the
    same plan, byte for byte, in whatever order they stand. After an error no plan is written, and one that is there
    stays as it is.

    Findings go to standard error; exit code 1 means that there is no plan because of them.
    """
    from policyc.plan.store import core_digest, dump

    _, plan, findings = compile_files(files, profile=profile, target=target, cpu=cpu, accept_hot_pages=accept_hot_pages)
    code = report(findings, sys.stderr, format=format, deny=deny)
    if code is not ExitCode.OK or plan is None:
        return ExitCode.FINDINGS
    if output == "-":
        click.echo(dump(plan), nl=False)
        return ExitCode.OK
    write_atomically(Path(output), dump(plan).encode())
    if format == "text":
        count = len(plan.rules)
        click.echo(f"{shown_name(output)}: {count} rule{'' if count == 1 else 's'}, core {core_digest(plan)}", err=True)
    return ExitCode.OK

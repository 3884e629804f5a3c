"""`policyc doctor`: explains in plain words what is there between policyc and a guest, or why no guest comes."""

from __future__ import annotations

import json
import shutil
import sys
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import click

from policyc.cli.artifact_files import load_profile, read_secret
from policyc.cli.command_table import examples
from policyc.cli.exit_codes import ExitCode
from policyc.cli.seconds import Seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policyc.runtime.doctor_case import Case, Finding

__all__ = ["command"]

DEFAULT_SOCKET = "/run/policyc/guest.sock"

PIPE_WIDTH = 100
MAX_WIDTH = 120
"""Columns of the text: as many where there is no terminal, and at most on a wide one."""


@click.command(
    "doctor",
    epilog=examples(
        "policyc doctor --socket guest.sock",
        "policyc doctor --socket guest.sock --wait 60 --probe --profile kernel.profile",
        "policyc doctor --socket guest.sock --json",
    ),
)
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    default=DEFAULT_SOCKET,
    show_default=True,
    help="The UNIX socket that QEMU connects to.",
)
@click.option(
    "--wait",
    type=Seconds(0.0, 3600.0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a guest.",
)
@click.option("--cookie-file", metavar="FILE", help="The secret that QEMU was given as the key of its introspection.")
@click.option("--profile", metavar="FILE", help="Say whether this profile's kernel runs in the guest.")
@click.option("--probe", is_flag=True, help="Test whether writes are reported: at most six frames, a second each.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
def command(
    path: str, wait: float, cookie_file: str | None, profile: str | None, probe: bool, as_json: bool
) -> ExitCode:
    """Explain what is there between policyc and a guest.

    Listens on the socket until a guest comes, asks its kernel everything that can be asked, and lets it go; nothing in
    the guest is changed, but with --probe a few frames are write-protected for a moment. Where no guest comes, it says
    what is at the socket, who may connect, what QEMU has to be told, and the usual reasons.

    Exit code 0 means that all is well, 1 that something weakens or prevents enforcement, 4 that no guest came or that
    it was refused, 74 that the socket can't be made.
    """
    from policyc.cli.doctor_visit import VisitOptions, visit
    from policyc.runtime.doctor_findings import findings_of

    if not isfinite(wait):
        # Not a number compares as if it were in every range.
        raise click.BadParameter(f"{wait} is not a number of seconds")
    case = visit(
        VisitOptions(
            socket=Path(path).absolute(),
            wait=wait,
            secret=read_secret(cookie_file) if cookie_file is not None else None,
            profile=load_profile(profile) if profile is not None else None,
            probe=probe,
        )
    )
    findings = findings_of(case)
    _print(case, findings, Path(cookie_file).absolute() if cookie_file is not None else None, as_json)
    return _code(case, findings)


def _print(case: Case, findings: Sequence[Finding], secret: Path | None, as_json: bool) -> None:
    if as_json:
        from policyc.runtime.doctor_document import document_of

        click.echo(json.dumps(document_of(case, findings, secret), indent=2))
        return
    from policyc.cli.doctor_text import report_lines

    width = min(shutil.get_terminal_size().columns, MAX_WIDTH) if sys.stdout.isatty() else PIPE_WIDTH
    for line in report_lines(case, findings, secret, width):
        click.echo(line)


def _code(case: Case, findings: Sequence[Finding]) -> ExitCode:
    from policyc.runtime.doctor_case import Level

    if not case.listened:
        return ExitCode.INPUT_OUTPUT
    if not case.was_examined:
        return ExitCode.TARGET_REFUSED
    bad = any(finding.level in (Level.BROKEN, Level.WEAK) for finding in findings)
    return ExitCode.FINDINGS if bad else ExitCode.OK

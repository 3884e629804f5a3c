"""`policyc doctor`: explains in plain words what is there between policyc and a guest, or why no guest comes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import click

from policyc.cli.artifact_files import load_profile, read_secret
from policyc.cli.command_table import examples
from policyc.cli.exit_codes import ExitCode
from policyc.cli.progress import progress

if TYPE_CHECKING:
    import socket as sockets

    from policyc.guest.profile import Profile
    from policyc.runtime.doctor_case import Case, Finding
    from policyc.runtime.doctor_chart import Chart
    from policyc.runtime.doctor_place import Site
    from policyc.runtime.records import Record
    from policyc.runtime.transport import Listener, Peer

    Accepted = tuple[sockets.socket, Peer]

__all__ = ["command"]

DEFAULT_SOCKET = "/run/policyc/guest.sock"

PATIENCE = 0.25
"""Seconds of one wait: how often the progress moves."""


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
    type=click.FloatRange(0.0, 3600.0),
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
    from policyc.runtime.doctor_findings import findings_of

    if not isfinite(wait):
        # Not a number compares as if it were in every range.
        raise click.BadParameter(f"{wait} is not a number of seconds")
    secret = read_secret(cookie_file) if cookie_file is not None else None
    known = load_profile(profile) if profile is not None else None
    case = _case(Path(path).absolute(), wait, secret, known, probe)
    findings = findings_of(case)
    _print(case, findings, Path(cookie_file).absolute() if cookie_file is not None else None, as_json)
    return _code(case, findings)


def _case(path: Path, wait: float, secret: bytes | None, profile: Profile | None, probe: bool) -> Case:
    """Listen, wait, examine, and bring together what there is."""
    from policyc.runtime.doctor_case import Case
    from policyc.runtime.doctor_chart import Chart, Stage
    from policyc.runtime.doctor_host import look_at_host
    from policyc.runtime.doctor_place import find_place, survey_site
    from policyc.runtime.doctor_processes import process
    from policyc.runtime.transport import Listener, TransportError

    place, nobody = find_place(path), Chart(stage=Stage.NOBODY)
    try:
        listener = Listener(path)
    except TransportError as error:
        return Case(
            place,
            survey_site(path),
            look_at_host(),
            nobody,
            listened=False,
            problem=error.message,
            remedy=error.help,
            has_secret=secret is not None,
            is_probed=probe,
        )
    try:
        site: Site = survey_site(path)
        accepted = _wait(listener, wait)
    finally:
        listener.close()
    peer, chart = None, nobody
    if accepted is not None:
        connection, credentials = accepted
        peer = process(credentials.pid)
        chart = _examine(connection, secret, profile, probe)
    return Case(
        place,
        site,
        look_at_host(),
        chart,
        peer=peer,
        waited=wait,
        has_secret=secret is not None,
        is_probed=probe,
    )


def _wait(listener: Listener, seconds: float) -> Accepted | None:
    """The first that connects; None if nobody does."""
    end = time.monotonic() + seconds
    with progress("waiting for a guest", max(1, round(seconds / PATIENCE))) as tick:
        while True:
            left = end - time.monotonic()
            accepted = listener.accept(max(0.0, min(PATIENCE, left)))
            if accepted is not None or left <= 0:
                return accepted
            tick()


def _examine(connection: sockets.socket, secret: bytes | None, profile: Profile | None, probe: bool) -> Chart:
    from policyc.runtime.doctor import Checkup, conclude, step
    from policyc.runtime.doctor_probe import Watch
    from policyc.runtime.session import Session

    checkup = Checkup(profile, Watch() if probe else None)
    with _telling() as tell:
        end = Session(checkup, step, connection, tell, cookie=secret).run()
    return conclude(checkup, end.reason, end.fault)


@contextmanager
def _telling() -> Iterator[Callable[[Record], None]]:
    """Gives the function that shows on a terminal what the examination is at."""
    if not sys.stderr.isatty():
        yield lambda record: None
        return
    # Imported here: a twentieth of a second that only a terminal pays.
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda record: status.update(Text(str(getattr(record, "fact", ""))))


def _print(case: Case, findings: Sequence[Finding], secret: Path | None, as_json: bool) -> None:
    if as_json:
        from policyc.runtime.doctor_document import document_of

        click.echo(json.dumps(document_of(case, findings, secret), indent=2))
        return
    from policyc.cli.doctor_text import report_lines

    for line in report_lines(case, findings, secret):
        click.echo(line)


def _code(case: Case, findings: Sequence[Finding]) -> ExitCode:
    from policyc.runtime.doctor_case import Level

    if not case.listened:
        return ExitCode.INPUT_OUTPUT
    if not case.was_examined:
        return ExitCode.TARGET_REFUSED
    bad = any(finding.level in (Level.BROKEN, Level.WEAK) for finding in findings)
    return ExitCode.FINDINGS if bad else ExitCode.OK

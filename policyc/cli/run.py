"""`policyc run`: enforces a plan on the guest that connects."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from policyc.cli.artifact_files import load_plan, read_secret
from policyc.cli.command_table import examples
from policyc.cli.exit_codes import ExitCode
from policyc.cli.record_lines import record_line
from policyc.cli.record_printer import RecordPrinter
from policyc.cli.seconds import Seconds

if TYPE_CHECKING:
    from policyc.runtime.session import SessionEnd

__all__ = ["command"]

LINES: Mapping[str, Callable[[Mapping[str, object]], str]] = {"text": record_line, "json": json.dumps}


@click.command("run", epilog=examples("policyc run plan.json --socket /run/policyc/guest.sock --audit audit.ndjson"))
@click.argument("plan", metavar="PLAN")
@click.option("--socket", required=True, metavar="PATH", help="The UNIX socket that QEMU connects to.")
@click.option("--audit", metavar="FILE", help="Append every record to FILE, one JSON object a line.")
@click.option("--cookie-file", metavar="FILE", help="The secret that QEMU was given as the key of its introspection.")
@click.option("--monitor", is_flag=True, help="Let everything through and record what would be done.")
@click.option(
    "--unmapped",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    show_default=True,
    help="What to do about bytes of the plan's places that lead nowhere in the guest.",
)
@click.option(
    "--verify",
    type=Seconds(0.0, 86400.0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How often bytes that nobody may write are read again, to find what a device wrote; 0 is never.",
)
@click.option(
    "--self-test/--no-self-test",
    default=True,
    show_default=True,
    help="Whether to see for itself, once armed, that writes to protected frames are reported.",
)
@click.option("--once", is_flag=True, help="End when the first guest has gone.")
@click.option(
    "--format", type=click.Choice([*LINES]), default="text", show_default=True, help="How records are printed."
)
def command(
    plan: str,
    socket: str,
    audit: str | None,
    cookie_file: str | None,
    monitor: bool,
    unmapped: str,
    verify: float,
    self_test: bool,
    once: bool,
    format: str,
) -> ExitCode:
    """Enforce PLAN, which `policyc compile` made, on the guest that connects to the socket.

    Ends on SIGTERM or Ctrl-C, after the guest's rights are what they were before. Exit code 4 means that the plan can't
    be enforced on the guest, 5 that a guest was guarded and the connection to it is gone.
    """
    from policyc.runtime.locate import ArmingOptions
    from policyc.runtime.service import Service, ServiceOptions, leave_on_signal

    options = ServiceOptions(
        socket=Path(socket),
        audit=Path(audit) if audit is not None else None,
        cookie=read_secret(cookie_file) if cookie_file is not None else None,
        monitor=monitor,
        once=once,
        arming=ArmingOptions(skip_unmapped=unmapped == "skip", verify=verify, self_test=self_test),
    )
    with RecordPrinter(LINES[format]) as printer:
        service = Service(load_plan(plan), options, printer)
        with leave_on_signal(service):
            return _code(service.run())


def _code(end: SessionEnd | None) -> ExitCode:
    """How the command ends after the last connection ended so; None is that there was none."""
    from policyc.runtime.session import Ending

    codes = {
        Ending.LEFT: ExitCode.OK,
        Ending.REFUSED: ExitCode.TARGET_REFUSED,
        Ending.NEVER_ARMED: ExitCode.TARGET_REFUSED,
        Ending.LOST: ExitCode.PROTECTION_LOST,
    }
    return ExitCode.OK if end is None else codes[end.ending]

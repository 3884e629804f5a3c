"""`policyc guest replay`: a recorded conversation held again with a tool, or printed for people."""

from __future__ import annotations

from itertools import chain, islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from policyc.cli.artifact_files import named, shown_name
from policyc.cli.command_table import examples
from policyc.cli.exit_codes import CommandError, ExitCode
from policyc.cli.seconds import Seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyc.emulator.recording import RecordedMessage
    from policyc.kvmi import Dialect

__all__ = ["command"]

_LOOKED_AT = 64
"""Messages at the beginning in which the dialect has to show."""


@click.command(
    "replay",
    short_help="play the kernel's side of a recording",
    epilog=examples("policyc guest replay session.kvmi --socket /run/policyc/guest.sock"),
)
@click.argument("file", metavar="FILE")
@click.option("--socket", metavar="PATH", help="The UNIX socket that the tool listens on.")
@click.option("--show", is_flag=True, help="Print the messages instead, one a line.")
@click.option(
    "--conversation", type=click.IntRange(1), metavar="N", help="Which of the file's conversations; the first, or all."
)
@click.option("--dialect", type=click.Choice(["v7", "v12"]), help="The generation, where the recording doesn't tell.")
@click.option(
    "--deadline",
    type=Seconds(0.0, 3600.0, min_open=True),
    default=4.0,  # below the 5 seconds after which `policyc run` gives up a command, so that what is missing is told
    show_default=True,
    help="Seconds that the tool may take to listen, and for each thing it has to do next.",
)
def command(
    file: str, socket: str | None, show: bool, conversation: int | None, dialect: str | None, deadline: float
) -> ExitCode:
    """Play the kernel's side of a conversation that `policyc guest run --record` kept in FILE.

    It connects to the tool's socket as QEMU does, and says what the kernel said once the tool has said what it said
    then. Exit code 1 means that the tool said something else, or not what was next; each difference is told.
    """
    if show == (socket is not None):
        raise click.UsageError("say either --socket PATH or --show")
    if not isfinite(deadline):
        raise click.BadParameter(f"{deadline} is not a number of seconds")
    with Path(file).open("rb") as content, named(file):
        if show:
            return _show(file, content, conversation, dialect)
        assert socket is not None
        return _play(file, content, conversation, dialect, Path(socket), deadline)


def _show(name: str, content: BinaryIO, wanted: int | None, dialect: str | None) -> ExitCode:
    from policyc.emulator.recorded_text import Describer
    from policyc.emulator.recording import conversations

    shown = 0
    for number, messages in enumerate(conversations(content), 1):
        if wanted not in (None, number):
            continue
        shown += 1
        spoken, told = _dialect(messages, dialect)
        click.echo(f"conversation {number}, {spoken.name}")
        describer = Describer(spoken)
        for message in told:
            for line in describer.lines(message):
                click.echo(line)
    if not shown:
        raise _missing(name, wanted)
    return ExitCode.OK


def _play(
    name: str, content: BinaryIO, wanted: int | None, dialect: str | None, socket: Path, deadline: float
) -> ExitCode:
    from policyc.emulator.recording import conversations
    from policyc.emulator.replay import Replay
    from policyc.emulator.replay_process import replay_to

    messages = next(islice(conversations(content), (wanted or 1) - 1, None), None)
    if messages is None:
        raise _missing(name, wanted)
    spoken, told = _dialect(messages, dialect)
    replay = Replay(told, spoken)
    replay_to(socket, replay, deadline)
    for difference in replay.differences:
        click.echo(difference)
    again = f", {replay.repeated} asked again" if replay.repeated else ""
    click.echo(f"{replay.played} messages played{again}, {len(replay.differences)} differences")
    return ExitCode.FINDINGS if replay.differences else ExitCode.OK


def _missing(name: str, wanted: int | None) -> CommandError:
    held = "no conversation" if wanted is None else f"no conversation {wanted}"
    return CommandError(ExitCode.USAGE, f"`{shown_name(name)}` has {held}")


def _dialect(messages: Iterator[RecordedMessage], wanted: str | None) -> tuple[Dialect, Iterator[RecordedMessage]]:
    """The generation of a conversation, and all of its messages."""
    from policyc.emulator.recording import dialect_of
    from policyc.kvmi import DIALECTS

    asked = DIALECTS[f"kvmi-{wanted}"] if wanted is not None else None
    first = list(islice(messages, _LOOKED_AT))
    told = next((dialect for message in reversed(first) if (dialect := dialect_of(message)) is not None), None)
    spoken = told or asked
    if spoken is None:
        raise CommandError(
            ExitCode.ARTIFACT_REFUSED, "the recording doesn't tell which generation of KVMI it is", help="say --dialect"
        )
    if asked not in (None, spoken):
        raise CommandError(
            ExitCode.USAGE, f"the recording's own messages are of {spoken.name}", help=f"leave out --dialect {wanted}"
        )
    return spoken, chain(first, messages)

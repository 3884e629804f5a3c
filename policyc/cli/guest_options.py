"""Which options of `policyc guest run` go together: one that could have no effect is refused by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import click
from click.core import ParameterSource

__all__ = ["MISFITS", "Misfit", "check_fits"]

Values = Mapping[str, object]
"""What every parameter is, by its name in Python, defaults included."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """Options that can't be had where `holds` is true of the values, and why."""

    holds: Callable[[Values], bool]
    options: tuple[str, ...]
    why: str


MISFITS: tuple[Misfit, ...] = (
    Misfit(
        lambda values: values["folder"] is not None,
        ("--slide", "--boot", "--cpu", "--ram", "--vcpus", "--online", "--seed", "--kpti"),
        "is for the small guest: a snapshot has its own",
    ),
    Misfit(
        lambda values: values["folder"] is None,
        ("--workload",),
        "is for a Linux guest, whose folder has to be named: the small one has no shell",
    ),
    Misfit(
        lambda values: values["socket"] is None,
        (
            *("--dialect", "--hello", "--name", "--cookie-file", "--reconnect", "--settle", "--handshake-timeout"),
            *("--unhook-timeout", "--allow-command", "--allow-event", "--quirk", "--record", "--views"),
        ),
        "is about the conversation with a tool: name its --socket",
    ),
    Misfit(
        lambda values: values["dialect"] == "v12" or values["cpu"] == "amd",
        ("--views",),
        "takes --dialect v7 and --cpu intel: other hosts can't switch views",
    ),
    Misfit(
        lambda values: values["cpu"] == "intel" and values["quirks"] == ("amd-msr",),
        ("--quirk",),
        "amd-msr is a defect on AMD processors: say --cpu amd",
    ),
)


def check_fits(context: click.Context) -> None:
    """Refuse the first option on the command line that what else is there makes meaningless.

    Raises:
        click.BadParameter: there is one.
    """
    given = set(_given(context))
    for misfit in MISFITS:
        if misfit.holds(context.params):
            for option in misfit.options:
                if option in given:
                    raise click.BadParameter(f"{option} {misfit.why}")


def _given(context: click.Context) -> Iterator[str]:
    """The options that were typed, also with the value that they have anyway."""
    for parameter in context.command.params:
        if context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            yield parameter.opts[0]

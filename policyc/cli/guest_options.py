"""Which options of `policyc guest run` go together: one that could have no effect is refused by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import click
from click.core import ParameterSource

__all__ = ["check_fits"]

Values = Mapping[str, object]
"""What every parameter is, by its name in Python, defaults included."""


@dataclass(frozen=True, slots=True)
class _Misfit:
    """Options that can't be had where `holds`, and why."""

    holds: Callable[[Values], bool]
    options: tuple[str, ...]
    why: str


_MISFITS: tuple[_Misfit, ...] = (
    _Misfit(
        lambda values: values["folder"] is not None,
        ("--slide", "--boot", "--cpu", "--ram", "--vcpus", "--online", "--seed", "--kpti"),
        "is for the small guest: a snapshot has its own",
    ),
    _Misfit(
        lambda values: values["folder"] is None,
        ("--workload",),
        "is for a Linux guest, whose folder has to be named: the small one has no shell",
    ),
)


def check_fits(context: click.Context) -> None:
    """Refuse the first option on the command line that what else is there makes meaningless.

    Raises:
        click.BadParameter: there is one.
    """
    given = set(_given(context))
    for misfit in _MISFITS:
        if misfit.holds(context.params):
            for option in misfit.options:
                if option in given:
                    raise click.BadParameter(f"{option} {misfit.why}")


def _given(context: click.Context) -> Iterator[str]:
    """The options that were typed, also with the value that they have anyway."""
    for parameter in context.command.params:
        if context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            yield parameter.opts[0]

"""A command group that imports a command's module when the command is called, and not before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

import click

from policyc.cli.color import color_option

__all__ = ["CommandRow", "CommandTable", "examples"]


@dataclass(frozen=True, slots=True)
class CommandRow:
    """One command: the heading it stands under in `--help`, its name, its module's name and one line about it.

    The module lies in `policyc.cli` and calls its command `command`.
    """

    heading: str
    name: str
    module: str
    summary: str


class CommandTable(click.Group):
    """The commands of `rows`; each also takes the options that are the same for all."""

    def __init__(self, *, rows: Sequence[CommandRow], name: str, help: str, params: Sequence[click.Parameter]) -> None:
        super().__init__(name, help=help, params=[*params], context_settings={"help_option_names": ["-h", "--help"]})
        self._rows = {row.name: row for row in rows}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return [*self._rows]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        row = self._rows.get(cmd_name)
        if row is None:
            return None
        command = import_module(f"policyc.cli.{row.module}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"{row.module}.command is not a command")
        _add_color(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but a mistyped name is answered with the names that are near."""
        if not ctx.resilient_parsing and args[0] not in self._rows and not args[0].startswith("-"):
            near = get_close_matches(args[0], self._rows)
            hint = f"; did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else ""
            ctx.fail(f"there is no command `{args[0]}`{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the table alone."""
        headings = dict.fromkeys(row.heading for row in self._rows.values())
        width = max(map(len, self._rows))
        for heading in headings:
            with formatter.section(heading):
                rows = [(row.name.ljust(width), row.summary) for row in self._rows.values() if row.heading == heading]
                formatter.write_dl(rows)


def examples(*lines: str) -> str:
    """The epilog of a command: lines that a user can type as they stand."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def _add_color(command: click.Command) -> None:
    """Let `--color` stand behind the command too."""
    if not any(parameter.name == "color" for parameter in command.params):
        command.params.append(color_option())
    if isinstance(command, click.Group):
        for part in command.commands.values():
            _add_color(part)

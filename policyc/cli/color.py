"""Whether output is coloured: `--color` before or behind the command, `NO_COLOR`, and else only on a terminal.

`NO_COLOR` is the convention of https://no-color.org: set and not empty, it turns off colour that nobody asked for by
an option.
"""

from __future__ import annotations

import os
from typing import TextIO

import click

__all__ = ["color_option", "wants_color"]


def color_option(*, default: str | None = None) -> click.Option:
    """The option `--color`; without a `default` it leaves as it is what was said before the command."""
    return click.Option(
        ["--color"],
        type=click.Choice(["auto", "always", "never"]),
        default=default,
        show_default=default is not None,
        expose_value=False,
        is_eager=True,
        callback=_set_color,
        help="When to colour the output; auto does on a terminal unless NO_COLOR is set.",
    )


def wants_color(stream: TextIO) -> bool:
    """Whether what is written to `stream` by the running command is to be coloured."""
    context = click.get_current_context(silent=True)
    if context is not None and context.color is not None:
        return context.color
    return stream.isatty()


def _set_color(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value == "auto":
        context.color = False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
    elif value is not None:
        context.color = value == "always"

"""Lengths of time on the command line."""

from __future__ import annotations

import math

import click

__all__ = ["Seconds"]


class Seconds(click.FloatRange):
    """A number of seconds; `nan`, which lies within every range as click compares it, is none."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See `click.ParamType.convert`."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return found

"""Policies whose every word has been looked up: what the resolver makes of the tree and the checks and lowering read.

Nothing here is text that still has to be understood. Spans stay, so that later stages can point at what was written.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from policyc.catalog import Access, Column
from policyc.diagnostics import Source, Span
from policyc.plan.model import Effect, EventKey
from policyc.plan.places import Place, Resolution

__all__ = ["ResolvedEvent", "ResolvedExemption", "ResolvedPlace", "ResolvedPolicy", "ResolvedRule"]


@dataclass(frozen=True, slots=True)
class ResolvedPlace:
    """A place with its bytes; `resolution` is None where no profile was given."""

    place: Place
    span: Span = field(compare=False)
    resolution: Resolution | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ResolvedExemption:
    """An `except` clause."""

    code: tuple[ResolvedPlace, ...]
    because: str
    owner: str | None
    until: datetime.date | None
    span: Span = field(compare=False)


@dataclass(frozen=True, slots=True)
class ResolvedEvent:
    """An event with its numbers, and the column of the legality table that it stands in."""

    key: EventKey
    column: Column
    span: Span = field(compare=False)


@dataclass(frozen=True, slots=True)
class ResolvedRule:
    """A rule. Exactly one of `event` and `access` with `places` is set."""

    label: str | None
    effect: Effect
    effect_span: Span = field(compare=False)
    span: Span = field(compare=False)
    access: Access = Access.NONE
    places: tuple[ResolvedPlace, ...] = ()
    event: ResolvedEvent | None = None
    origin: tuple[ResolvedPlace, ...] = ()
    exemptions: tuple[ResolvedExemption, ...] = ()
    overriding: tuple[str, ...] = ()
    enforce: bool = True
    severity: str = "medium"
    because: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResolvedPolicy:
    """One file's policy."""

    name: str
    enforce: bool
    rules: tuple[ResolvedRule, ...]
    source: Source = field(compare=False)

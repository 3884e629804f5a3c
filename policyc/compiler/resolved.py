"""Policies whose every word has been looked up: what the resolver makes of the tree and the checks and lowering read.

Nothing here is text that still has to be understood. Spans stay, so that later stages can point at what was written.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from policyc.catalog import Access, Column
from policyc.diagnostics import Source, Span
from policyc.plan.conditions import Condition
from policyc.plan.model import Effect, EventKey, Record
from policyc.plan.places import Extent, Place, Resolution

__all__ = [
    "Policies",
    "ResolvedCase",
    "ResolvedCondition",
    "ResolvedEvent",
    "ResolvedExemption",
    "ResolvedPlace",
    "ResolvedPolicy",
    "ResolvedRule",
    "ResolvedTest",
    "ResolvedWatch",
    "rules_of",
]


@dataclass(frozen=True, slots=True)
class ResolvedPlace:
    """A place with its bytes; `resolution` is None where no profile was given."""

    place: Place
    span: Span = field(compare=False)
    resolution: Resolution | None = field(default=None, compare=False)

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Its bytes, as far as they are known: none without a profile."""
        return () if self.resolution is None else self.resolution.extents


@dataclass(frozen=True, slots=True)
class ResolvedCondition:
    """A `when` clause.

    Attributes:
        condition: with the places as numbers, which count `places`.
        used: the fields that it reads, each as often as it is written.
    """

    condition: Condition
    places: tuple[ResolvedPlace, ...]
    used: tuple[tuple[str, Span], ...] = field(compare=False)
    span: Span = field(compare=False)


@dataclass(frozen=True, slots=True)
class ResolvedExemption:
    """An `except` clause; `code` is empty where any is meant."""

    code: tuple[ResolvedPlace, ...]
    because: str
    owner: str | None
    until: datetime.date | None
    span: Span = field(compare=False)
    when: ResolvedCondition | None = None


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
    record: Record = field(default_factory=Record)
    when: ResolvedCondition | None = None

    @property
    def conditions(self) -> tuple[ResolvedCondition, ...]:
        """Its own condition and those of its exceptions."""
        return tuple(when for when in (self.when, *(e.when for e in self.exemptions)) if when is not None)

    @property
    def spares_trusted_code_alone(self) -> bool:
        """Whether the rule applies to every access to its places but those by code that an exception names."""
        return not self.origin and self.when is None and all(exemption.code for exemption in self.exemptions)


@dataclass(frozen=True, slots=True)
class ResolvedWatch:
    """A watch; `period` in milliseconds, `restore_span` the word `restore` where it is written."""

    label: str | None
    places: tuple[ResolvedPlace, ...]
    period: int
    span: Span = field(compare=False)
    restore_span: Span | None = field(default=None, compare=False)
    enforce: bool = True
    record: Record = field(default_factory=Record)

    @property
    def restore(self) -> bool:
        """Whether a change is to be written back."""
        return self.restore_span is not None


@dataclass(frozen=True, slots=True)
class ResolvedCase:
    """A case of a test block. Exactly one of `event` and `access` with `places` is set.

    Attributes:
        effect: what is expected.
        size: bytes of the one access that begins where the place does; None where the case is about every byte of its
            places.
        origin: code whose first byte RIP points at; empty where the case doesn't say who acts.
        fields: values of the event's fields, by the words of the catalogue.
        asked_span: the place or event that the case is about.
    """

    effect: Effect
    effect_span: Span = field(compare=False)
    span: Span = field(compare=False)
    asked_span: Span = field(compare=False)
    access: Access = Access.NONE
    places: tuple[ResolvedPlace, ...] = ()
    size: int | None = None
    event: ResolvedEvent | None = None
    origin: tuple[ResolvedPlace, ...] = ()
    fields: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResolvedTest:
    """A test block."""

    name: str
    cases: tuple[ResolvedCase, ...]
    span: Span = field(compare=False)


@dataclass(frozen=True, slots=True)
class ResolvedPolicy:
    """One file's policy.

    Attributes:
        tests: the file's tests, which are no part of what it means.
        only_tests: whether it has nothing else of its own, and so leaves no trace in a plan.
    """

    name: str
    enforce: bool
    rules: tuple[ResolvedRule, ...]
    source: Source = field(compare=False)
    tests: tuple[ResolvedTest, ...] = field(default=(), compare=False)
    watches: tuple[ResolvedWatch, ...] = ()
    only_tests: bool = False


Policies: TypeAlias = "Sequence[ResolvedPolicy]"


def rules_of(policies: Policies) -> Iterator[ResolvedRule]:
    """The rules of all policies, in their order."""
    for policy in policies:
        yield from policy.rules

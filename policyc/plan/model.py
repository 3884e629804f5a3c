"""The plan: rules over places, as data that says everything the runtime needs and nothing of how it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policyc.catalog import Access, EffectKind
from policyc.plan.conditions import Condition
from policyc.plan.places import Extent, Place

__all__ = [
    "MAX_PERIOD",
    "MAX_PLACES",
    "MAX_POLICIES",
    "MAX_RULES",
    "MAX_TEXT",
    "MIN_PERIOD",
    "BoundPlace",
    "Effect",
    "EventKey",
    "Exemption",
    "GuestFacts",
    "Plan",
    "PolicyRef",
    "Rate",
    "Record",
    "Rule",
    "SourceFile",
    "SourceSpan",
    "Watch",
]


@dataclass(frozen=True, slots=True)
class Effect:
    """What is to happen.

    Attributes:
        argument: the exception vector of FAULT and INJECT, the kept bits of PIN, else 0.
        retries: how often the same event is answered RETRY before the effect takes place.
    """

    kind: EffectKind
    argument: int = 0
    retries: int = 0

    @property
    def strictness(self) -> tuple[int, int, int]:
        """Sorts effects by what stops more: by rank, then the lower vector, then fewer retries."""
        return self.kind, -self.argument, -self.retries


@dataclass(frozen=True, slots=True, order=True)
class EventKey:
    """An event that a rule names: its word in the catalogue and its numbers, as `("hypercall", (34, 24))`."""

    word: str
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Exemption:
    """An `except` clause: code, a condition, or code under a condition, to which a rule doesn't apply.

    Attributes:
        code: indices of places; the clause holds where RIP lies in one of them. Empty where any code is meant.
        because: the reason, mandatory in the language.
        owner: who answers for it.
        until: an ISO date; past it checks fail and the runtime meters, but the verdict stays.
    """

    code: tuple[int, ...]
    because: str
    owner: str | None = None
    until: str | None = None
    when: Condition | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """`at most COUNT per PER`, where `per` is a key of `policyc.catalog.RATE_SECONDS`."""

    count: int
    per: str


@dataclass(frozen=True, slots=True)
class Record:
    """What a rule adds to the audit record; it never changes a verdict.

    Attributes:
        limit: how many records are written for the rule's sake at most; None where each is.
    """

    severity: str = "medium"
    because: str | None = None
    tags: tuple[str, ...] = ()
    limit: Rate | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        id: its label, else a digest of its canonical text; unique within its policy.
        policy: index into the plan's policies.
        access: the accesses an access rule is about; empty for an event rule.
        places: indices of the places an access rule guards.
        event: the event an event rule is about; None for an access rule.
        origin: indices of the places of a `from` clause; empty where any code is meant.
        overriding: names of other policies whose rules this `allow` sets aside too.
        when: the condition under which the rule applies; None where it always does.
    """

    id: str
    policy: int
    effect: Effect
    enforce: bool = True
    access: Access = Access.NONE
    places: tuple[int, ...] = ()
    event: EventKey | None = None
    origin: tuple[int, ...] = ()
    exemptions: tuple[Exemption, ...] = ()
    overriding: tuple[str, ...] = ()
    record: Record = Record()
    when: Condition | None = None

    @property
    def unconditional(self) -> bool:
        """Whether the rule applies to every access to its places, whoever makes it and whatever else holds."""
        return not self.origin and not self.exemptions and self.when is None

    @property
    def spares_trusted_code_alone(self) -> bool:
        """Whether the rule applies to every access to its places but those by code that an exception names."""
        return not self.origin and self.when is None and all(exemption.code for exemption in self.exemptions)


MAX_POLICIES = 4096
MAX_PLACES = 262_144
MAX_RULES = 262_144
MAX_TEXT = 4096
"""How much one plan may hold; watches as many as rules, and so many characters in one text."""

MIN_PERIOD = 100
MAX_PERIOD = 24 * 3600 * 1000
"""Milliseconds between two looks of a watch."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Bytes that are compared with what they were, for what changes too often to trap.

    Attributes:
        id: its label, else a digest of its canonical text; unique within its policy, among rules and watches.
        places: indices of the places.
        period: milliseconds between two looks.
        restore: whether a change is written back.
        enforce: a watch in monitor mode records a change and leaves it.
    """

    id: str
    policy: int
    places: tuple[int, ...]
    period: int
    restore: bool = False
    enforce: bool = True
    record: Record = Record()


@dataclass(frozen=True, slots=True)
class PolicyRef:
    """A policy that rules belong to: the unit within which an `allow` cuts its hole."""

    name: str
    enforce: bool = True


@dataclass(frozen=True, slots=True)
class BoundPlace:
    """A place and the extents that the profile gave it; None where only the live guest can say."""

    place: Place
    extents: tuple[Extent, ...] | None
    inferred: bool = False


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """What the plan says about the guest it was compiled for.

    Attributes:
        image_base: link address of the byte that image extents are counted from.
        landmarks: symbol -> link address, for finding the running kernel and recognising it.
        copy_routines: leaf routines that store on behalf of their caller, as image extents.
        code: where the image has code, as image extents; None where the profile doesn't know.
        banner: the text at `linux_banner`, where the profile knows it.
        profile_digest: digest of the profile that the extents came from.
    """

    os: str
    arch: str
    image_base: int
    landmarks: Mapping[str, int]
    copy_routines: tuple[Extent, ...]
    profile_digest: str
    build_id: str | None = None
    banner: str | None = None
    code: tuple[Extent, ...] | None = None


@dataclass(frozen=True, slots=True)
class SourceSpan:
    """Where a rule was written: index of the file, half-open character offsets, line from 1."""

    file: int
    start: int
    end: int
    line: int


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A policy file: its path relative to the first input's folder, and the SHA-256 of its bytes."""

    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled set of policies.

    Everything but `sources` and the spans is the core: it depends on the meaning of the policies alone, so that
    permuting rules and files, or formatting them, leaves its bytes as they are. INVARIANT (ordered): policies are
    sorted by name, places by canonical text, rules and watches by (policy, id).
    """

    target: str
    cpu: str
    guest: GuestFacts
    policies: tuple[PolicyRef, ...]
    places: tuple[BoundPlace, ...]
    rules: tuple[Rule, ...]
    sources: tuple[SourceFile, ...] = ()
    spans: tuple[SourceSpan, ...] = ()
    watches: tuple[Watch, ...] = ()
    watch_spans: tuple[SourceSpan, ...] = ()

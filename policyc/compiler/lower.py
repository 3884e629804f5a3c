"""Resolved policies to a plan: what they mean, without how they were written.

The plan's core depends on the meaning alone: policies are sorted by name, places by their canonical text, rules by id,
and a rule without label is named by a digest of what it says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from policyc.compiler.names import name_of_rule, name_of_watch
from policyc.compiler.resolved import (
    ResolvedCondition,
    ResolvedPlace,
    ResolvedPolicy,
    ResolvedRule,
    ResolvedWatch,
)
from policyc.diagnostics import Diagnostic, Source, Span
from policyc.plan.canonical import renumbered
from policyc.plan.condition_steps import encode_condition
from policyc.plan.conditions import Condition, Truth
from policyc.plan.model import (
    BoundPlace,
    Exemption,
    GuestFacts,
    Plan,
    PolicyRef,
    Rule,
    SourceFile,
    SourceSpan,
    Watch,
)
from policyc.plan.places import Place

__all__ = ["Lowered", "lower"]

Written = TypeVar("Written", ResolvedRule, ResolvedWatch)


@dataclass(frozen=True, slots=True)
class Lowered:
    """A plan and where it came from.

    Attributes:
        origins: the rules as they were written, in the order of the plan's.
        watch_origins: the same of its watches.
        diagnostics: warnings about what left no trace in the plan.
    """

    plan: Plan
    origins: tuple[ResolvedRule, ...]
    watch_origins: tuple[ResolvedWatch, ...]
    diagnostics: tuple[Diagnostic, ...]


def lower(policies: Sequence[ResolvedPolicy], guest: GuestFacts, *, target: str, cpu: str) -> Lowered:
    """The plan of all policies together."""
    ordered = sorted((policy for policy in policies if not policy.only_tests), key=lambda policy: policy.name)
    places = _places(ordered)
    index_of = {bound.place: index for index, bound in enumerate(places)}
    files = sorted({policy.source.name: policy.source for policy in ordered}.values(), key=lambda source: source.name)
    found: list[Diagnostic] = []
    rules = [
        (name, number, rule)
        for number, policy in enumerate(ordered)
        for name, rule in _named(policy.rules, name_of_rule, found)
    ]
    watches = [
        (name, number, watch)
        for number, policy in enumerate(ordered)
        for name, watch in _named(policy.watches, name_of_watch, found)
    ]
    plan = Plan(
        target=target,
        cpu=cpu,
        guest=guest,
        policies=tuple(PolicyRef(policy.name, policy.enforce) for policy in ordered),
        places=places,
        rules=tuple(_rule(name, number, rule, index_of) for name, number, rule in rules),
        sources=tuple(SourceFile(source.name, _sha256(source.text)) for source in files),
        spans=_spans((rule.span for _, _, rule in rules), files),
        watches=tuple(_watch(name, number, watch, index_of) for name, number, watch in watches),
        watch_spans=_spans((watch.span for _, _, watch in watches), files),
    )
    return Lowered(plan, tuple(rule for _, _, rule in rules), tuple(watch for _, _, watch in watches), tuple(found))


def _named(
    written: Iterable[Written], name_of: Callable[[Written], str], found: list[Diagnostic]
) -> list[tuple[str, Written]]:
    """Each with its name, in the order of names; one that stands twice counts once, and is warned of."""
    named: dict[str, Written] = {}
    for one in written:
        earlier = named.setdefault(name_of(one), one)
        if earlier is not one:
            notes = ((earlier.span, "the first one"),)
            fact = "the same rule stands in this policy already"
            found.append(Diagnostic("P405", fact, one.span, "remove one of them", notes))
    return sorted(named.items())


def _spans(spans: Iterable[Span], files: Sequence[Source]) -> tuple[SourceSpan, ...]:
    file_of = {source.name: index for index, source in enumerate(files)}
    return tuple(
        SourceSpan(file_of[span.source.name], span.start, span.end, span.source.position(span.start)[0])
        for span in spans
    )


def _places(policies: Iterable[ResolvedPolicy]) -> tuple[BoundPlace, ...]:
    """Every place that a rule, an exception or a watch names, once, by canonical text."""
    found: dict[Place, ResolvedPlace] = {}
    for policy in policies:
        for place in _mentioned(policy):
            found.setdefault(place.place, place)
    return tuple(
        BoundPlace(
            place,
            None if resolved.resolution is None else resolved.resolution.extents,
            resolved.resolution is not None and resolved.resolution.inferred,
        )
        for place, resolved in sorted(found.items(), key=lambda item: str(item[0]))
    )


def _mentioned(policy: ResolvedPolicy) -> Iterator[ResolvedPlace]:
    for watch in policy.watches:
        yield from watch.places
    for rule in policy.rules:
        yield from rule.places
        yield from rule.origin
        for exemption in rule.exemptions:
            yield from exemption.code
        for when in rule.conditions:
            yield from when.places


def _rule(name: str, policy: int, rule: ResolvedRule, index_of: dict[Place, int]) -> Rule:
    exemptions = {
        Exemption(
            code=_indices(exemption.code, index_of),
            because=exemption.because,
            owner=exemption.owner,
            until=exemption.until.isoformat() if exemption.until is not None else None,
            when=_unless_always(condition) if exemption.code else condition,
        )
        for exemption in rule.exemptions
        for condition in [_condition(exemption.when, index_of)]
    }
    return Rule(
        id=name,
        policy=policy,
        effect=rule.effect,
        enforce=rule.enforce,
        access=rule.access,
        places=_indices(rule.places, index_of),
        event=rule.event.key if rule.event is not None else None,
        origin=_indices(rule.origin, index_of),
        exemptions=tuple(sorted(exemptions, key=_order_of_exemption)),
        overriding=rule.overriding,
        record=rule.record,
        when=_unless_always(_condition(rule.when, index_of)),
    )


def _watch(name: str, policy: int, watch: ResolvedWatch, index_of: dict[Place, int]) -> Watch:
    return Watch(
        id=name,
        policy=policy,
        places=_indices(watch.places, index_of),
        period=watch.period,
        restore=watch.restore,
        enforce=watch.enforce,
        record=watch.record,
    )


def _indices(places: Iterable[ResolvedPlace], index_of: dict[Place, int]) -> tuple[int, ...]:
    return tuple(sorted({index_of[place.place] for place in places}))


def _condition(when: ResolvedCondition | None, index_of: dict[Place, int]) -> Condition | None:
    if when is None:
        return None
    return renumbered(when.condition, lambda number: index_of[when.places[number].place])


def _unless_always(condition: Condition | None) -> Condition | None:
    """A condition that always holds says nothing."""
    return None if condition == Truth(True) else condition


def _order_of_exemption(exemption: Exemption) -> tuple[tuple[int, ...], str, str, str, str]:
    steps = "" if exemption.when is None else json.dumps(encode_condition(exemption.when))
    return exemption.code, steps, exemption.because, exemption.owner or "", exemption.until or ""


def _sha256(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

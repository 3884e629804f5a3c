"""Resolved policies to a plan: last stage of the compiler.

The plan's core depends on the meaning alone: policies are sorted by name, places by their canonical text, rules by id,
and a rule without label is named by a digest of what it says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from policyc.compiler.resolved import ResolvedPlace, ResolvedPolicy, ResolvedRule
from policyc.diagnostics import Diagnostic
from policyc.plan.model import (
    BoundPlace,
    Exemption,
    GuestFacts,
    Plan,
    PolicyRef,
    Record,
    Rule,
    SourceFile,
    SourceSpan,
)
from policyc.plan.places import Place

__all__ = ["lower"]

ID_DIGITS = 12
"""Hexadecimal digits of the digest that names a rule without label."""


def lower(
    policies: Sequence[ResolvedPolicy], guest: GuestFacts, *, target: str, cpu: str
) -> tuple[Plan, list[Diagnostic]]:
    """The plan, and warnings about what left no trace in it."""
    ordered = sorted(policies, key=lambda policy: policy.name)
    places = _places(ordered)
    index_of = {bound.place: index for index, bound in enumerate(places)}
    files = sorted({policy.source.name: policy.source for policy in ordered}.values(), key=lambda source: source.name)
    file_of = {source.name: index for index, source in enumerate(files)}

    rules: list[Rule] = []
    spans: list[SourceSpan] = []
    found: list[Diagnostic] = []
    for policy_index, policy in enumerate(ordered):
        named: dict[str, ResolvedRule] = {}
        for rule in policy.rules:
            name = rule.label or _digest_of(rule)
            earlier = named.setdefault(name, rule)
            if earlier is not rule:
                found.append(_twice(rule, earlier))
        for name in sorted(named):
            rule = named[name]
            rules.append(_rule(name, rule, policy_index, index_of))
            spans.append(
                SourceSpan(
                    file_of[policy.source.name],
                    rule.span.start,
                    rule.span.end,
                    policy.source.position(rule.span.start)[0],
                )
            )
    plan = Plan(
        target=target,
        cpu=cpu,
        guest=guest,
        policies=tuple(PolicyRef(policy.name, policy.enforce) for policy in ordered),
        places=places,
        rules=tuple(rules),
        sources=tuple(SourceFile(source.name, _sha256(source.text)) for source in files),
        spans=tuple(spans),
    )
    return plan, found


def _places(policies: Iterable[ResolvedPolicy]) -> tuple[BoundPlace, ...]:
    """Every place that a rule or an exception names, once, by canonical text."""
    found: dict[Place, ResolvedPlace] = {}
    for policy in policies:
        for rule in policy.rules:
            for place in (*rule.places, *rule.origin, *(p for e in rule.exemptions for p in e.code)):
                found.setdefault(place.place, place)
    return tuple(
        BoundPlace(
            place,
            None if resolved.resolution is None else resolved.resolution.extents,
            resolved.resolution is not None and resolved.resolution.inferred,
        )
        for place, resolved in sorted(found.items(), key=lambda item: str(item[0]))
    )


def _rule(name: str, rule: ResolvedRule, policy: int, index_of: dict[Place, int]) -> Rule:
    def indices(places: Iterable[ResolvedPlace]) -> tuple[int, ...]:
        return tuple(sorted({index_of[place.place] for place in places}))

    exemptions = {
        Exemption(
            code=indices(exemption.code),
            because=exemption.because,
            owner=exemption.owner,
            until=exemption.until.isoformat() if exemption.until is not None else None,
        )
        for exemption in rule.exemptions
    }
    return Rule(
        id=name,
        policy=policy,
        effect=rule.effect,
        enforce=rule.enforce,
        access=rule.access,
        places=indices(rule.places),
        event=rule.event.key if rule.event is not None else None,
        origin=indices(rule.origin),
        exemptions=tuple(sorted(exemptions, key=lambda e: (e.code, e.because, e.owner or "", e.until or ""))),
        overriding=rule.overriding,
        record=Record(rule.severity, rule.because, rule.tags),
    )


def _digest_of(rule: ResolvedRule) -> str:
    """A name that stays the same for as long as the rule means the same, wherever it stands."""
    meaning = {
        "effect": [rule.effect.kind.name, rule.effect.argument, rule.effect.retries],
        "access": rule.access.rwx,
        "places": sorted({str(place.place) for place in rule.places}),
        "event": None if rule.event is None else [rule.event.key.word, *rule.event.key.numbers],
        "origin": sorted({str(place.place) for place in rule.origin}),
        "exemptions": sorted(
            [sorted({str(place.place) for place in e.code}), e.because, e.owner or "", str(e.until or "")]
            for e in rule.exemptions
        ),
        "overriding": list(rule.overriding),
        "enforce": rule.enforce,
        "record": [rule.severity, rule.because or "", *rule.tags],
    }
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return f"rule-{hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]}"


def _twice(rule: ResolvedRule, earlier: ResolvedRule) -> Diagnostic:
    return Diagnostic(
        "P405",
        "the same rule stands in this policy already",
        rule.span,
        "remove one of them",
        notes=((earlier.span, "the first one"),),
    )


def _sha256(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

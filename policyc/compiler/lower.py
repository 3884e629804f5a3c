"""Resolved policies to a plan: last stage of the compiler.

The plan's core depends on the meaning alone: policies are sorted by name, places by their canonical text, rules by id,
and a rule without label is named by a digest of what it says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

from policyc.compiler.resolved import ResolvedCondition, ResolvedPlace, ResolvedPolicy, ResolvedRule
from policyc.diagnostics import Diagnostic
from policyc.plan.canonical import renumbered
from policyc.plan.condition_steps import encode_condition
from policyc.plan.conditions import Condition, Truth, text_of
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
    ordered = sorted((policy for policy in policies if not policy.only_tests), key=lambda policy: policy.name)
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
            for place in _named(rule):
                found.setdefault(place.place, place)
    return tuple(
        BoundPlace(
            place,
            None if resolved.resolution is None else resolved.resolution.extents,
            resolved.resolution is not None and resolved.resolution.inferred,
        )
        for place, resolved in sorted(found.items(), key=lambda item: str(item[0]))
    )


def _named(rule: ResolvedRule) -> Iterator[ResolvedPlace]:
    yield from rule.places
    yield from rule.origin
    if rule.when is not None:
        yield from rule.when.places
    for exemption in rule.exemptions:
        yield from exemption.code
        if exemption.when is not None:
            yield from exemption.when.places


def _condition(when: ResolvedCondition | None, index_of: dict[Place, int]) -> Condition | None:
    if when is None:
        return None
    return renumbered(when.condition, lambda number: index_of[when.places[number].place])


def _unless_always(condition: Condition | None) -> Condition | None:
    """A condition that always holds says nothing."""
    return None if condition == Truth(True) else condition


def _rule(name: str, rule: ResolvedRule, policy: int, index_of: dict[Place, int]) -> Rule:
    def indices(places: Iterable[ResolvedPlace]) -> tuple[int, ...]:
        return tuple(sorted({index_of[place.place] for place in places}))

    exemptions = {
        Exemption(
            code=indices(exemption.code),
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
        places=indices(rule.places),
        event=rule.event.key if rule.event is not None else None,
        origin=indices(rule.origin),
        exemptions=tuple(sorted(exemptions, key=_order_of_exemption)),
        overriding=rule.overriding,
        record=Record(rule.severity, rule.because, rule.tags),
        when=_unless_always(_condition(rule.when, index_of)),
    )


def _order_of_exemption(exemption: Exemption) -> tuple[tuple[int, ...], str, str, str, str]:
    steps = "" if exemption.when is None else json.dumps(encode_condition(exemption.when))
    return exemption.code, steps, exemption.because, exemption.owner or "", exemption.until or ""


def _digest_of(rule: ResolvedRule) -> str:
    """A name that stays the same for as long as the rule means the same, wherever it stands."""
    meaning = {
        "effect": [rule.effect.kind.name, rule.effect.argument, rule.effect.retries],
        "access": rule.access.rwx,
        "places": sorted({str(place.place) for place in rule.places}),
        "event": None if rule.event is None else [rule.event.key.word, *rule.event.key.numbers],
        "origin": sorted({str(place.place) for place in rule.origin}),
        "when": _text(rule.when),
        "exemptions": sorted(
            [
                sorted({str(place.place) for place in e.code}),
                _text(e.when),
                e.because,
                e.owner or "",
                str(e.until or ""),
            ]
            for e in rule.exemptions
        ),
        "overriding": list(rule.overriding),
        "enforce": rule.enforce,
        "record": [rule.severity, rule.because or "", *rule.tags],
    }
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return f"rule-{hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]}"


def _text(when: ResolvedCondition | None) -> str:
    return "" if when is None else text_of(when.condition, lambda number: str(when.places[number].place))


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

"""Conditions that decide nothing, because they can never hold or always do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from policyc.catalog import FIELDS, Access, Column
from policyc.compiler.contradictions import Facts, always_holds, excepts, never_holds
from policyc.compiler.options import CheckOptions
from policyc.compiler.resolved import (
    ResolvedCondition,
    ResolvedExemption,
    ResolvedPlace,
    ResolvedPolicy,
    ResolvedRule,
)
from policyc.diagnostics import Diagnostic
from policyc.plan.canonical import renumbered

__all__ = ["conditions_decide"]

VALUES = {word: spec.values for word, spec in FIELDS.items() if spec.values != range(1 << 64)}


def conditions_decide(policies: Sequence[ResolvedPolicy], options: CheckOptions) -> Iterator[Diagnostic]:
    """A rule whose condition is a contradiction protects nothing, however good it looks."""
    for policy in policies:
        for rule in policy.rules:
            if rule.when is not None:
                yield from _rule_condition(rule, rule.when)
            for exemption in rule.exemptions:
                if exemption.when is not None:
                    yield from _exception_condition(rule, exemption, exemption.when)


def _rule_condition(rule: ResolvedRule, when: ResolvedCondition) -> Iterator[Diagnostic]:
    facts = _facts(rule, when.places)
    if never_holds(when.condition, facts):
        fact = f"`{when.span.text}` is never true, so the rule never matches"
        yield Diagnostic("P404", fact, when.span, "correct the condition, or remove the rule")
    elif always_holds(when.condition, facts):
        yield Diagnostic("P407", f"`{when.span.text}` is always true", when.span, "leave the condition out")


def _exception_condition(
    rule: ResolvedRule, exemption: ResolvedExemption, when: ResolvedCondition
) -> Iterator[Diagnostic]:
    both = [*when.places, *(rule.when.places if rule.when is not None else ())]
    shift = len(when.places)
    guard = None if rule.when is None else renumbered(rule.when.condition, lambda index: index + shift)
    facts = _facts(rule, both)
    if guard is not None and never_holds(guard, facts):
        return
    never, always = excepts(guard, when.condition, facts)
    text = when.span.text
    if never:
        fact = f"`{text}` is never true where the rule applies, so nothing is excepted"
        yield Diagnostic("P408", fact, when.span, "correct the condition, or remove the exception")
    elif always and exemption.code:
        yield Diagnostic("P407", f"`{text}` is always true where the rule applies", when.span, "leave `when` out")
    elif always:
        fact = f"`{text}` is always true where the rule applies, so the rule is never in force"
        yield Diagnostic("P409", fact, when.span, "narrow the exception, or remove the rule")


def _facts(rule: ResolvedRule, places: Sequence[ResolvedPlace]) -> Facts:
    """What is known of every event that the rule is about."""
    values = dict(VALUES)
    changes = False
    if rule.event is None:
        values["access"] = tuple(int(bit) for bit in Access if rule.access & bit)
    else:
        changes = rule.event.column is Column.REGISTER
        if rule.event.column is Column.CPUID:
            values["leaf"] = rule.event.key.numbers
    extents = [place.resolution.extents if place.resolution is not None else None for place in places]
    return Facts(values, extents, changes)

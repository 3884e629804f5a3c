"""Exceptions and holes: who may use them, until when, and why."""

from __future__ import annotations

import datetime
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from policyc.catalog import Access, EffectKind
from policyc.compiler.options import CheckOptions
from policyc.compiler.resolved import Policies, ResolvedPlace, ResolvedRule, rules_of
from policyc.diagnostics import Diagnostic
from policyc.plan.conditions import Condition, Every, Field, Some, Within
from policyc.plan.places import Base, Extent, SymbolPlace
from policyc.plan.sweep import Segment, sweep

__all__ = [
    "excepted_code_is_guarded",
    "excepted_code_is_named",
    "excepted_code_is_one",
    "exceptions_end",
]

SOON = datetime.timedelta(days=30)
"""How long before its end an exception is mentioned."""


def excepted_code_is_one(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
    """Static functions share names; trusting all of them when one was meant would be a wider hole than was written."""
    for rule in rules_of(policies):
        for place in _weakening_code(rule):
            if not isinstance(place.place, SymbolPlace) or place.place.is_glob or place.resolution is None:
                continue
            if len(place.resolution.extents) > 1:
                yield Diagnostic(
                    "P214",
                    f"`{place.place}` stands for {len(place.resolution.extents)} functions",
                    place.span,
                    "name it by a symbol beside it that is the only one of its name, as `kernel:OTHER + 0x40 size 32`",
                )


def excepted_code_is_guarded(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
    """Whoever can rewrite excepted code may use its exception, so that code should be denied to writers itself."""
    guarded = _guarded(policies)
    for rule in rules_of(policies):
        for place in _weakening_code(rule):
            if any(not _covered(extent, guarded[extent.base]) for extent in place.extents):
                yield Diagnostic(
                    "P401",
                    f"`{place.place}` is excepted, and nothing keeps it from being rewritten",
                    place.span,
                    f"add `deny write to {place.place}`, or guard the section it lies in",
                )


def excepted_code_is_named(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
    """A condition on `rip` is no `from`: nobody asks whether that code is still what was bound."""
    for rule in rules_of(policies):
        weakening = [exemption.when for exemption in rule.exemptions if not exemption.code]
        if rule.effect.kind is EffectKind.ALLOW and not rule.origin:
            weakening.append(rule.when)
        for when in weakening:
            if when is not None and _asks_for_code(when.condition):
                yield Diagnostic(
                    "P414",
                    "`rip in …` lets through whatever runs at these addresses, without a look at the page tables",
                    when.span,
                    "write `from` and the place: it holds only while the code is the one that was bound",
                )


def exceptions_end(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
    """The date of an exception changes no verdict, so somebody has to be told of it."""
    if options.today is None:
        return
    for rule in rules_of(policies):
        for exemption in rule.exemptions:
            if exemption.until is None:
                continue
            left = exemption.until - options.today
            owner = f", and {exemption.owner} answers for it" if exemption.owner else ""
            if left < datetime.timedelta():
                fact = f"this exception was meant to end on {exemption.until}, and is in force{owner}"
                yield Diagnostic("P412", fact, exemption.span, "remove it, or give it another date and say why")
            elif left <= SOON:
                fact = f"this exception is meant to end on {exemption.until}, in {_days(left)}{owner}"
                yield Diagnostic("P413", fact, exemption.span)


def _days(left: datetime.timedelta) -> str:
    return "less than a day" if not left.days else f"{left.days} day{'' if left.days == 1 else 's'}"


def _guarded(policies: Policies) -> dict[Base, tuple[Segment, ...]]:
    """The bytes that somebody enforces a `deny write` on, whoever writes."""
    ranges: dict[Base, list[tuple[int, int, int]]] = {base: [] for base in Base}
    for rule in rules_of(policies):
        denies = rule.enforce and rule.access & Access.W and rule.effect.kind >= EffectKind.SKIP
        if denies and rule.spares_trusted_code_alone:
            for place in rule.places:
                for extent in place.extents:
                    ranges[extent.base].append((extent.start, extent.end, 0))
    return {base: sweep(ranges[base]) for base in Base}


def _covered(extent: Extent, segments: Sequence[Segment]) -> bool:
    index = bisect_right(segments, extent.start, key=lambda segment: segment.start) - 1
    return index >= 0 and extent.end <= segments[index].end


def _asks_for_code(condition: Condition) -> bool:
    match condition:
        case Within(value):
            return value == Field("rip")
        case Every(operands) | Some(operands):
            return any(map(_asks_for_code, operands))
        case _:
            return False


def _weakening_code(rule: ResolvedRule) -> Iterator[ResolvedPlace]:
    for exemption in rule.exemptions:
        yield from exemption.code
    if rule.effect.kind is EffectKind.ALLOW:
        yield from rule.origin

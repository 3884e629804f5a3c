"""Exceptions from code, held against the code that the rule names: some lift nothing, some everything."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from policyc.compiler.compiled import Compiled
from policyc.diagnostics import Diagnostic
from policyc.plan.model import Exemption, Rule
from policyc.plan.places import Extent
from policyc.plan.sweep import sweep

__all__ = ["exceptions_fit_their_rule"]


def exceptions_fit_their_rule(compiled: Compiled) -> Iterator[Diagnostic]:
    """`from A … except from B`: where A and B share no code nothing is excepted, where B holds A everything is."""
    for index, rule in enumerate(compiled.plan.rules):
        if not rule.origin:
            continue
        for exemption in rule.exemptions:
            if not exemption.code:
                continue
            span = next(
                written.span
                for written in compiled.origins[index].exemptions
                if {place.place for place in written.code} == {compiled.plan.places[i].place for i in exemption.code}
            )
            if not _may_lift(compiled, rule, exemption):
                fact = "the rule is about other code than the exception, so nothing is excepted"
                yield Diagnostic("P408", fact, span, "correct the code, or remove the exception")
            elif exemption.when is None and _lifts_all(compiled, rule, exemption):
                fact = "the exception is for all code that the rule is about, so the rule is never in force"
                yield Diagnostic("P409", fact, span, "narrow the exception, or remove the rule")


def _may_lift(compiled: Compiled, rule: Rule, exemption: Exemption) -> bool:
    """Whether one access may come from the code of both; a copy routine's comes from its caller too."""
    origin, code = _extents(compiled, rule.origin), _extents(compiled, exemption.code)
    copies = compiled.plan.guest.copy_routines
    return _meet(origin, code) or _meet(origin, copies) or _meet(code, copies)


def _lifts_all(compiled: Compiled, rule: Rule, exemption: Exemption) -> bool:
    segments = sweep((extent.start, extent.end, 0) for extent in _extents(compiled, exemption.code))
    for extent in _extents(compiled, rule.origin):
        index = bisect_right(segments, extent.start, key=lambda segment: segment.start) - 1
        if index < 0 or extent.end > segments[index].end:
            return False
    return True


def _extents(compiled: Compiled, places: Sequence[int]) -> list[Extent]:
    return [extent for place in places for extent in compiled.plan.places[place].extents or ()]


def _meet(one: Sequence[Extent], other: Sequence[Extent]) -> bool:
    segments = sweep((e.start, e.end, member) for member, extents in enumerate((one, other)) for e in extents)
    return any(len(segment.members) == 2 for segment in segments)

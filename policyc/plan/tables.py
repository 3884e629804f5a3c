"""The plan's verdict table before binding: rules over segments, counted from each base.

This is the interval-tree side of the plan. The runtime builds the same kind of table over guest physical memory
(`policyc.runtime.bind`); both are answered by `policyc.plan.verdicts.decide`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from policyc.plan.conditions import Condition, fields_of, places_of
from policyc.plan.evaluation import Addresses, Test, compile_condition
from policyc.plan.model import EventKey, Plan, Rule
from policyc.plan.places import Base, Extent
from policyc.plan.sweep import Segment, sweep
from policyc.plan.verdict_table import Cell, CodeRanges, Group, Guard, Space, VerdictTable

__all__ = [
    "UnresolvedPlaceError",
    "code_places",
    "condition_places",
    "events_of",
    "guards_of",
    "link_time_table",
    "segments_of",
]


class UnresolvedPlaceError(LookupError):
    """A table was asked for although a place has no extents yet."""


def segments_of(plan: Plan) -> Mapping[Base, tuple[Segment, ...]]:
    """Disjoint segments with the indices of the rules over them, for every base that a rule's place counts from.

    Raises:
        UnresolvedPlaceError: a place of an access rule has no extents.
    """
    ranges: dict[Base, list[tuple[int, int, int]]] = {}
    for index, rule in enumerate(plan.rules):
        for place in rule.places:
            for extent in _extents(plan, place):
                ranges.setdefault(extent.base, []).append((extent.start, extent.end, index))
    return {base: sweep(ranges[base]) for base in sorted(ranges)}


def events_of(rules: Sequence[Rule]) -> Mapping[EventKey, Group]:
    """The rules about each event, events in ascending order."""
    table: dict[EventKey, list[int]] = {}
    for index, rule in enumerate(rules):
        if rule.event is not None:
            table.setdefault(rule.event, []).append(index)
    return {key: tuple(table[key]) for key in sorted(table)}


def link_time_table(plan: Plan) -> VerdictTable:
    """The table at slide 0, for tests and explanations: image extents at their link addresses.

    Image and absolute virtual extents share one space, `Base.VIRTUAL`, as they do in a running guest.
    """
    ranges: dict[Base, list[tuple[int, int, int]]] = {}
    for index, rule in enumerate(plan.rules):
        for place in rule.places:
            for extent in _extents(plan, place):
                linked = _linked(plan, extent)
                ranges.setdefault(linked.base, []).append((linked.start, linked.end, index))
    cells: dict[Cell, int] = {}
    spaces: dict[Base, Space] = {}
    for base, pieces in ranges.items():
        spaces[base] = Space((s.start, s.end, cells.setdefault((s.members,), len(cells))) for s in sweep(pieces))
    named = code_places(plan.rules) | condition_places(plan.rules)
    code = {place: _code_ranges(plan, place) for place in named}
    return VerdictTable(
        rules=plan.rules,
        policies=tuple(policy.name for policy in plan.policies),
        cells=tuple(cells),
        spaces=spaces,
        events=events_of(plan.rules),
        code=code,
        copy_routines=CodeRanges(
            (linked.start, linked.end) for linked in (_linked(plan, extent) for extent in plan.guest.copy_routines)
        ),
        guards=guards_of(plan.rules, code),
    )


def guards_of(rules: Sequence[Rule], code: Mapping[int, Addresses]) -> Mapping[int, Guard]:
    """The compiled conditions of every rule that isn't unconditional; `code` has the addresses of places by index."""
    return {index: _guard(rule, code) for index, rule in enumerate(rules) if not rule.unconditional}


def _guard(rule: Rule, code: Mapping[int, Addresses]) -> Guard:
    def compiled(condition: Condition | None) -> Test | None:
        return None if condition is None else compile_condition(condition, code.__getitem__)

    return Guard(
        when=compiled(rule.when),
        exemptions=tuple(compiled(exemption.when) for exemption in rule.exemptions),
        sized=any("size" in fields_of(condition) for condition in _conditions(rule)),
    )


def _extents(plan: Plan, place: int) -> tuple[Extent, ...]:
    bound = plan.places[place]
    if bound.extents is None:
        raise UnresolvedPlaceError(f"`{bound.place}` has no extents before it is bound")
    return bound.extents


def _linked(plan: Plan, extent: Extent) -> Extent:
    if extent.base is not Base.IMAGE:
        return extent
    base = plan.guest.image_base
    return Extent(Base.VIRTUAL, base + extent.start, base + extent.end)


def code_places(rules: Sequence[Rule]) -> set[int]:
    """Every place that a `from` or `except from` clause names."""
    return {place for rule in rules for places in (rule.origin, *(e.code for e in rule.exemptions)) for place in places}


def condition_places(rules: Sequence[Rule]) -> set[int]:
    """Every place that a condition names."""
    return {place for rule in rules for condition in _conditions(rule) for place in places_of(condition)}


def _conditions(rule: Rule) -> Iterator[Condition]:
    if rule.when is not None:
        yield rule.when
    for exemption in rule.exemptions:
        if exemption.when is not None:
            yield exemption.when


def _code_ranges(plan: Plan, place: int) -> CodeRanges:
    linked = (_linked(plan, extent) for extent in _extents(plan, place))
    return CodeRanges((extent.start, extent.end) for extent in linked)

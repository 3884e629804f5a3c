"""Random plans over a few bytes, and cases about them, made without text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from hypothesis import strategies as st

from policyc.analysis.cases import Unit, unit_of
from policyc.catalog import Access, EffectKind
from policyc.compiler.resolved import ResolvedCase, ResolvedPlace, ResolvedTest
from policyc.diagnostics import Source, Span
from policyc.plan.conditions import Comparison, Field, Number
from policyc.plan.model import BoundPlace, Effect, Exemption, Plan, Rule
from policyc.plan.places import Absolute, Base, Extent, Resolution
from tests.support.plans import make_plan, place, rule

__all__ = ["CODE", "DATA", "DATA_BYTES", "cases", "pages_of", "plans", "unit_with"]

DATA = 0xFFFFFFFF81000FE8
"""Where the bytes that rules are about begin: they lie on two pages."""

DATA_BYTES = 48
CODE = 0xFFFFFFFF81009000
COPY = Extent(Base.IMAGE, 0xA000, 0xA010)

NOWHERE = Span(Source("cases", ""), 0, 0)
EFFECTS = tuple(map(Effect, (EffectKind.ALLOW, EffectKind.LOG, EffectKind.SKIP, EffectKind.DENY, EffectKind.CRASH)))
IN_KERNEL_MODE = Comparison(Field("cpl"), "==", Number(0))

ranges = st.tuples(st.integers(0, DATA_BYTES - 1), st.integers(1, DATA_BYTES)).filter(lambda pair: pair[0] < pair[1])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of two policies: overlapping rules with `from`, exceptions and conditions."""
    data = [place(DATA + start, DATA + end) for start, end in draw(st.lists(ranges, min_size=1, max_size=4))]
    code: list[BoundPlace] = [place(CODE, CODE + 16), place(CODE + 16, CODE + 32)]
    first, second = len(data), len(data) + 1
    conditions = st.sampled_from([None, None, IN_KERNEL_MODE])
    exemptions = st.builds(
        Exemption, st.sampled_from([(first,), (second,), (first, second)]), st.just("why"), when=conditions
    )

    def made(base: Rule, exempt: list[Exemption], when: Comparison | None) -> Rule:
        return replace(base, exemptions=tuple(exempt), when=when)

    rules = st.builds(
        made,
        st.builds(
            rule,
            st.sampled_from(EFFECTS),
            st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=2, unique=True).map(tuple),
            st.sampled_from([Access.W, Access.R, Access.R | Access.W]),
            policy=st.integers(0, 1),
            enforce=st.booleans(),
            origin=st.sampled_from([(), (), (first,)]),
        ),
        st.lists(exemptions, max_size=2),
        conditions,
    )
    plan = make_plan(data + code, draw(st.lists(rules, max_size=5)), ("p", "q"))
    return replace(plan, guest=replace(plan.guest, copy_routines=(COPY,)))


@st.composite
def cases(draw: st.DrawFn) -> ResolvedCase:
    """Accesses to those bytes: one access or every byte, by code that rules name and by others."""
    start, end = draw(ranges)
    origins = [(), (place(CODE, CODE + 1),), (place(CODE + 20, CODE + 21),), (place(0x5000, 0x5001),)]
    origin = draw(st.sampled_from(origins))
    fields: Mapping[str, int] = draw(st.sampled_from([{"cpl": 0}, {"cpl": 3}, {}]))
    return ResolvedCase(
        effect=draw(st.sampled_from(EFFECTS)),
        effect_span=NOWHERE,
        span=NOWHERE,
        asked_span=NOWHERE,
        access=draw(st.sampled_from([Access.R, Access.W])),
        places=(_resolved(place(DATA + start, DATA + end)),),
        size=draw(st.sampled_from([None, end - start])),
        origin=tuple(map(_resolved, origin)),
        fields=fields,
    )


def unit_with(plan: Plan, *tested: ResolvedCase) -> Unit:
    """The plan with one test of these cases."""
    return unit_of(NOWHERE.source, plan, (ResolvedTest("t", tested, NOWHERE),), {})


def pages_of(plan: Plan) -> Iterator[int]:
    """The virtual pages that the plan names, and those of its copy routines."""
    found = {extent.start >> 12 for bound in plan.places for extent in bound.extents or ()}
    found |= {extent.end - 1 >> 12 for bound in plan.places for extent in bound.extents or ()}
    found |= {(plan.guest.image_base + extent.start) >> 12 for extent in plan.guest.copy_routines}
    return iter(sorted(found))


def _resolved(bound: BoundPlace) -> ResolvedPlace:
    assert isinstance(bound.place, Absolute)
    return ResolvedPlace(bound.place, NOWHERE, Resolution(bound.place, (bound.place.extent,)))

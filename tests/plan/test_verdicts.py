"""`decide` against an oracle that looks at every byte and every rule, and the properties overlap promises."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from policyc.catalog import Access, EffectKind
from policyc.plan.model import BoundPlace, Effect, EventKey, Plan, Rule
from policyc.plan.places import Base
from policyc.plan.tables import link_time_table
from policyc.plan.verdicts import (
    NEAR_ZONE,
    Fact,
    MemoryAccess,
    NoticedEvent,
    Origin,
    Verdict,
    decide,
)
from tests.support.plans import DENY, LOG, make_plan, place, rule

DATA = 0x1000
DATA_BYTES = 48
CODE = 0x9000
KERNEL_RIP = CODE + 8
MODULE_RIP = 0x700000

SKIP = Effect(EffectKind.SKIP)
CRASH = Effect(EffectKind.CRASH)
ALLOW = Effect(EffectKind.ALLOW)
INJECT_UD = Effect(EffectKind.INJECT, 6)
INJECT_GP = Effect(EffectKind.INJECT, 13)
EFFECTS = (ALLOW, LOG, SKIP, DENY, INJECT_UD, INJECT_GP, CRASH)


def access(start: int, size: int | None, *, kind: Access = Access.W, rip: int = MODULE_RIP) -> MemoryAccess:
    return MemoryAccess(kind, Base.VIRTUAL, start, size, Origin(rip, rip_genuine=True))


def verdict_on(plan: Plan, asked: MemoryAccess | NoticedEvent) -> Verdict:
    answer = decide(link_time_table(plan), asked)
    assert isinstance(answer, Verdict)
    return answer


# --- the oracle ---


@dataclass(frozen=True)
class Probe:
    kind: Access
    start: int
    size: int
    rip: int


def applies(plan: Plan, tested: Rule, probe: Probe, byte: int) -> bool:
    covers = any(e.start <= byte < e.end for p in tested.places for e in plan.places[p].extents or ())
    inside = [any(e.start <= probe.rip < e.end for e in plan.places[p].extents or ()) for p in tested.origin]
    exempt = any(
        e.start <= probe.rip < e.end for x in tested.exemptions for p in x.code for e in plan.places[p].extents or ()
    )
    return bool(tested.access & probe.kind) and covers and (not inside or any(inside)) and not exempt


def oracle(plan: Plan, probe: Probe) -> tuple[Effect | None, Effect | None]:
    """The reply and `would`, decided byte by byte, the strictest byte winning."""
    left: list[Rule] = []
    for byte in range(probe.start, probe.start + probe.size):
        applicable = [r for r in plan.rules if applies(plan, r, probe, byte)]
        holes = {r.policy for r in applicable if r.effect.kind is EffectKind.ALLOW}
        left += [r for r in applicable if r.effect.kind is not EffectKind.ALLOW and r.policy not in holes]

    def strictest(rules: list[Rule]) -> Effect | None:
        return max((r.effect for r in rules), key=lambda e: (e.kind, -e.argument), default=None)

    return strictest([r for r in left if r.enforce]), strictest(left)


places_st = st.lists(
    st.tuples(st.integers(0, DATA_BYTES - 1), st.integers(1, DATA_BYTES)).filter(lambda r: r[0] < r[1]),
    min_size=1,
    max_size=5,
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    data = [place(DATA + start, DATA + end) for start, end in draw(places_st)]
    code: list[BoundPlace] = [place(CODE, CODE + 64)]
    rules = draw(
        st.lists(
            st.builds(
                rule,
                st.sampled_from(EFFECTS),
                st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=2, unique=True).map(tuple),
                st.sampled_from([Access.W, Access.R, Access.R | Access.W]),
                policy=st.integers(0, 1),
                enforce=st.booleans(),
                origin=st.sampled_from([(), (len(data),)]),
                exempt=st.sampled_from([(), (), (len(data),)]),
            ),
            max_size=6,
        )
    )
    return make_plan(data + code, rules, ("p", "q"))


probes = st.builds(
    Probe,
    st.sampled_from([Access.W, Access.R]),
    st.integers(DATA - 8, DATA + DATA_BYTES + 8),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([KERNEL_RIP, MODULE_RIP]),
)


def asked(probe: Probe) -> MemoryAccess:
    return access(probe.start, probe.size, kind=probe.kind, rip=probe.rip)


@given(plans(), probes)
def test_decide__agrees_with_the_oracle(plan: Plan, probe: Probe) -> None:
    found = verdict_on(plan, asked(probe))
    assert (found.effect, found.would) == oracle(plan, probe)


@given(plans(), plans(), probes)
def test_decide__adding_a_policy_never_weakens_a_reply(plan: Plan, other: Plan, probe: Probe) -> None:
    shift = len(plan.places)
    moved = [
        rule(
            r.effect,
            tuple(p + shift for p in r.places),
            r.access,
            policy=r.policy + 2,
            enforce=r.enforce,
            origin=tuple(p + shift for p in r.origin),
            exempt=tuple(p + shift for e in r.exemptions for p in e.code),
        )
        for r in other.rules
    ]
    both = make_plan([*plan.places, *other.places], [*plan.rules, *moved], ("p", "q", "r", "s"))
    before, after = verdict_on(plan, asked(probe)), verdict_on(both, asked(probe))
    assert strictness(after.effect) >= strictness(before.effect)


@given(plans(), probes)
def test_decide__an_unknown_size_never_gives_a_weaker_reply_than_any_size(plan: Plan, probe: Probe) -> None:
    unknown = decide(link_time_table(plan), access(probe.start, None, kind=probe.kind, rip=probe.rip))
    if isinstance(unknown, Verdict):
        assert unknown.effect == verdict_on(plan, asked(probe)).effect
    else:
        assert unknown is Fact.SIZE
        largest = verdict_on(plan, access(probe.start, NEAR_ZONE, kind=probe.kind, rip=probe.rip))
        assert strictness(largest.effect) >= strictness(verdict_on(plan, asked(probe)).effect)


def strictness(effect: Effect | None) -> tuple[int, int]:
    return (-1, 0) if effect is None else (effect.kind, -effect.argument)


# --- single cases ---


def test_decide__a_store_that_reaches_into_the_object_is_denied() -> None:
    plan = make_plan([place(DATA + 16, DATA + 32)], [rule(places=(0,))])
    assert verdict_on(plan, access(DATA + 12, 8)).effect == DENY
    assert verdict_on(plan, access(DATA + 8, 8)).collateral


def test_decide__the_near_zone_is_where_the_size_matters() -> None:
    table = link_time_table(make_plan([place(DATA + 1024, DATA + 2048)], [rule(places=(0,))]))
    assert decide(table, access(DATA + 1024 - NEAR_ZONE, None)) == Verdict(None, None)
    assert decide(table, access(DATA + 1024 - NEAR_ZONE + 1, None)) is Fact.SIZE


def test_decide__an_access_ends_with_its_page() -> None:
    plan = make_plan([place(0x2000, 0x3000)], [rule(places=(0,))])
    assert verdict_on(plan, access(0x1FFC, 8)).collateral


def test_decide__the_applicable_rules_come_winner_first() -> None:
    rules = [rule(LOG, (0,)), rule(CRASH, (0,), enforce=False), rule(DENY, (0,))]
    found = verdict_on(make_plan([place(DATA, DATA + 8)], rules), access(DATA, 8))
    assert found == Verdict(effect=DENY, would=CRASH, rules=(2, 0, 1))


def test_decide__a_hole_is_cut_in_its_own_policy_alone() -> None:
    rules = [rule(ALLOW, (0,)), rule(DENY, (0,)), rule(LOG, (0,), policy=1)]
    found = verdict_on(make_plan([place(DATA, DATA + 8)], rules, ("p", "q")), access(DATA, 8))
    assert found == Verdict(effect=LOG, would=LOG, rules=(2, 0), set_aside=(1,))


def test_decide__overriding_reaches_the_policies_it_names() -> None:
    rules = [rule(ALLOW, (0,), overriding=("q",)), rule(DENY, (0,), policy=1), rule(LOG, (0,), policy=2)]
    found = verdict_on(make_plan([place(DATA, DATA + 8)], rules, ("p", "q", "r")), access(DATA, 8))
    assert found == Verdict(effect=LOG, would=LOG, rules=(2, 0), set_aside=(1,))


def test_decide__a_store_half_in_a_hole_is_denied() -> None:
    rules = [rule(DENY, (0,)), rule(ALLOW, (1,))]
    plan = make_plan([place(DATA, DATA + 16), place(DATA + 8, DATA + 16)], rules)
    assert verdict_on(plan, access(DATA + 4, 8)).effect == DENY
    assert verdict_on(plan, access(DATA + 8, 8)).effect is None


def test_decide__an_exemption_counts_only_for_genuine_code() -> None:
    table = link_time_table(
        make_plan([place(DATA, DATA + 8), place(CODE, CODE + 64)], [rule(places=(0,), exempt=(1,))])
    )
    origins = {
        None: Fact.RIP_FRAME,
        True: Verdict(None, None, exempted=(0,)),
        False: Verdict(DENY, DENY, (0,)),
    }
    for genuine, expected in origins.items():
        question = MemoryAccess(Access.W, Base.VIRTUAL, DATA, 8, Origin(KERNEL_RIP, rip_genuine=genuine))
        assert decide(table, question) == expected


def test_decide__a_copy_routine_acts_for_its_caller() -> None:
    from tests.support.plans import guest_facts

    copy = place(0xA000, 0xA040).extents or ()
    plan = make_plan(
        [place(DATA, DATA + 8), place(CODE, CODE + 64)],
        [rule(places=(0,), exempt=(1,))],
        guest=guest_facts(copy_routines=copy),
    )
    table = link_time_table(plan)

    def ask(**known: int | bool) -> Verdict | Fact:
        return decide(table, MemoryAccess(Access.W, Base.VIRTUAL, DATA, 8, Origin(0xA010, **known)))  # type: ignore[arg-type]

    denied, exempted = Verdict(DENY, DENY, (0,)), Verdict(None, None, exempted=(0,))
    assert ask() is Fact.RETURN_ADDRESS
    assert ask(return_address=MODULE_RIP) == denied
    assert ask(return_address=KERNEL_RIP) is Fact.RIP_FRAME
    assert ask(return_address=KERNEL_RIP, rip_genuine=True) is Fact.RETURN_FRAME
    assert ask(return_address=KERNEL_RIP, rip_genuine=True, return_genuine=True) == exempted
    assert ask(return_address=KERNEL_RIP, rip_genuine=True, return_genuine=False) == denied
    assert ask(return_address=KERNEL_RIP, rip_genuine=False) == denied


def test_decide__pins_keep_the_bits_of_all() -> None:
    cr4 = EventKey("cr4")
    rules = [rule(Effect(EffectKind.PIN, 0b01), event=cr4), rule(Effect(EffectKind.PIN, 0b10), event=cr4)]
    found = verdict_on(make_plan([], rules), NoticedEvent(cr4, Origin(KERNEL_RIP)))
    assert found.effect == Effect(EffectKind.PIN, 0b11)


def test_decide__an_event_without_rules_is_nobodys_business() -> None:
    assert verdict_on(make_plan([], []), NoticedEvent(EventKey("hypercall", (34, 24)), Origin(0))).collateral

"""`decide` against an oracle that looks at every byte and every rule, and the properties overlap promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.catalog import Access, EffectKind
from policyc.plan.accesses import ALL_KNOWN, FRAME_BELOW, NEAR_ZONE, MemoryAccess, NoticedEvent, Origin
from policyc.plan.canonical import bit_and, compare, every, negate, renumbered, some, within
from policyc.plan.conditions import Condition, Field, Number
from policyc.plan.evaluation import Fields, compile_condition, no_fields
from policyc.plan.model import BoundPlace, Effect, EventKey, Exemption, Plan, Rule
from policyc.plan.places import Base
from policyc.plan.sweep import sweep
from policyc.plan.tables import link_time_table
from policyc.plan.verdict_table import Cell, Group, Space, VerdictTable
from policyc.plan.verdicts import Fact, Verdict, decide
from tests.support.plans import DENY, LOG, make_plan, place, rule, strictness

DATA = 0x1100
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


Values = dict[str, int | None]


def access(
    start: int,
    size: int | None,
    *,
    kind: Access = Access.W,
    rip: int = MODULE_RIP,
    fields: Fields = no_fields,
) -> MemoryAccess:
    return MemoryAccess(kind, Base.VIRTUAL, start, size, Origin(rip, rip_genuine=True), fields=fields)


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
    fields: Values = field(default_factory=dict)
    unknown: frozenset[str] = ALL_KNOWN

    def value(self, word: str) -> int | None:
        known: Values = {"access": int(self.kind), "gva": self.start, "rip": self.rip, "size": self.size}
        return None if word in self.unknown else (self.fields | known).get(word)


def holds(plan: Plan, condition: Condition | None, probe: Probe, *, unknown: bool) -> bool:
    if condition is None:
        return True

    def addresses(index: int) -> range:
        (extent,) = plan.places[index].extents or ()
        return range(extent.start, extent.end)

    answer = compile_condition(condition, addresses)(probe.value)
    return unknown if answer is None else answer


def applies(plan: Plan, tested: Rule, probe: Probe, byte: int) -> bool:
    covers = any(e.start <= byte < e.end for p in tested.places for e in plan.places[p].extents or ())
    inside = [any(e.start <= probe.rip < e.end for e in plan.places[p].extents or ()) for p in tested.origin]
    exempt = any(
        (not x.code or any(e.start <= probe.rip < e.end for p in x.code for e in plan.places[p].extents or ()))
        and holds(plan, x.when, probe, unknown=False)
        for x in tested.exemptions
    )
    unknown = tested.effect.kind is not EffectKind.ALLOW
    fits = covers and (not inside or any(inside)) and holds(plan, tested.when, probe, unknown=unknown)
    return bool(tested.access & probe.kind) and fits and not exempt


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


CONDITIONS: Sequence[Condition] = (
    compare(Field("cpl"), "==", Number(3)),
    compare(Field("cpl"), "!=", Number(3)),
    compare(bit_and([Field("rax"), Number(6)]), "!=", Number(0)),
    compare(Field("size"), ">=", Number(8)),
    compare(Field("gva"), "<", Number(DATA + 20)),
    compare(Field("access"), "==", Number(int(Access.W))),
    within(Field("rip"), [0]),
    negate(within(Field("gva"), [0])),
)
guards = st.none() | st.recursive(
    st.sampled_from(CONDITIONS),
    lambda inner: st.lists(inner, max_size=2).map(every) | st.lists(inner, max_size=2).map(some) | inner.map(negate),
    max_leaves=3,
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
                when=guards,
                exemptions=st.lists(
                    st.builds(Exemption, st.sampled_from([(), (len(data),)]), st.just("x"), when=guards), max_size=1
                ).map(tuple),
            ),
            max_size=6,
        )
    )
    rules = [replace(one, exemptions=tuple(e for e in one.exemptions if e.code or e.when is not None)) for one in rules]
    return make_plan(data + code, rules, ("p", "q"))


probes = st.builds(
    Probe,
    st.sampled_from([Access.W, Access.R]),
    st.integers(DATA - 8, DATA + DATA_BYTES + 8),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([KERNEL_RIP, MODULE_RIP]),
    st.fixed_dictionaries(
        {"cpl": st.sampled_from([None, 0, 3]), "rax": st.sampled_from([None, 0, 2, 8])},
    ),
    st.sampled_from([ALL_KNOWN, frozenset(["size"]), frozenset(["size", "gpa", "gva"])]),
)


def asked(probe: Probe) -> MemoryAccess:
    known = access(probe.start, probe.size, kind=probe.kind, rip=probe.rip, fields=probe.fields.get)
    return replace(known, unknown=probe.unknown)


@given(plans(), probes)
def test_decide__agrees_with_the_oracle(plan: Plan, probe: Probe) -> None:
    found = verdict_on(plan, asked(probe))
    assert (found.effect, found.would) == oracle(plan, probe)


@given(plans(), plans(), probes)
def test_decide__adding_a_policy_never_weakens_a_reply(plan: Plan, other: Plan, probe: Probe) -> None:
    shift = len(plan.places)

    def moved_condition(condition: Condition | None) -> Condition | None:
        return condition and renumbered(condition, lambda index: index + shift)

    moved = [
        replace(
            r,
            id="",
            policy=r.policy + 2,
            places=tuple(p + shift for p in r.places),
            origin=tuple(p + shift for p in r.origin),
            when=moved_condition(r.when),
            exemptions=tuple(
                replace(e, code=tuple(p + shift for p in e.code), when=moved_condition(e.when)) for e in r.exemptions
            ),
        )
        for r in other.rules
    ]
    both = make_plan([*plan.places, *other.places], [*plan.rules, *moved], ("p", "q", "r", "s"))
    before, after = verdict_on(plan, asked(probe)), verdict_on(both, asked(probe))
    assert strictness(after.effect) >= strictness(before.effect)


@given(plans(), probes)
def test_decide__an_unknown_size_never_gives_a_weaker_reply_than_any_size(plan: Plan, probe: Probe) -> None:
    probe = replace(probe, unknown=ALL_KNOWN)
    unknown = decide(link_time_table(plan), replace(asked(probe), size=None))
    if isinstance(unknown, Verdict):
        assert unknown.effect == verdict_on(plan, asked(probe)).effect
    else:
        assert unknown is Fact.SIZE
        largest = verdict_on(plan, replace(asked(probe), size=NEAR_ZONE, unknown=frozenset(["size"])))
        assert strictness(largest.effect) >= strictness(verdict_on(plan, asked(probe)).effect)


@given(plans(), probes, st.sampled_from([DATA, DATA + 24, DATA + DATA_BYTES + FRAME_BELOW]))
def test_decide__what_may_be_a_frame_counts_with_the_bytes_below(plan: Plan, probe: Probe, start: int) -> None:
    probe = replace(probe, start=start, unknown=frozenset(["size", "gva"]))
    whether = {
        frame: decide(link_time_table(plan), replace(asked(probe), frame=frame)) for frame in (None, False, True)
    }
    below = replace(probe, start=start - FRAME_BELOW, size=probe.size + FRAME_BELOW)
    assert whether[True] == verdict_on(plan, asked(below))
    if whether[None] is not Fact.FRAME:
        assert whether[None] == whether[False] == whether[True]


@given(plans(), probes, st.sampled_from(["cpl", "rax"]))
def test_decide__an_unknown_field_never_gives_a_weaker_reply_than_any_value(
    plan: Plan, probe: Probe, word: str
) -> None:
    unknown = replace(probe, fields=probe.fields | {word: None})
    known = replace(probe, fields=probe.fields | {word: probe.fields[word] or 0})
    assert strictness(verdict_on(plan, asked(unknown)).effect) >= strictness(verdict_on(plan, asked(known)).effect)


# --- two places on one frame ---

FRAME = 0x5000


def aliased(plan: Plan, *offsets: int) -> VerdictTable:
    """The table of a guest in which the bytes at each of these distances from `DATA` lie on the same frame."""
    table = link_time_table(plan)
    groups: dict[Group, int] = {}
    virtual = table.spaces.get(Base.VIRTUAL, Space(()))
    pieces = [
        (FRAME + max(start, DATA + offset) - offset, FRAME + min(end, DATA + offset + WINDOW) - offset, number)
        for offset in offsets
        for start, end, cell in zip(virtual.starts, virtual.ends, virtual.cells, strict=True)
        if max(start, DATA + offset) < min(end, DATA + offset + WINDOW)
        for group in table.cells[cell]
        for number in [groups.setdefault(group, len(groups))]
    ]
    by_number = tuple(groups)
    cells: dict[Cell, int] = {}
    space = Space(
        (s.start, s.end, cells.setdefault(tuple(by_number[member] for member in s.members), len(cells)))
        for s in sweep(pieces)
    )
    return replace(table, cells=tuple(cells), spaces={Base.PHYSICAL: space})


WINDOW = DATA_BYTES // 2


@given(plans(), probes)
def test_decide__places_that_meet_on_one_frame_only_ever_become_stricter(plan: Plan, probe: Probe) -> None:
    question = replace(
        asked(probe), base=Base.PHYSICAL, start=FRAME + probe.start, fields=(probe.fields | {"gva": probe.start}).get
    )
    effects = []
    for offsets in ((0,), (WINDOW,), (0, WINDOW)):
        verdict = decide(aliased(plan, *offsets), question)
        assert isinstance(verdict, Verdict)
        effects.append(verdict.effect)
    first, second, both = map(strictness, effects)
    assert both == max(first, second)


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


# --- conditions ---

CPL_3 = compare(Field("cpl"), "==", Number(3))
LARGE = compare(Field("size"), ">", Number(8))


@pytest.mark.parametrize(
    ("effect", "exemptions", "cpl", "expected"),
    [
        (DENY, (), 3, DENY),
        (DENY, (), 0, None),
        (DENY, (), None, DENY),
        (ALLOW, (), None, LOG),
        (ALLOW, (), 3, None),
    ],
)
def test_decide__a_condition_without_answer_counts_as_what_is_stricter(
    effect: Effect, exemptions: tuple[Exemption, ...], cpl: int | None, expected: Effect | None
) -> None:
    rules = [rule(effect, (0,), when=CPL_3)] + ([rule(LOG, (0,))] if effect == ALLOW else [])
    plan = make_plan([place(DATA, DATA + 8)], rules)
    assert verdict_on(plan, access(DATA, 8, fields={"cpl": cpl}.get)).effect == expected


@pytest.mark.parametrize(("cpl", "expected"), [(3, None), (0, DENY), (None, DENY)])
def test_decide__an_exception_under_a_condition(cpl: int | None, expected: Effect | None) -> None:
    exempted = rule(places=(0,), exemptions=(Exemption((), "x", when=CPL_3),))
    plan = make_plan([place(DATA, DATA + 8)], [exempted])
    found = verdict_on(plan, access(DATA, 8, fields={"cpl": cpl}.get))
    assert (found.effect, found.exempted) == (expected, () if expected else (0,))


def test_decide__an_exception_from_code_under_a_condition_needs_both() -> None:
    exempted = rule(places=(0,), exemptions=(Exemption((1,), "x", when=CPL_3),))
    plan = make_plan([place(DATA, DATA + 8), place(CODE, CODE + 64)], [exempted])
    table = link_time_table(plan)
    for rip, cpl, expected in (
        (KERNEL_RIP, 3, None),
        (KERNEL_RIP, 0, DENY),
        (MODULE_RIP, 3, DENY),
    ):
        found = decide(table, access(DATA, 8, rip=rip, fields={"cpl": cpl}.get))
        assert isinstance(found, Verdict)
        assert found.effect == expected


def test_decide__the_frame_of_rip_is_not_asked_for_where_the_condition_fails() -> None:
    exempted = rule(places=(0,), exemptions=(Exemption((1,), "x", when=CPL_3),))
    table = link_time_table(make_plan([place(DATA, DATA + 8), place(CODE, CODE + 64)], [exempted]))

    def ask(cpl: int) -> Verdict | Fact:
        return decide(table, MemoryAccess(Access.W, Base.VIRTUAL, DATA, 8, Origin(KERNEL_RIP), fields={"cpl": cpl}.get))

    assert ask(3) is Fact.RIP_FRAME
    assert ask(0) == Verdict(DENY, DENY, (0,))


def test_decide__the_size_is_asked_for_only_where_a_condition_turns_on_it() -> None:
    page = place(DATA & -0x1000, (DATA & -0x1000) + 0x1000)
    table = link_time_table(make_plan([page], [rule(places=(0,), when=every([CPL_3, LARGE]))]))

    def ask(size: int | None, cpl: int, *, certain: bool = True) -> Verdict | Fact:
        question = access(DATA, size, fields={"cpl": cpl}.get)
        return decide(table, replace(question, unknown=ALL_KNOWN if certain else frozenset(["size"])))

    assert ask(None, 3) is Fact.SIZE
    assert ask(None, 0) == Verdict(None, None)
    assert ask(16, 3) == Verdict(DENY, DENY, (0,))
    assert ask(8, 3) == Verdict(None, None)
    assert ask(NEAR_ZONE, 3, certain=False) == Verdict(DENY, DENY, (0,))


def test_decide__a_size_that_could_not_be_decoded_is_not_believed() -> None:
    """A rule about small stores must not be evaded by a store that can't be decoded."""
    page = place(DATA & -0x1000, (DATA & -0x1000) + 0x1000)
    table = link_time_table(make_plan([page], [rule(places=(0,), when=negate(LARGE))]))
    assert decide(table, replace(access(DATA, NEAR_ZONE), unknown=frozenset(["size"]))) == Verdict(DENY, DENY, (0,))


def test_decide__conditions_on_events() -> None:
    cr4 = EventKey("cr4")
    cleared = compare(bit_and([Field("old"), Number(0x30)]), "!=", Number(0))
    table = link_time_table(make_plan([], [rule(event=cr4, when=cleared)]))
    for old, expected in ((0x10, Verdict(DENY, DENY, (0,))), (0xF, Verdict(None, None))):
        assert decide(table, NoticedEvent(cr4, Origin(0), {"old": old}.get)) == expected


def test_decide__a_physical_place_in_a_condition() -> None:
    plan = make_plan(
        [place(0x4000, 0x6000, Base.PHYSICAL), place(0x4000, 0x4010, Base.PHYSICAL)],
        [rule(places=(0,), when=within(Field("gpa"), [1]))],
    )
    table = link_time_table(plan)
    for start, expected in ((0x4008, Verdict(DENY, DENY, (0,))), (0x4010, Verdict(None, None))):
        assert decide(table, MemoryAccess(Access.W, Base.PHYSICAL, start, 1, Origin(0))) == expected

"""The plan file: the same bytes every time, and nothing but a whole, unedited plan is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from policyc.catalog import Access, EffectKind
from policyc.plan.canonical import compare, every, negate, within
from policyc.plan.conditions import Field, Number
from policyc.plan.model import Effect, EventKey, Exemption, Plan, Rate, Record, SourceSpan, Watch
from policyc.plan.places import Base, Extent, SymbolPlace
from policyc.plan.store import PlanRefusedError, core_digest, dump, load
from tests.support.plans import DENY, LOG, guest_facts, make_plan, place, rule


@pytest.fixture
def plan() -> Plan:
    from policyc.plan.model import BoundPlace

    symbol = BoundPlace(SymbolPlace("kernel", "x*", 8, 16), (Extent(Base.IMAGE, 0x1008, 0x1018),), inferred=True)
    return make_plan(
        [symbol, place(0x2000, 0x3000, Base.PHYSICAL), place(0x9000, 0x9040)],
        [
            rule(DENY, (0,), Access.R | Access.W, exempt=(2,)),
            rule(LOG, (1,), enforce=False, policy=1),
            rule(LOG, event=EventKey("hypercall", (34, 24))),
            rule(Effect(EffectKind.INJECT, 6, 2), (1,), Access.X, origin=(2,), policy=1),
            rule(
                DENY,
                event=EventKey("cr4"),
                when=every([compare(Field("old"), "!=", Number(0)), negate(within(Field("rip"), [2]))]),
                exemptions=(Exemption((), "because", when=compare(Field("cpl"), "==", Number(3))),),
            ),
        ],
        ("a", "b"),
        watches=(Watch("w", 1, (1, 2), 5000, restore=True, record=Record("high", "x", ("t",), Rate(10, "minute"))),),
        watch_spans=(SourceSpan(0, 7, 9, 2),),
        guest=guest_facts(copy_routines=(Extent(Base.IMAGE, 0, 16),), code=(Extent(Base.IMAGE, 0, 0x1000),)),
    )


def test_load__gives_back_what_was_dumped(plan: Plan) -> None:
    assert load(dump(plan).encode()) == plan


def test_dump__is_the_same_every_time(plan: Plan) -> None:
    assert dump(plan) == dump(plan)


def test_core_digest__does_not_depend_on_where_rules_were_written(plan: Plan) -> None:
    from dataclasses import replace

    elsewhere = replace(plan, spans=tuple(replace(span, line=span.line + 7) for span in plan.spans))
    assert core_digest(elsewhere) == core_digest(plan)
    assert dump(elsewhere) != dump(plan)


Edit = Callable[[dict[str, Any]], None]


def edited(plan: Plan, edit: Edit, *, fix_digest: bool = True) -> bytes:
    from policyc.plan.store import _canonical, _digest

    document = json.loads(dump(plan))
    edit(document)
    if fix_digest:
        document["core_digest"] = _digest(_canonical(document["core"]))
    return json.dumps(document).encode()


def set_in(*path: str | int, to: object) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        target: Any = document
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = to

    return edit


CONTRADICTIONS = {
    "the digest": (set_in("core_digest", to="sha256:" + "1" * 64), False, "core doesn't match `core_digest`"),
    "a rule weakened by hand": (
        set_in("core", "rules", 0, "effect", "kind", to="log"),
        False,
        "core doesn't match `core_digest`",
    ),
    "pages that don't follow": (set_in("core", "pages", 0, "allowed", to="rwx"), True, "don't follow from its rules"),
    "a place that isn't there": (set_in("core", "rules", 0, "places", to=[99]), True, "place 99 does not exist"),
    "a policy that isn't there": (set_in("core", "rules", 0, "policy", to=9), True, "policy 9 does not exist"),
    "an effect its event can't carry": (
        set_in("core", "rules", 2, "effect", "kind", to="deny"),
        True,
        "deny is impossible on a hypercall",
    ),
    "an unknown event": (set_in("core", "rules", 2, "event", "word", to="nmi"), True, "no event of the language"),
    "neither access nor event": (set_in("core", "rules", 2, "event", to=None), True, "either an access or an event"),
    "a backwards range": (
        set_in("core", "places", 1, "extents", 0, "end", to="0x10"),
        True,
        "not an extent",
    ),
    "a condition on a field that isn't there": (
        set_in("core", "rules", 0, "when", to=["old", "0x0", "!="]),
        True,
        "a read or execute has no field `old`",
    ),
    "a condition on a place that isn't there": (
        set_in("core", "rules", 4, "when", to=["rip", {"in": [9]}]),
        True,
        "rule 4: in 9 does not exist",
    ),
    "a condition in another order": (
        set_in("core", "rules", 4, "when", to=["rip", {"in": [2]}, "not", "old", "0x0", "!=", "and"]),
        True,
        "isn't in canonical form",
    ),
    "a condition of nothing": (set_in("core", "rules", 4, "when", to=[]), True, "breaks its schema"),
    "a condition that is text": (
        set_in("core", "rules", 4, "when", to="old != 0"),
        True,
        "breaks its schema at `$.core.rules[4].when`",
    ),
    "an exception for everybody": (
        set_in("core", "rules", 4, "exemptions", 0, "when", to=None),
        True,
        "rule 4 has an exception that excepts nothing in particular",
    ),
    "a watch of nothing": (set_in("core", "watches", 0, "places", to=[]), True, "breaks its schema"),
    "a watch of a place that isn't there": (
        set_in("core", "watches", 0, "places", to=[3]),
        True,
        "watch 0: place 3 does not exist",
    ),
    "a watch that never rests": (set_in("core", "watches", 0, "period_ms", to=1), True, "breaks its schema"),
    "a watch of no policy": (set_in("core", "watches", 0, "policy", to=2), True, "watch 0: policy 2 does not exist"),
    "a lost span of a watch": (set_in("sources", "watches", to=[]), True, "1 watches but 0 source spans"),
    "records without end": (
        set_in("core", "watches", 0, "record", "limit", "count", to=10**9),
        True,
        "breaks its schema",
    ),
    "code that isn't": (
        set_in("core", "guest", "code", to=[{"base": "image", "start": "0x10", "end": "0x10"}]),
        True,
        "not an extent",
    ),
    "an unknown key": (set_in("core", "colour", to="red"), True, "breaks its schema at `$.core`"),
    "a wrong type": (
        set_in("core", "rules", 0, "places", to="all"),
        True,
        "breaks its schema at `$.core.rules[0].places`",
    ),
    "a lost span": (set_in("sources", "rules", to=[]), True, "5 rules but 0 source spans"),
    "a newer version": (set_in("version", to=2), True, "format version 2, this program reads up to 1"),
    "another format": (set_in("format", to="policyc-profile"), True, "not a policyc plan"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_load__refuses(plan: Plan, name: str) -> None:
    edit, fix_digest, expected = CONTRADICTIONS[name]
    with pytest.raises(PlanRefusedError, match=r"(?s).*") as refused:
        load(edited(plan, edit, fix_digest=fix_digest))
    assert expected in str(refused.value)


def test_load__refuses_every_truncation(plan: Plan) -> None:
    whole = dump(plan).encode()
    for length in range(0, len(whole) - 2, 97):
        with pytest.raises(PlanRefusedError):
            load(whole[:length])


@pytest.mark.parametrize("data", [b"", b"\x00\xff\xfe", b"[" * 100_000, b'{"a":1,"a":2}', b"[]", b"null"])
def test_load__refuses_what_is_no_plan(data: bytes) -> None:
    with pytest.raises(PlanRefusedError):
        load(data)

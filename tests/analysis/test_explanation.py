"""Why a verdict is what it is: the part that every rule about it has, and what is done on the wire."""

from __future__ import annotations

import pytest

from policyc.analysis.explanation import Explanation, Role, on_the_wire
from policyc.analysis.probes import TooManyProbesError
from policyc.catalog import LEGALITY, Access, Column, EffectKind
from policyc.plan.accesses import MemoryAccess, NoticedEvent, Origin
from policyc.plan.model import Effect, EventKey
from policyc.plan.places import Base
from tests.support.decided import asked, plan_of

TEXT = 'text: deny write to kernel .text except from kernel:text_poke_memcpy because "it patches"'


def parts(rules: str, one: Explanation) -> list[tuple[str, Role, str | None]]:
    plan = plan_of(rules)
    return [(plan.rules[part.rule].id, part.role, part.detail) for part in one.parts]


def told(rules: str, question: str) -> list[tuple[str, Role, str | None]]:
    (one,) = asked(rules, question)
    return parts(rules, one)


def test_roles__the_strictest_first_whatever_its_mode() -> None:
    rules = f"{TEXT}\nwatched: crash write to kernel:schedule mode monitor\nseen: log write to kernel:schedule"
    assert told(rules, "write kernel:schedule") == [
        ("watched", Role.DECIDES, None),
        ("text", Role.APPLIES, None),
        ("seen", Role.APPLIES, None),
    ]


def test_roles__a_hole_and_what_it_sets_aside() -> None:
    assert told(f"{TEXT}\nhole: allow write to kernel:schedule", "write kernel:schedule") == [
        ("hole", Role.DECIDES, None),
        ("text", Role.SET_ASIDE, "by `hole`"),
    ]


@pytest.mark.parametrize(
    ("clauses", "question", "detail"),
    [
        ('except from kernel:memcpy because "c"', "from kernel:memcpy", 'except from kernel:memcpy because "c"'),
        ('except when cpl == 0 because "c"', "with cpl = 0", 'except when cpl == 0x0 because "c"'),
        (
            'except from kernel:memcpy because "c" except from kernel:schedule because "d"',
            "from kernel:schedule",
            'except from kernel:schedule because "d"',
        ),
    ],
)
def test_roles__the_exception_that_lifts(clauses: str, question: str, detail: str) -> None:
    assert told(f"r: deny write to kernel .text {clauses}", f"write kernel:schedule {question}") == [
        ("r", Role.LIFTED, detail)
    ]


@pytest.mark.parametrize(
    ("rule", "question", "detail"),
    [
        ("r: deny write to kernel .text", "read kernel:schedule", "it is about another kind of access"),
        ("r: deny write to kernel .text from kernel:memcpy", "write kernel:schedule", "its `from` names other code"),
        (
            "r: deny write to kernel .text when cpl == 0",
            "write kernel:schedule with cpl = 3",
            "its condition doesn't hold",
        ),
        (
            "r: deny write to kernel .text from kernel:memcpy when cpl == 0",
            "write kernel:schedule from kernel:memcpy with cpl = 3",
            "its condition doesn't hold",
        ),
        (
            "r: deny write to kernel .text from kernel:memcpy when cpl == 0",
            "write kernel:schedule with cpl = 0",
            "its `from` names other code",
        ),
        (
            "r: deny write to kernel .text from kernel:memcpy when cpl == 0",
            "write kernel:schedule with cpl = 3",
            "its `from` names other code, and its condition doesn't hold",
        ),
        ("r: on cr4 when clears(smep) deny", "on cr4 with old = 0, new = 0", "its condition doesn't hold"),
    ],
)
def test_roles__why_a_rule_has_no_say(rule: str, question: str, detail: str) -> None:
    assert told(rule, question) == [("r", Role.NO_SAY, detail)]


def test_roles__rules_about_other_bytes_and_events_are_not_mentioned() -> None:
    assert told("deny write to kernel:memcpy\non cr0 log", "write kernel:schedule") == []
    assert told("deny write to kernel:memcpy\non cr0 log", "on cr4") == []


def test_explain__bytes_that_are_decided_alike_are_one_answer() -> None:
    rules = "deny write to kernel:schedule size 8, kernel:schedule + 16 size 8"
    answers = asked(rules, "write kernel:schedule")
    assert [[(span.start & 0xFFFF, span.end & 0xFFFF) for span in one.spans] for one in answers] == [
        [(0x1000, 0x1008), (0x1010, 0x1018)],
        [(0x1008, 0x1010), (0x1018, 0x1800)],
    ]


def test_explain__too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policyc.analysis.probes.MAX_PROBES", 1)
    with pytest.raises(TooManyProbesError, match="more than 1 accesses"):
        asked("deny write to kernel:schedule size 8", "write kernel:schedule")


def test_on_the_wire__every_legal_pair_is_what_the_catalogue_says() -> None:
    origin = Origin(0)
    events: dict[Column, MemoryAccess | NoticedEvent] = {
        Column.WRITE: MemoryAccess(Access.W, Base.VIRTUAL, 0, 1, origin),
        Column.READ_EXECUTE: MemoryAccess(Access.X, Base.VIRTUAL, 0, 1, origin),
        Column.REGISTER: NoticedEvent(EventKey("cr4"), origin),
        Column.DESCRIPTOR: NoticedEvent(EventKey("idtr", (2,)), origin),
        Column.BREAKPOINT: NoticedEvent(EventKey("breakpoint"), origin),
        Column.HYPERCALL: NoticedEvent(EventKey("hypercall", (34, 24)), origin),
        Column.XSETBV: NoticedEvent(EventKey("xsetbv"), origin),
        Column.UNHOOK: NoticedEvent(EventKey("unhook"), origin),
        Column.CPUID: NoticedEvent(EventKey("cpuid", (1,)), origin),
        Column.CREATED: NoticedEvent(EventKey("vcpu"), origin),
    }
    assert set(events) == set(Column)
    for kind, columns in LEGALITY.items():
        for column, mechanism in columns.items():
            said = on_the_wire(events[column], Effect(kind, 6))
            vector = ", #UD" if kind in (EffectKind.FAULT, EffectKind.INJECT) else ""
            denied = ", #GP" if (kind, column) == (EffectKind.DENY, Column.READ_EXECUTE) else ""
            assert said["kvmi-v7"] == mechanism.value + vector + denied


def test_on_the_wire__what_a_dialect_lacks() -> None:
    said = on_the_wire(NoticedEvent(EventKey("cpuid", (1,)), Origin(0)), None)
    assert said == {"kvmi-v7": "CONTINUE", "kvmi-v12": "`cpuid 0x1` doesn't exist here"}
    said = on_the_wire(NoticedEvent(EventKey("msr", (0x1FFF,)), Origin(0)), None)
    assert said == {"kvmi-v7": "`msr 0x1fff` doesn't exist here", "kvmi-v12": "CONTINUE, the new value"}


def test_on_the_wire__retries_come_first() -> None:
    access = MemoryAccess(Access.W, Base.VIRTUAL, 0, 1, Origin(0))
    said = on_the_wire(access, Effect(EffectKind.FAULT, 13, 2))
    assert set(said.values()) == {"RETRY up to 2 times, then INJECT_EXCEPTION, RETRY, #GP"}

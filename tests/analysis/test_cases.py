"""Cases of tests against policies: what passes, what fails, and what can't be decided."""

from __future__ import annotations

import pytest

from policyc.analysis.cases import Answer, answer, meets
from policyc.analysis.probes import GivenFields, Probe
from policyc.catalog import EffectKind
from policyc.plan.accesses import NoticedEvent, Origin
from policyc.plan.model import Effect, EventKey
from policyc.plan.verdicts import Verdict
from tests.support.decided import case_results, unit

TEXT = "deny write to kernel .text"
EXCEPTED = f'{TEXT} except from kernel:text_poke_memcpy because "it patches"'


def passes(rules: str, case: str) -> bool:
    (result,) = case_results(rules, case)
    return result.passed


def got(rules: str, case: str) -> list[str]:
    """What the policy says to each probe of the case, with the first byte that it is about."""
    (result,) = case_results(rules, f"{case} => allow")
    return [
        f"{said.probe.spans[0].start:#x}: {said.verdict.would.kind.name.lower() if said.verdict.would else 'allow'}"
        for said in result.answers
    ]


# ---- what an effect is expected by

EFFECTS = {
    "allow": Effect(EffectKind.ALLOW),
    "log": Effect(EffectKind.LOG),
    "pin": Effect(EffectKind.PIN, 1),
    "pin more": Effect(EffectKind.PIN, 3),
    "skip": Effect(EffectKind.SKIP),
    "deny": Effect(EffectKind.DENY),
    "by fault": Effect(EffectKind.FAULT, 13),
    "inject gp": Effect(EffectKind.INJECT, 13),
    "inject ud": Effect(EffectKind.INJECT, 6),
    "crash": Effect(EffectKind.CRASH),
    "retry": Effect(EffectKind.DENY, 0, 3),
    "retry more": Effect(EffectKind.DENY, 0, 4),
}
MET_BY_OTHERS = {"deny": {"skip", "by fault"}, "inject gp": {"by fault"}}


@pytest.mark.parametrize("expected", EFFECTS)
def test_meets__what_it_says_and_nothing_else(expected: str) -> None:
    event = NoticedEvent(EventKey("cr4"), Origin(0))
    probe = Probe((event,), GivenFields({}))
    met = set()
    for name, effect in EFFECTS.items():
        would = None if name == "allow" else effect
        if meets(EFFECTS[expected], Answer(probe, event, Verdict(None, would), (), would)):
            met.add(name)
    assert met == {expected} | MET_BY_OTHERS.get(expected, set())


@pytest.mark.parametrize(
    ("rules", "case"),
    [
        ("deny write to kernel .text by fault", "write kernel:schedule => deny"),
        ("deny write to kernel .text by fault", "write kernel:schedule => inject gp"),
        ("deny write to kernel .text by skip", "write kernel:schedule => deny"),
        ("deny write to kernel .text by skip", "write kernel:schedule => skip"),
        ("on cr0 pin wp\non cr0 pin pg", "on cr0 => pin pg | wp"),
        ("inject ud execute of kernel .data, kernel .bss", "execute kernel .data => inject ud"),
    ],
)
def test_expected__is_said_as_in_a_rule(rules: str, case: str) -> None:
    """Pins of several rules are one: the union of their bits."""
    assert passes(rules, case)


def test_expected__another_number_of_retries_is_another_effect() -> None:
    rules = "retry 3 then deny write to 0x20"
    assert not passes(rules, "write 0x20 => retry 2 then deny")
    assert not passes(rules, "write 0x20 => deny")


def test_allow__means_that_nothing_stricter_matched() -> None:
    rules = f"{EXCEPTED}\nallow write to kernel:entry_SYSCALL_64"
    assert passes(rules, "write kernel:sys_call_table => allow")  # no rule at all
    assert passes(rules, "write kernel:schedule from kernel:text_poke_memcpy => allow")  # an exception
    assert passes(rules, "write kernel:entry_SYSCALL_64 => allow")  # a hole
    assert not passes("log write to kernel .text", "write kernel:schedule => allow")


def test_monitor__is_tested_as_if_it_were_enforced() -> None:
    assert passes(f"{TEXT} mode monitor", "write kernel .text => deny")
    assert not passes(f'policy "p" mode monitor {TEXT}', "write kernel .text => allow")
    both = f"log write to kernel .text\n{TEXT} mode monitor"
    assert passes(both, "write kernel .text => deny")


# ---- places


def test_area__is_about_every_byte() -> None:
    rules = f"{TEXT}\nallow write to kernel:schedule + 16 size 8"
    assert got(rules, "write kernel:schedule") == ["0xffffffff81001000: deny", "0xffffffff81001010: allow"]
    (result,) = case_results(rules, "write kernel:schedule => deny")
    assert result.failing is not None
    assert result.failing.probe.spans[0].start == 0xFFFFFFFF81001010
    assert [(s.start, s.end) for s in result.answers[0].probe.spans] == [
        (0xFFFFFFFF81001000, 0xFFFFFFFF81001010),
        (0xFFFFFFFF81001018, 0xFFFFFFFF81001800),
    ]


def test_area__has_bytes_that_no_rule_is_about() -> None:
    rules = "deny write to kernel:sys_call_table"
    assert got(rules, "write kernel .rodata") == ["0xffffffff81a00000: allow", "0xffffffff81a00180: deny"]
    assert got(rules, "write virtual 0xffffffff81a00170..0xffffffff81a00180") == ["0xffffffff81a00170: allow"]
    assert got(rules, "write virtual 0xffffffff81a00170..0xffffffff81a00181") == [
        "0xffffffff81a00170: allow",
        "0xffffffff81a00180: deny",
    ]


@pytest.mark.parametrize(
    ("place", "verdict"),
    [
        ("0xffffffff81a0017f", "allow"),
        ("virtual 0xffffffff81a0017f size 2", "deny"),
        ("virtual 0xffffffff81a00178 size 8", "allow"),
        ("kernel:sys_call_table + 0xfff", "deny"),
        ("0xffffffff81a01180", "allow"),
        ("kernel:sys_call_table + 0xfff size 2", "deny"),
    ],
)
def test_address__is_byte_exact(place: str, verdict: str) -> None:
    assert passes("deny write to kernel:sys_call_table", f"write {place} => {verdict}")


@pytest.mark.parametrize(
    ("rules", "case"),
    [
        ("deny write to kernel:entry_SYSCALL_64", "write virtual 0xffffffff81001ffe size 4 => deny"),
        ("deny write to kernel:memcpy", "write virtual 0xffffffff81001ffe size 4 => deny"),
        ("log write to kernel:memcpy\ndeny write to kernel:entry_SYSCALL_64", "write 0xffffffff81001fff => log"),
        (
            "log write to kernel:memcpy\ndeny write to kernel:entry_SYSCALL_64",
            "write virtual 0xffffffff81001fff size 2 => deny",
        ),
    ],
)
def test_access__that_crosses_into_another_page_is_decided_by_both(rules: str, case: str) -> None:
    """Hardware makes two events of it; stopping one stops the instruction."""
    assert passes(rules, case)


def test_place__of_several_symbols_is_each_of_them() -> None:
    rules = "deny write to kernel:memcpy"
    assert got(rules, "write kernel:*memcpy") == ["0xffffffff81001800: allow", "0xffffffff81001880: deny"]


def test_place__physical_and_virtual_memory_are_apart() -> None:
    rules = "deny write to physical 0x1000..0x2000"
    assert passes(rules, "write physical 0x1000 size 8 => deny")
    assert passes(rules, "write 0x1000 => allow")
    assert passes("deny write to idt", "write idt => deny")


def test_place__with_more_accesses_than_are_asked_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policyc.analysis.probes.MAX_PROBES", 5)
    rules = "let who = kernel:schedule, kernel:memcpy, kernel:text_poke_memcpy\nlog write to kernel:schedule, 0x10"
    results = case_results(rules, "write kernel:schedule from who => log", "write virtual 0..0x20 from who => log")
    assert [(result.too_many, result.passed, len(result.answers)) for result in results] == [
        (False, True, 3),
        (True, False, 5),
    ]


# ---- who acts


def test_from__is_the_first_byte_of_the_place() -> None:
    assert passes(EXCEPTED, "write kernel:schedule from kernel:text_poke_memcpy => allow")
    assert passes(EXCEPTED, "write kernel:schedule from kernel .text => deny")
    assert passes(EXCEPTED, "write kernel:schedule with rip = 0xffffffff81001801 => allow")
    assert passes(EXCEPTED, "write kernel:schedule with rip = 0xffffffff81001880 => deny")


def test_from__with_several_places_is_each_of_them() -> None:
    rules = f"let who = kernel:text_poke_memcpy, kernel:schedule\n{EXCEPTED}"
    (result,) = case_results(rules, "write kernel:schedule from who => allow")
    assert [said.probe.rip for said in result.answers] == [0xFFFFFFFF81001800, 0xFFFFFFFF81001000]
    assert not result.passed


def test_from__left_out_is_code_that_no_rule_names() -> None:
    rules = 'deny write to kernel .text except from virtual 0..0x1000, virtual 0x1000..0x2000 because "low"'
    assert passes(rules, "write kernel:schedule => deny")
    assert passes(rules, "write kernel:schedule from 0x1fff => allow")


def test_from__a_copy_routine_stores_for_code_that_no_rule_names() -> None:
    assert passes(EXCEPTED, "write kernel:schedule from kernel:memcpy => deny")
    excepted = f'{TEXT} except from kernel:memcpy because "it copies"'
    assert passes(excepted, "write kernel:schedule from kernel:memcpy => allow")


def test_event__by_code_of_a_from_clause() -> None:
    rules = 'on idtr write deny except from kernel:schedule because "CPU online"'
    assert passes(rules, "on idtr write => deny")
    assert passes(rules, "on idtr write with rip = 0xffffffff81001000 => allow")
    assert passes(rules, "on idtr read => allow")


# ---- fields

CLEARS = "on cr4 when clears(smep | smap) deny"


def test_fields__are_what_conditions_read() -> None:
    assert passes(CLEARS, "on cr4 with old = smep | smap, new = smap => deny")
    assert passes(CLEARS, "on cr4 with old = smep | smap, new = smep | smap | pge => allow")
    assert passes("deny write to kernel .text when cpl == 0", "write kernel .text with cpl = 3 => allow")
    assert passes("deny write to kernel .text when size > 4", "write kernel:schedule size 8 => deny")
    assert passes("deny write to kernel .text when size > 4", "write kernel:schedule size 4 => allow")


@pytest.mark.parametrize("expected", ["deny", "allow"])
def test_fields__that_are_not_given_leave_it_open_where_they_matter(expected: str) -> None:
    (result,) = case_results(CLEARS, f"on cr4 with old = smep => {expected}")
    assert not result.passed
    assert result.failing is not None
    assert (result.failing.missing, result.failing.verdict.would, result.failing.mildest) == (
        ("new",),
        Effect(EffectKind.DENY),
        None,
    )


@pytest.mark.parametrize(
    ("rules", "case"),
    [
        # Another rule denies it in any case.
        (f"{CLEARS}\nalways: on cr4 deny", "on cr4 => deny"),
        ("deny write to kernel .text\nlog write to kernel .text when cpl == 3", "write kernel .text => deny"),
        # An `allow` and an exception are the other way round.
        ("deny write to kernel .text\nallow write to kernel:schedule when cpl == 0", "write kernel .rodata => allow"),
    ],
)
def test_fields__that_are_not_given_and_do_not_matter(rules: str, case: str) -> None:
    assert passes(rules, case)


@pytest.mark.parametrize(
    "rules",
    [
        "deny write to kernel .text\nallow write to kernel:schedule when cpl == 0",
        'deny write to kernel .text except when cpl == 0 because "c"',
        'deny write to kernel .text except from kernel:memcpy when cpl == 0 because "c"',
    ],
)
def test_fields__that_would_make_it_milder_leave_it_open(rules: str) -> None:
    origin = " from kernel:memcpy" if "from" in rules else ""
    for expected in ("deny", "allow"):
        (result,) = case_results(rules, f"write kernel:schedule{origin} => {expected}")
        assert (result.passed, result.failing and result.failing.missing) == (False, ("cpl",))
    assert passes(rules, f"write kernel:schedule{origin} with cpl = 3 => deny")
    assert passes(rules, f"write kernel:schedule{origin} with cpl = 0 => allow")


def test_fields__that_one_part_of_an_access_leaves_open_do_not_matter_where_the_other_is_stopped() -> None:
    rules = "deny write to kernel:memcpy when cpl == 0\ndeny write to kernel:entry_SYSCALL_64"
    assert passes(rules, "write virtual 0xffffffff81001fff size 2 => deny")
    assert not passes(rules, "write virtual 0xffffffff81001fff size 1 => deny")


def test_meets__asks_for_both_ends_of_what_is_open() -> None:
    (result,) = case_results(CLEARS, "on cr4 => log")
    (said,) = result.answers
    assert not any(meets(Effect(kind), said) for kind in (EffectKind.ALLOW, EffectKind.LOG, EffectKind.DENY))


def test_answer__is_the_same_when_it_is_asked_again() -> None:
    made = unit(f'{CLEARS}\ntest "t" {{ on cr4 => deny }}')
    (result,) = case_results(CLEARS, "on cr4 => deny")
    again = answer(result.answers[0].probe, made.tables)
    assert (again.verdict, again.missing) == (result.answers[0].verdict, ("new", "old"))

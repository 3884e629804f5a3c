"""Coverage and mutation: what cases exercise, and what could be taken away unseen."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.analysis.cases import CaseResult, run_case, run_test
from policyc.analysis.coverage import Part, exercised, noticed, parts_of
from policyc.analysis.report import coverage_of, run_unit, unnoticed_of
from policyc.catalog import EffectKind
from policyc.compiler.resolved import ResolvedCase
from policyc.plan.model import Effect, Plan
from tests.support.cases import cases, plans, unit_with
from tests.support.decided import small_profile, unit

POLICY = """\
policy "p"
text: deny write to kernel .text
    except from kernel:text_poke_memcpy because "it patches"
    except from kernel:memcpy because "it copies"
hole: allow write to kernel:schedule
call: on hypercall 34/24 log
call-too: on hypercall 34/24 log severity low
"""

TEXT, PATCHES, COPIES = Part("p", "text"), Part("p", "text", 0), Part("p", "text", 1)
HOLE, CALL, CALL_TOO = Part("p", "hole"), Part("p", "call"), Part("p", "call-too")


def results(test: str) -> tuple[set[Part], set[Part]]:
    """What the cases exercise, and what they miss when it is taken away; all pass."""
    made = unit(f'{POLICY}test "t" {{ {test} }}')
    run = run_test(made.tests[0], made)
    assert all(result.passed for result in run)
    return set(exercised(made, run)), {part for part, is_missed in noticed(made, run) if is_missed}


def test_parts__a_rule_and_each_of_its_exceptions() -> None:
    """Exceptions stand in the order of the plan, which is that of their code."""
    parts = parts_of(unit(POLICY).plan)
    assert list(parts) == [CALL, CALL_TOO, HOLE, TEXT, PATCHES, COPIES]


def test_exercised__a_rule_that_applies() -> None:
    assert results("write kernel:entry_SYSCALL_64 => deny") == ({TEXT}, {TEXT})
    assert results("write kernel .rodata => allow") == (set(), set())


def test_exercised__a_hole_and_what_it_sets_aside() -> None:
    assert results("write kernel:schedule => allow") == ({TEXT, HOLE}, {HOLE})


def test_exercised__the_exception_that_lifts() -> None:
    first, second = parts_of_exceptions()
    assert results("write kernel:entry_SYSCALL_64 from kernel:memcpy => allow") == ({first}, {first})
    assert results("write kernel:entry_SYSCALL_64 from kernel:text_poke_memcpy => allow") == ({second}, {second})


def test_exercised__by_the_other_part_of_an_access_that_crosses_a_page() -> None:
    """Whichever part decides, what lies under both has been asked."""
    crossing = "write virtual 0xffffffff81001ffe size 4 from kernel:memcpy => allow"
    first, _ = parts_of_exceptions()
    assert results(crossing) == ({first}, {first})
    rules = "low: log write to kernel:memcpy high: deny write to kernel:entry_SYSCALL_64"
    made = unit(f'{rules} test "t" {{ write virtual 0xffffffff81001ffe size 4 => deny }}')
    assert {part.rule for part in exercised(made, run_test(made.tests[0], made))} == {"low", "high"}


def parts_of_exceptions() -> tuple[Part, Part]:
    """Those of memcpy and of text_poke_memcpy."""
    (rule,) = (rule for rule in unit(POLICY).plan.rules if rule.id == "text")
    numbers = {exemption.because: Part("p", "text", number) for number, exemption in enumerate(rule.exemptions)}
    return numbers["it copies"], numbers["it patches"]


def test_noticed__not_where_two_rules_do_the_same() -> None:
    assert results("on hypercall 34/24 => log") == ({CALL, CALL_TOO}, set())


def test_report__unites_what_several_files_exercise() -> None:
    one = unit(f'{POLICY}test "a" {{ write kernel:entry_SYSCALL_64 => deny }}')
    two = unit(f'{POLICY}test "b" {{ write kernel:schedule => allow on hypercall 34/24 => log }}')
    runs = [run_unit(each, small_profile(), lambda name: True) for each in (one, two)]
    ticks: list[None] = []
    coverage = coverage_of(runs)
    unnoticed = unnoticed_of(runs, lambda: ticks.append(None))
    assert {text.part for text in coverage.missed} == set(parts_of_exceptions())
    assert (coverage.total, coverage.percent) == (6, 66)
    assert {text.part for text in unnoticed} == {CALL, CALL_TOO, *parts_of_exceptions()}
    assert len(ticks) == 12


def test_report__of_nothing_is_whole() -> None:
    run = run_unit(unit('test "t" { read idt => allow }'), small_profile(), lambda name: True)
    assert coverage_of([run]).percent == 100


def without(plan: Plan, part: Part) -> Plan:
    """The plan without the part, made anew."""
    index = parts_of(plan)[part]
    rule = plan.rules[index]
    before, after = plan.rules[:index], plan.rules[index + 1 :]
    if part.exception is None:
        return replace(plan, rules=(*before, *after), spans=plan.spans[1:])
    left = tuple(each for number, each in enumerate(rule.exemptions) if number != part.exception)
    return replace(plan, rules=(*before, replace(rule, exemptions=left), *after))


def settled(plan: Plan, tested: list[ResolvedCase]) -> list[CaseResult]:
    """The cases with what the policy says as what they expect; those that can't be so are left out."""
    made = unit_with(plan)
    found = []
    for case in tested:
        said = run_case(case, made.tables, plan.guest.image_base).answers[0].verdict.would
        result = run_case(replace(case, effect=said or Effect(EffectKind.ALLOW)), made.tables, plan.guest.image_base)
        if result.passed:
            found.append(result)
    return found


@settings(max_examples=150)
@given(plans(), st.lists(cases(), min_size=1, max_size=4))
def test_noticed__is_what_a_run_without_the_part_finds(plan: Plan, tested: list[ResolvedCase]) -> None:
    passing = settled(plan, tested)
    for part, is_missed in noticed(unit_with(plan), passing):
        tables, base = unit_with(without(plan, part)).tables, plan.guest.image_base
        assert is_missed == any(not run_case(result.case, tables, base).passed for result in passing)


@settings(max_examples=150)
@given(plans(), st.lists(cases(), min_size=1, max_size=4))
def test_noticed__is_exercised(plan: Plan, tested: list[ResolvedCase]) -> None:
    """What no case exercises can't be missed by one."""
    made, passing = unit_with(plan), settled(plan, tested)
    assert {part for part, is_missed in noticed(made, passing) if is_missed} <= exercised(made, passing)

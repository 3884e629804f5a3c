"""The cases of test blocks: what they come to, and every mistake in them, found by `check` as in rules."""

from __future__ import annotations

import pytest

from policyc.catalog import Access, EffectKind
from policyc.compiler.options import CheckOptions
from policyc.compiler.pipeline import compile_policies
from policyc.compiler.resolved import ResolvedCase
from policyc.diagnostics import Source, has_errors
from policyc.plan.model import Effect, EventKey
from policyc.plan.places import Base, Extent
from policyc.plan.store import core_bytes, dump
from tests.support.decided import small_profile

RULE = "deny write to kernel .text\n"


def case_of(text: str) -> ResolvedCase:
    result = compile_policies([Source("p", f'{RULE}test "t" {{ {text} }}')], small_profile(), CheckOptions("kvmi-v7"))
    assert not has_errors(result.diagnostics), [d.message for d in result.diagnostics]
    ((test,),) = (policy.tests for policy in result.policies)
    (case,) = test.cases
    return case


def test_access_case__is_resolved_whole() -> None:
    case = case_of("write kernel:schedule + 5 size 4 from kernel:memcpy with cpl = 0, rax = 0xff => deny")
    (place,), (origin,) = case.places, case.origin
    assert place.resolution is not None
    assert origin.resolution is not None
    assert place.resolution.extents == (Extent(Base.IMAGE, 0x1005, 0x1009),)
    assert origin.resolution.extents == (Extent(Base.IMAGE, 0x1880, 0x2000),)
    assert (case.access, case.size, case.effect) == (Access.W, 4, Effect(EffectKind.DENY))
    assert (case.fields, case.event, case.asked_span.text) == (
        {"cpl": 0, "rax": 0xFF},
        None,
        "kernel:schedule + 5 size 4",
    )


def test_event_case__is_resolved_whole() -> None:
    case = case_of("on cr4 with old = smep | smap, new = ~smep & 0xffffffff => pin smep")
    assert case.event is not None
    assert (case.event.key, case.asked_span.text) == (EventKey("cr4"), "cr4")
    assert case.fields == {"old": 1 << 20 | 1 << 21, "new": 0xFFFFFFFF & ~(1 << 20)}
    assert (case.effect, case.access, case.places) == (Effect(EffectKind.PIN, 1 << 20), Access.NONE, ())


@pytest.mark.parametrize(
    ("place", "size"),
    [
        ("kernel:schedule", None),
        ("kernel:*_memcpy", None),
        ("kernel .text", None),
        ("idt", None),
        ("virtual 0x1000..0x1010", None),
        ("kernel:schedule + 0", 1),
        ("kernel:schedule - 8", 1),
        ("kernel:schedule size 16", 16),
        ("virtual 0x1000 size 16", 16),
        ("physical 0x1000 size 4K", 4096),
        ("0x1000", 1),
    ],
)
def test_access_case__an_address_is_one_access_and_an_area_is_every_byte(place: str, size: int | None) -> None:
    assert case_of(f"read {place} => allow").size == size


CASES = {
    "unknown access": (
        "wirte kernel .text => deny",
        "P209",
        "wirte",
        "there is no access `wirte`",
        "did you mean `write`?",
    ),
    "unknown section": (
        "write kernel .txt => deny",
        "P202",
        "kernel .txt",
        "there is no section `kernel .txt`",
        "did you mean `kernel .text`?",
    ),
    "unknown symbol of `from`": (
        "write kernel .text from kernel:scheduel => deny",
        "P203",
        "kernel:scheduel",
        "there is no symbol `kernel:scheduel`",
        "did you mean `kernel:schedule`?",
    ),
    "unknown name": ("write patchers => deny", "P204", "patchers", "there is no place called `patchers`", None),
    "unknown event": ("on cr5 => deny", "P210", "cr5", "there is no event `cr5`", "did you mean `cr4`?"),
    "event incomplete": ("on msr => deny", "P301", "msr", None, "write `on msr lstar …`"),
    "access too large": (
        "write kernel:schedule size 8K => deny",
        "P302",
        "8K",
        "one access has at most 4096 bytes, not `8K`",
        "leave `size` out, or give a range, to ask about every byte",
    ),
    "vector that can't be injected": ("write kernel .text => inject pf", "P302", "pf", None, None),
    "effect impossible": (
        "on hypercall 34/24 => deny",
        "P304",
        "deny",
        "`deny` can't be done to a hypercall",
        "it can be `allow`, `log`, `inject` or `crash`",
    ),
    "pin on an access": ("write kernel .text => pin wp", "P304", "pin wp", "`pin wp` can't be done to a write", None),
    "retry on a register": ("on cr4 => retry 2 then deny", "P304", "retry 2 then deny", None, None),
    "unknown field": (
        "on cr4 with odl = 1 => deny",
        "P209",
        "odl",
        "there is no field `odl`",
        "did you mean `old`?",
    ),
    "a bit is no field": ("on cr4 with smep = 1 => deny", "P209", "smep", "there is no field `smep`", None),
    "field of another event": (
        "write kernel .text with old = 1 => deny",
        "P307",
        "old",
        "a write has no field `old`",
        None,
    ),
    "field said twice": ("on cr4 with old = 1, old = 2 => deny", "P205", "old", "`old` is set twice", None),
    "field said by the place": (
        "write kernel .text with gva = 1 => deny",
        "P305",
        "gva",
        "`gva` is said by the place",
        "leave it out",
    ),
    "field said by a physical place": (
        "write physical 0x1000 size 8 with gpa = 1 => deny",
        "P305",
        "gpa",
        "`gpa` is said by the place",
        "leave it out",
    ),
    "field said by the access": (
        "write kernel .text with access = write => deny",
        "P305",
        "access",
        "`access` is said by the case's first word",
        "leave it out",
    ),
    "rip said by from": (
        "write kernel .text from 0x10 with rip = 0x20 => deny",
        "P305",
        "rip",
        "`rip` is said by `from`",
        "leave it out",
    ),
    "value out of range": ("write kernel .text with cpl = 4 => deny", "P302", "4", "`cpl` is never `4`", None),
    "value of 65 bits": (
        "write kernel .text with rax = 0x10000000000000000 => deny",
        "P302",
        "0x10000000000000000",
        "`0x10000000000000000` doesn't fit into 64 bits",
        None,
    ),
    "value that isn't fixed": ("on cr4 with new = old => deny", "P302", "old", "`old` isn't fixed", None),
    "bit of another register": ("on cr4 with old = wp => deny", "P308", "wp", None, None),
    "bit of no register": ("write kernel .text with rax = wp => deny", "P308", "wp", None, None),
    "unknown bit": (
        "on cr4 with old = smepp => deny",
        "P209",
        "smepp",
        "there is no field and no bit `smepp`",
        "did you mean `smep`?",
    ),
    "condition as value": ("on cr4 with old = (new == 1) => deny", "P308", "new == 1", None, None),
    "not in this dialect": ("on cpuid 1 => log", "P306", "cpuid 1", "`cpuid 1` doesn't exist in kvmi-v12", None),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("profile", [True, False], ids=["profile", "no profile"])
def test_diagnostic(name: str, profile: bool) -> None:
    """With the profile all are found; without it, all but what only the profile knows."""
    text, code, underlined, message, help = CASES[name]
    source = Source("p", f'{RULE}test "t" {{ {text} }}')
    result = compile_policies([source], small_profile() if profile else None)
    found = [d for d in result.diagnostics if d.severity.value == "error"]
    if not profile and code == "P203":
        assert found == []
        return
    assert [d.code for d in found] == [code]
    assert found[0].span is not None
    assert found[0].span.text == underlined
    assert message in (None, found[0].message)
    assert help in (None, found[0].help)


def test_diagnostic__all_mistakes_of_all_cases_at_once() -> None:
    cases = "wirte kernel .txt with odl = 1 => inject pf on cr5 => deny"
    result = compile_policies([Source("p", f'{RULE}test "t" {{ {cases} }}')], small_profile())
    assert [d.code for d in result.diagnostics] == ["P209", "P202", "P209", "P302", "P210"]


def test_diagnostic__tests_have_names_of_their_own_and_something_to_say() -> None:
    source = Source("p", RULE + 'test "a" { read idt => allow } test "a" {}')
    found = compile_policies([source], small_profile()).diagnostics
    assert [(d.code, d.message, d.span.text if d.span else "") for d in found] == [
        ("P406", "the test `a` has no case, so it can't fail", 'test "a" {}'),
        ("P205", "two tests are called `a`", '"a"'),
    ]
    assert [(span.text if span else "", text) for span, text in found[1].notes] == [('"a"', "the first one")]


def test_names__that_tests_alone_use_are_used() -> None:
    source = Source("p", 'let a = kernel:schedule let b = kernel:memcpy test "t" { write a from b => allow }')
    assert compile_policies([source], small_profile()).diagnostics == ()


def test_plan__has_no_trace_of_tests() -> None:
    tests = 'test "t" { write kernel:schedule + 5 => deny }'
    bare = compile_policies([Source("p", RULE)], small_profile()).plan
    tested = compile_policies([Source("p", RULE + tests)], small_profile()).plan
    beside = compile_policies([Source("p", RULE), Source("p_test", f"let a = idt {tests}")], small_profile()).plan
    assert bare is not None
    assert tested is not None
    assert beside is not None
    assert core_bytes(tested) == core_bytes(bare)
    assert dump(beside) == dump(bare)

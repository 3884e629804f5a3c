"""Conditions from text to evaluation: against a naive interpreter, in canonical form, and every mistake told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.catalog import PLAIN_EFFECT_WORDS
from policyc.compiler.checks import CheckOptions
from policyc.compiler.pipeline import CompileResult, compile_policies
from policyc.diagnostics import Source, has_errors
from policyc.guest.readers import build_profile
from policyc.lang import ast
from policyc.lang.parse import parse
from policyc.plan.condition_steps import encode_condition
from policyc.plan.conditions import text_of
from policyc.plan.evaluation import compile_condition
from policyc.plan.model import Plan, Rule
from policyc.plan.tables import link_time_table
from tests.support.condition_oracle import conditions, interpret
from tests.support.small_kernel import SYSTEM_MAP

PROFILE = build_profile(SYSTEM_MAP.encode())

NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 8, 0x10, 0x1F, 0x20, (1 << 64) - 2, (1 << 64) - 1])

CR4 = conditions(
    st.sampled_from(["old", "new", "cr4"]),
    st.sampled_from(["0x1", "0x3", "smep", "0x10", "smep | pae", "0x0", "0xffffffffffffffff"]),
    st.sampled_from(["rip", "rsp"]),
    NUMBERS,
    calls=True,
)
WRITE = conditions(
    st.sampled_from(["gva", "size", "rax"]),
    st.sampled_from(["0x1", "0x3", "0x8"]),
    st.sampled_from(["gva", "rip", "gva & 0x1f"]),
    NUMBERS,
    calls=False,
)

WORDS = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 0x10, 0x18, 0x20, 0x3F, 1 << 20, (1 << 64) - 1])


def compiled(text: str, options: CheckOptions | None = None) -> CompileResult:
    return compile_policies([Source("a.policy", text)], PROFILE, options)


def plan_of(text: str) -> Plan:
    result = compiled(text)
    assert result.plan is not None, [d.message for d in result.diagnostics]
    return result.plan


def guard_of(text: str) -> ast.Expression:
    file, found = parse(Source("a.policy", text), PLAIN_EFFECT_WORDS)
    assert file is not None, found
    guard = file.rules[0].clauses.guard
    assert guard is not None
    return guard


def answer_of(plan: Plan, fields: Callable[[str], int | None]) -> bool | None:
    """What the rule's condition says; a rule whose condition always holds has none."""
    (rule,) = plan.rules
    if rule.when is None:
        return True
    return compile_condition(rule.when, link_time_table(plan).code.__getitem__)(fields)


@given(CR4, st.fixed_dictionaries(dict.fromkeys(("old", "new", "cr4", "rip", "rsp"), WORDS)))
def test_evaluation__agrees_with_the_naive_interpreter(text: str, fields: dict[str, int]) -> None:
    whole = f"on cr4 when {text} log"
    assert answer_of(plan_of(whole), fields.get) == interpret(guard_of(whole), fields)


KNOWN = {"rax": 3, "rip": 0x18}


@given(WRITE, WORDS)
def test_evaluation__an_answer_in_spite_of_unknown_fields_is_that_of_all_their_values(text: str, rax: int) -> None:
    """What is known in spite of them is right whatever they are, and never less is known than without thinking."""
    whole = f"log write to idt when {text}"
    plan, guard = plan_of(whole), guard_of(whole)
    known: dict[str, int | None] = {"rax": rax, "rip": 0x18, "gva": None, "size": None}
    answer, naive = answer_of(plan, known.get), interpret(guard, known)
    assert answer is not None or naive is None
    if answer is not None:
        some_values = (0, 1, 7, 8, 0x18, 0x3F, (1 << 64) - 1)
        for gva, size in itertools.product(some_values, repeat=2):
            assert interpret(guard, known | {"gva": gva, "size": size}) == answer


def test_evaluation__a_gva_of_all_ones_is_unknown() -> None:
    plan = plan_of("log write to idt when gva == 0xffffffffffffffff or gva in virtual 0..0x10")
    assert answer_of(plan, {"gva": (1 << 64) - 1}.get) is None
    assert answer_of(plan, {"gva": 8}.get) is True
    assert answer_of(plan, {"gva": 0x10}.get) is False


# --- equal meaning, equal bytes ---

EQUAL = {
    "order of operands": ("old == 1 and new == 2", "new == 2 and old == 1"),
    "nesting": ("(old == 1 or new == 2) or cpl == 3", "cpl == 3 or (new == 2 or old == 1)"),
    "repetition": ("old == 1 or old == 1", "old == 1"),
    "sides": ("3 < old", "old > 3"),
    "strictness": ("old >= 4", "old > 3"),
    "not equal to nothing": ("old > 0", "old != 0"),
    "double negation": ("not (not (old == 1))", "old == 1"),
    "De Morgan": ("not (old == 1 or new < 4)", "old != 1 and new >= 4"),
    "De Morgan on bits": ("~(old | ~new) & 0x30 != 0", "~old & new & 0x30 != 0"),
    "bits are any of them": ("old & (smep | smap)", "old & (smep | smap) != 0"),
    "one bit is the bit": ("old & smep == smep", "old & smep"),
    "one bit is not the bit": ("old & smep != smep", "not (old & smep)"),
    "clears one bit": ("clears(smep)", "old & smep and not (new & smep)"),
    "sets one bit": ("sets(0x100000)", "new & smep and not old & smep == smep"),
    "clears any of several": ("clears(smep | smap)", "old & ~new & (smap | smep) != 0"),
    "masks": ("old & 0xff & 0xf0 == 0x30", "0x30 == old & 0xf0"),
    "numbers": ("old == 4K", "old == 0x1000"),
    "what is always so": ("old == 1 and 1 == 1", "old == 1"),
    "places": ("rip in virtual 0x10..0x20", "rip in virtual 0x10 size 16"),
}


@pytest.mark.parametrize("name", EQUAL)
def test_canonical__equal_meaning_is_equal(name: str) -> None:
    one, other = (plan_of(f"on cr4 when {text} log").rules for text in EQUAL[name])
    assert one == other


DIFFERENT = {
    "any and all": ("old & (smep | smap)", "old & (smep | smap) == smep | smap"),
    "several bits at once": ("clears(smep | smap)", "clears(smep) and clears(smap)"),
    "signs": ("old < 4", "old <= 4"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_canonical__different_meaning_is_different(name: str) -> None:
    one, other = (plan_of(f"on cr4 when {text} log").rules[0].when for text in DIFFERENT[name])
    assert one != other


def test_canonical__a_condition_that_always_holds_is_none() -> None:
    assert plan_of("on cr4 when 1 == 1 log").rules[0].unconditional


def test_places_of_conditions__are_places_of_the_plan_whatever_else_is_named() -> None:
    """A rule's id and condition mean the same when other places come before its own."""
    text = "on cr4 when rip in kernel:schedule or rip in kernel:memcpy log"
    alone, among = plan_of(text), plan_of(text + "\nlog write to kernel:init_task\nlog write to idt")
    shown = [_shown(plan, rule) for plan in (alone, among) for rule in plan.rules if rule.event]
    assert shown[0] == shown[1] == ("rip in kernel:memcpy or rip in kernel:schedule", alone.rules[0].id)


def _shown(plan: Plan, rule: Rule) -> tuple[str, str]:
    assert rule.when is not None
    return text_of(rule.when, lambda index: str(plan.places[index].place)), rule.id


def test_let__a_name_in_a_condition_stands_for_all_its_places() -> None:
    plan = plan_of("let both = kernel:schedule, kernel:memcpy\non cr4 when rip in both log")
    assert plan.rules[0].when is not None
    assert encode_condition(plan.rules[0].when) == ["rip", {"in": [0, 1]}]


# --- the sentences of the language's own examples ---

SENTENCES = {
    "on cr4 when clears(smep | smap) deny": ["old", "new", "~", "&", "0x300000", "&", "0x0", "!="],
    "on msr lstar when old != 0 deny": ["old", "0x0", "!="],
    "on cr0 when old & wp and not (new & wp) deny": [
        *("new", "0x10000", "&", "0x0", "==", "old", "0x10000", "&", "0x0", "!=", "and"),
    ],
    "log write to kernel .data when cpl == 3": ["cpl", "0x3", "=="],
    "log write to idt when gva in virtual 0..0x1000 and not (rip in kernel .text)": [
        *("gva", {"in": [2]}, "rip", {"in": [1]}, "not", "and"),
    ],
    "log read, write, execute to physical 0..0x2000 when access == write and gpa in physical 0..0x1000": [
        *("access", "0x2", "==", "gpa", {"in": [0]}, "and"),
    ],
}


@pytest.mark.parametrize("text", SENTENCES)
def test_sentence(text: str) -> None:
    (rule,) = plan_of(text).rules
    assert rule.when is not None
    assert encode_condition(rule.when) == SENTENCES[text]


def test_exceptions__carry_code_and_condition() -> None:
    plan = plan_of(
        'deny write to kernel .text except when cpl == 0 because "a" '
        'except from kernel:schedule when rax == 1 because "b" except from kernel:memcpy because "c"'
    )
    found = [
        ([str(plan.places[index].place) for index in e.code], e.when and encode_condition(e.when), e.because)
        for e in plan.rules[0].exemptions
    ]
    assert found == [
        ([], ["cpl", "0x0", "=="], "a"),
        (["kernel:memcpy"], None, "c"),
        (["kernel:schedule"], ["rax", "0x1", "=="], "b"),
    ]


# --- mistakes ---

Case = tuple[str, str, str, str, "str | None"]

MISTAKES: Mapping[str, Case] = {
    "unknown field": (
        "on cr4 when oldd == 0 deny",
        "P209",
        "oldd",
        "there is no field and no bit `oldd`",
        "did you mean `old`?",
    ),
    "unknown bit": (
        "on cr4 when new & smepp deny",
        "P209",
        "smepp",
        "there is no field and no bit `smepp`",
        "did you mean `smep`?",
    ),
    "unknown function": (
        "on cr4 when clear(smep) deny",
        "P209",
        "clear",
        "there is no function `clear`",
        "did you mean `clears`?",
    ),
    "nothing like it": (
        "on breakpoint when wibble == 1 log",
        "P209",
        "wibble",
        "there is no field and no bit `wibble`",
        "the fields are `rax`, `rbx`, `rcx`, `rdx`, `rsi`, `rdi`, `rsp`, `rbp`, `r8`, `r9`, `r10`, `r11`, `r12`, "
        "`r13`, `r14`, `r15`, `rip`, `cr0`, `cr3`, `cr4`, `efer`, `cpl`, `bits`, `vcpu`",
    ),
    "field of another event": (
        "on cr4 when gva == 0 deny",
        "P307",
        "gva",
        "a register write has no field `gva`",
        "it has `old`, `new`, the registers",
    ),
    "field of one of two accesses' events": (
        "log read, write to idt when old == 0",
        "P307",
        "old",
        "a read or execute and a write has no field `old`",
        "it has `gva`, `gpa`, `size`, `access`, the registers",
    ),
    "function on an event without change": (
        "log write to idt when clears(wp)",
        "P307",
        "clears",
        "a write has no field `old`, which `clears` needs",
        "it has `gva`, `gpa`, `size`, `access`, the registers",
    ),
    "unhook": ("on unhook when vcpu == 0 log", "P307", "vcpu", "unhook has no field `vcpu`", "leave the condition out"),
    "an event with registers alone": (
        "on breakpoint when leaf == 0 log",
        "P307",
        "leaf",
        "a breakpoint has no field `leaf`",
        "ask for a register, such as `rip`",
    ),
    "field of one dialect": (
        "on xsetbv when new & 4 log",
        "P306",
        "new",
        "xsetbv has no `new` in kvmi-v7",
        "compile with `--target kvmi-v12` if every guest runs it",
    ),
    "bit of another register": (
        "on cr4 when new & wp deny",
        "P308",
        "wp",
        "`wp` is a bit of cr0, and `new` a value of cr4",
        "ask `cr0 & wp`, or name a bit of cr4",
    ),
    "bit of another register by name": (
        "on cr4 when cr0 & smep deny",
        "P308",
        "smep",
        "`smep` is a bit of cr4, not of cr0",
        "ask `cr4 & smep`, or name a bit of cr0",
    ),
    "bit of a register whose bits have no names": (
        "on msr lstar when new & wp deny",
        "P308",
        "wp",
        "`wp` is a bit of cr0, and the bits of `new` have no names",
        "ask `cr0 & wp`, or give a number",
    ),
    "bits of two registers": (
        "on cr4 when clears(wp | smep) deny",
        "P308",
        "smep",
        "`wp` is a bit of cr0 and `smep` one of cr4",
        "ask each register by itself",
    ),
    "bit compared with another register": (
        "on cr4 when cr0 == smep deny",
        "P308",
        "smep",
        "`smep` is a bit of cr4, not of cr0",
        "ask `cr4 & smep`, or name a bit of cr0",
    ),
    "bit alone": (
        "on cr4 when smep deny",
        "P308",
        "smep",
        "`smep` says which bit is meant, and not of what",
        "write `new & smep`",
    ),
    "bit of another register alone": (
        "on cr4 when not wp deny",
        "P308",
        "wp",
        "`wp` says which bit is meant, and not of what",
        "write `cr0 & wp`",
    ),
    "number alone": (
        "on cr4 when 1 deny",
        "P308",
        "1",
        "`1` is a number, not a condition",
        "compare a field with it",
    ),
    "field alone": (
        "on cr4 when new deny",
        "P308",
        "new",
        "`new` is a value, not a condition",
        "compare it, as in `new != 0`",
    ),
    "comparison compared": (
        "on cr4 when (new == 1) == 1 deny",
        "P308",
        "new == 1",
        "`new == 1` is a condition, where a value is wanted",
        "join conditions with `and`, `or` and `not`",
    ),
    "access as a number": (
        "log write to idt when access == 2",
        "P308",
        "access == 2",
        "`access` is the kind of access and `2` a number",
        "compare `access` with `read`, `write` or `execute`",
    ),
    "number as an access": (
        "log write to idt when size == write",
        "P308",
        "size == write",
        "`size` is a number and `write` a word for a kind of access",
        "compare `access` with `read`, `write` or `execute`",
    ),
    "accesses have no order": (
        "log write to idt when access < write",
        "P308",
        "<",
        "accesses have no order, so `<` means nothing between them",
        "use `==` or `!=`",
    ),
    "accesses have no bits": (
        "log write to idt when access & write",
        "P308",
        "access",
        "`access` has no bits",
        "write `access == write`",
    ),
    "access alone": (
        "log write to idt when access",
        "P308",
        "access",
        "`access` alone is no condition",
        "write `access == write`",
    ),
    "bits that aren't fixed": (
        "on cr4 when clears(new) deny",
        "P308",
        "new",
        "`clears` is given bits, and `new` aren't any that are fixed",
        "name bits, as in `clears(smep | smap)`",
    ),
    "physical address, virtual place": (
        "log write to idt when gpa in kernel .text",
        "P308",
        "gpa in kernel .text",
        "`gpa` is a physical address, and `kernel .text` lies in virtual memory",
        "ask for `gva`, or name a `physical` place",
    ),
    "virtual address, physical place": (
        "on msr lstar when new in physical 0..0x1000 deny",
        "P308",
        "new in physical 0..0x1000",
        "`new` is a virtual address, and `physical 0x0..0x1000` lies in physical memory",
        "ask for `gpa`, or name a place in virtual memory",
    ),
    "no address": (
        "on cr4 when new in kernel .text deny",
        "P308",
        "new",
        "`new` is no address",
        "ask for an address, such as `rip`, `gva` or `gpa`",
    ),
    "a table that moves": (
        "log write to gdt when gva in idt",
        "P308",
        "idt",
        "where the idt lies is known only once the plan is armed, too late for a condition",
        "give addresses, as `virtual START..END`",
    ),
    "no such place": (
        "log write to idt when rip in kernel .texd",
        "P202",
        "kernel .texd",
        "there is no section `kernel .texd`",
        "did you mean `kernel .text`?",
    ),
    "number too large": (
        "on cr4 when new == 0x10000000000000000 deny",
        "P302",
        "0x10000000000000000",
        "`0x10000000000000000` doesn't fit into 64 bits",
        None,
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str) -> None:
    text, code, underlined, message, help = MISTAKES[name]
    (found,) = compiled(text).diagnostics
    assert found.span is not None
    assert (found.code, found.span.text, found.message, found.help) == (code, underlined, message, help)


def test_mistakes__of_one_condition_are_all_reported() -> None:
    result = compiled('deny write to idt when oldd == 1 or access < write except when old == 0 because "x"')
    assert [(d.code, d.span.text) for d in result.diagnostics if d.span] == [
        ("P209", "oldd"),
        ("P308", "<"),
        ("P307", "old"),
    ]


def test_mistakes__a_condition_of_a_rule_that_is_not_understood_is_left_alone() -> None:
    assert [d.code for d in compiled("on cr5 when old == 0 deny").diagnostics] == ["P210"]


def test_mistakes__a_condition_too_long() -> None:
    text = "\nor ".join(f"rax == {number}" for number in range(1000))
    (found,) = compiled(f"on cr4 when {text} log").diagnostics
    assert (found.code, found.message) == ("P309", "the condition comes to more than 2048 steps")


def test_field_of_one_dialect__compiles_for_it() -> None:
    assert not has_errors(compiled("on xsetbv when new & 4 log", CheckOptions(target="kvmi-v12")).diagnostics)


def test_without_profile__conditions_are_checked_too() -> None:
    result = compile_policies([Source("a.policy", "on cr4 when oldd == 0 and rip in kernel .text deny")], None)
    assert [d.code for d in result.diagnostics] == ["P209"]

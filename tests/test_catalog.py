"""The catalogue whole: every word has a sentence whose meaning is written out here, and every pair of effect and event
either compiles or is refused with what is legal instead.

A row added to the catalogue fails here until it has its case.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from policyc.catalog import (
    ACCESS_WORDS,
    CONTROL_BITS,
    EFFECTS,
    EVENTS,
    FIELDS,
    LEGALITY,
    MECHANISM_WORDS,
    MODES,
    MSRS,
    NOT_EVENTS,
    PLAIN_EFFECT_WORDS,
    RATE_SECONDS,
    RETRYABLE,
    SEVERITIES,
    TARGETS,
    VECTORS,
    Access,
    Column,
    EffectKind,
    carries,
    column_of_access,
    legal_effects,
)
from policyc.compiler.checks import CheckOptions
from policyc.compiler.pipeline import CompileResult, compile_policies
from policyc.diagnostics import Source
from policyc.guest.profile import Profile
from policyc.guest.readers import build_profile
from policyc.plan.condition_steps import Step, encode_condition
from policyc.plan.model import Effect, EventKey, Rate, Rule
from tests.support.small_kernel import SYSTEM_MAP


@pytest.fixture(scope="module")
def profile() -> Profile:
    return build_profile(SYSTEM_MAP.encode())


def compiled(profile: Profile, text: str, target: str = "kvmi-v7") -> CompileResult:
    return compile_policies([Source("a", text)], profile, CheckOptions(target=target, accept_hot_pages=True))


def rule_of(profile: Profile, text: str, target: str = "kvmi-v7") -> Rule:
    result = compiled(profile, text, target)
    assert result.plan is not None, [d.message for d in result.diagnostics]
    (rule,) = result.plan.rules
    return rule


# --- events ---

EVENT_CASES: Mapping[str, tuple[str, EventKey]] = {
    "cr0": ("on cr0 log", EventKey("cr0")),
    "cr3": ("on cr3 log", EventKey("cr3")),
    "cr4": ("on cr4 log", EventKey("cr4")),
    "msr": ("on msr 0x1a0 log", EventKey("msr", (0x1A0,))),
    "xsetbv": ("on xsetbv log", EventKey("xsetbv")),
    "idtr": ("on idtr write log", EventKey("idtr", (2,))),
    "gdtr": ("on gdtr read log", EventKey("gdtr", (1,))),
    "ldtr": ("on ldtr write log", EventKey("ldtr", (2,))),
    "tr": ("on tr read log", EventKey("tr", (1,))),
    "hypercall": ("on hypercall 34/24 log", EventKey("hypercall", (34, 24))),
    "breakpoint": ("on breakpoint log", EventKey("breakpoint")),
    "cpuid": ("on cpuid 0x40000000 log", EventKey("cpuid", (0x40000000,))),
    "vcpu": ("on vcpu created log", EventKey("vcpu")),
    "unhook": ("on unhook log", EventKey("unhook")),
}


def test_events__each_has_a_case() -> None:
    assert list(EVENT_CASES) == list(EVENTS)


@pytest.mark.parametrize("word", EVENT_CASES)
def test_event(profile: Profile, word: str) -> None:
    text, key = EVENT_CASES[word]
    assert rule_of(profile, text).event == key


@pytest.mark.parametrize("word", EVENT_CASES)
def test_event__exists_where_the_catalogue_says(profile: Profile, word: str) -> None:
    text, _ = EVENT_CASES[word]
    for target in TARGETS:
        codes = [d.code for d in compiled(profile, text, target).diagnostics]
        assert codes == ([] if target in EVENTS[word].dialects else ["P306"])


@pytest.mark.parametrize("word", NOT_EVENTS)
def test_not_an_event__says_why(profile: Profile, word: str) -> None:
    (found,) = compiled(profile, f"on {word} log").diagnostics
    assert (found.code, found.help) == ("P210", NOT_EVENTS[word])


MSR_NUMBERS: Mapping[str, int] = {
    # Intel SDM vol. 4, table 2-2, and AMD APM vol. 2, appendix A.
    "tsc": 0x10,
    "apic_base": 0x1B,
    "feature_control": 0x3A,
    "spec_ctrl": 0x48,
    "sysenter_cs": 0x174,
    "sysenter_esp": 0x175,
    "sysenter_eip": 0x176,
    "misc_enable": 0x1A0,
    "debugctl": 0x1D9,
    "pat": 0x277,
    "u_cet": 0x6A0,
    "s_cet": 0x6A2,
    "pl0_ssp": 0x6A4,
    "xss": 0xDA0,
    "efer": 0xC0000080,
    "star": 0xC0000081,
    "lstar": 0xC0000082,
    "cstar": 0xC0000083,
    "sfmask": 0xC0000084,
    "fs_base": 0xC0000100,
    "gs_base": 0xC0000101,
    "kernel_gs_base": 0xC0000102,
    "tsc_aux": 0xC0000103,
}


def test_msrs__each_has_a_case() -> None:
    assert list(MSR_NUMBERS) == list(MSRS)


@pytest.mark.parametrize("word", MSR_NUMBERS)
def test_msr(profile: Profile, word: str) -> None:
    for target in TARGETS:
        assert rule_of(profile, f"on msr {word} log", target).event == EventKey("msr", (MSR_NUMBERS[word],))


# --- accesses ---

ACCESS_CASES: Mapping[str, Access] = {"read": Access.R, "write": Access.W, "execute": Access.X}


def test_accesses__each_has_a_case() -> None:
    assert list(ACCESS_CASES) == list(ACCESS_WORDS)


@pytest.mark.parametrize("word", ACCESS_CASES)
def test_access(profile: Profile, word: str) -> None:
    assert rule_of(profile, f"log {word} to kernel .data").access == ACCESS_CASES[word]


# --- effects ---

EFFECT_CASES: Mapping[str, tuple[str, Effect]] = {
    "allow": ('on cr4 allow because "x"', Effect(EffectKind.ALLOW)),
    "log": ("on cr4 log", Effect(EffectKind.LOG)),
    "pin": ("on cr4 pin smep | smap", Effect(EffectKind.PIN, 0x300000)),
    "skip": ("on idtr write skip", Effect(EffectKind.SKIP)),
    "deny": ("on cr4 deny", Effect(EffectKind.DENY)),
    "inject": ("on breakpoint inject gp", Effect(EffectKind.INJECT, 13)),
    "crash": ("on cr4 crash", Effect(EffectKind.CRASH)),
}

WAYS: Mapping[str, Effect] = {"skip": Effect(EffectKind.SKIP), "fault": Effect(EffectKind.FAULT, 13)}

VECTOR_NUMBERS = {"de": 0, "ud": 6, "ss": 12, "gp": 13, "ac": 17}


def test_effects__each_has_a_case() -> None:
    assert list(EFFECT_CASES) == list(EFFECTS)
    assert list(WAYS) == list(MECHANISM_WORDS)
    assert VECTOR_NUMBERS == VECTORS
    assert PLAIN_EFFECT_WORDS == ("allow", "log", "skip", "deny", "crash")
    assert {effect.kind for _, effect in EFFECT_CASES.values()} | {EffectKind.FAULT} == set(EffectKind)


@pytest.mark.parametrize("word", EFFECT_CASES)
def test_effect(profile: Profile, word: str) -> None:
    text, effect = EFFECT_CASES[word]
    assert rule_of(profile, text).effect == effect


@pytest.mark.parametrize("word", WAYS)
def test_by(profile: Profile, word: str) -> None:
    assert rule_of(profile, f"deny write to kernel .text by {word}").effect == WAYS[word]


@pytest.mark.parametrize("vector", VECTOR_NUMBERS)
def test_vector(profile: Profile, vector: str) -> None:
    for written in (vector, str(VECTOR_NUMBERS[vector])):
        effect = rule_of(profile, f"inject {written} write to kernel .text").effect
        assert effect == Effect(EffectKind.INJECT, VECTOR_NUMBERS[vector])


# --- bits ---

BIT_POSITIONS: Mapping[str, Mapping[str, int]] = {
    # Intel SDM vol. 3A 2.5, AMD APM vol. 2 3.1.
    "cr0": {"pe": 0, "mp": 1, "em": 2, "ts": 3, "et": 4, "ne": 5, "wp": 16, "am": 18, "nw": 29, "cd": 30, "pg": 31},
    "cr4": {
        "vme": 0,
        "pvi": 1,
        "tsd": 2,
        "de": 3,
        "pse": 4,
        "pae": 5,
        "mce": 6,
        "pge": 7,
        "pce": 8,
        "osfxsr": 9,
        "osxmmexcpt": 10,
        "umip": 11,
        "la57": 12,
        "vmxe": 13,
        "smxe": 14,
        "fsgsbase": 16,
        "pcide": 17,
        "osxsave": 18,
        "kl": 19,
        "smep": 20,
        "smap": 21,
        "pke": 22,
        "cet": 23,
        "pks": 24,
    },
    "efer": {"sce": 0, "lme": 8, "lma": 10, "nxe": 11, "svme": 12, "lmsle": 13, "ffxsr": 14, "tce": 15},
}
EVENT_OF_REGISTER = {"cr0": "cr0", "cr4": "cr4", "efer": "msr efer"}
BITS = [(register, bit) for register, bits in BIT_POSITIONS.items() for bit in bits]


def test_bits__each_has_a_case() -> None:
    known = {
        register: {word: mask.bit_length() - 1 for word, mask in b.items()} for register, b in CONTROL_BITS.items()
    }
    assert known == BIT_POSITIONS
    words = [word for bits in CONTROL_BITS.values() for word in bits]
    assert len(words) == len(set(words))
    assert not set(words) & (FIELDS.keys() | ACCESS_WORDS.keys())


@pytest.mark.parametrize(("register", "bit"), BITS)
def test_bit(profile: Profile, register: str, bit: str) -> None:
    mask = 1 << BIT_POSITIONS[register][bit]
    rule = rule_of(profile, f"on {EVENT_OF_REGISTER[register]} when new & {bit} pin {bit}")
    assert rule.effect == Effect(EffectKind.PIN, mask)
    assert rule.when is not None
    assert encode_condition(rule.when) == ["new", hex(mask), "&", "0x0", "!="]


# --- fields ---


@dataclass(frozen=True)
class FieldCase:
    """A condition on a field, and the steps that it comes to."""

    text: str
    steps: list[Step]


REGISTER_WORDS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip"),
)
FIELD_CASES: Mapping[str, FieldCase] = {
    **{word: FieldCase(f"on breakpoint when {word} == 7 log", [word, "0x7", "=="]) for word in REGISTER_WORDS},
    "cr0": FieldCase("on breakpoint when cr0 & wp log", ["cr0", "0x10000", "&", "0x0", "!="]),
    "cr3": FieldCase("on breakpoint when cr3 == 0x1000 log", ["cr3", "0x1000", "=="]),
    "cr4": FieldCase("on breakpoint when not cr4 & smep log", ["cr4", "0x100000", "&", "0x0", "=="]),
    "efer": FieldCase("on breakpoint when efer & (lme | lma) log", ["efer", "0x500", "&", "0x0", "!="]),
    "cpl": FieldCase("on breakpoint when cpl == 3 log", ["cpl", "0x3", "=="]),
    "bits": FieldCase("on breakpoint when bits < 64 log", ["bits", "0x40", "<"]),
    "vcpu": FieldCase("on breakpoint when vcpu > 0 log", ["vcpu", "0x0", "!="]),
    "gva": FieldCase("log write to idt when gva >= 0x1000", ["gva", "0x1000", ">="]),
    "gpa": FieldCase("log write to idt when gpa < 1M", ["gpa", "0x100000", "<"]),
    "size": FieldCase("log write to idt when size <= 8", ["size", "0x9", "<"]),
    "access": FieldCase("log write, execute to idt when access == execute", ["access", "0x4", "=="]),
    "old": FieldCase("on msr lstar when old != 0 deny", ["old", "0x0", "!="]),
    "new": FieldCase("on cr3 when new == 0 deny", ["new", "0x0", "=="]),
    "leaf": FieldCase("on cpuid 0x40000000 when leaf >= 0x40000000 log", ["leaf", "0x40000000", ">="]),
}


def test_fields__each_has_a_case() -> None:
    assert list(FIELD_CASES) == list(FIELDS)


@pytest.mark.parametrize("word", FIELD_CASES)
def test_field(profile: Profile, word: str) -> None:
    case = FIELD_CASES[word]
    rule = rule_of(profile, case.text)
    assert rule.when is not None
    assert encode_condition(rule.when) == case.steps


# A sentence of each column, without its effect and with a gap for a condition.
SENTENCES: Mapping[Column, str] = {
    Column.WRITE: "{effect} write to kernel:sys_call_table{clause}{when}",
    Column.READ_EXECUTE: "{effect} execute of kernel .text{clause}{when}",
    Column.REGISTER: "on cr4{when} {effect}{clause}",
    Column.DESCRIPTOR: "on idtr write{when} {effect}{clause}",
    Column.BREAKPOINT: "on breakpoint{when} {effect}{clause}",
    Column.HYPERCALL: "on hypercall 34/24{when} {effect}{clause}",
    Column.XSETBV: "on xsetbv{when} {effect}{clause}",
    Column.CPUID: "on cpuid 0x40000000{when} {effect}{clause}",
    Column.CREATED: "on vcpu created{when} {effect}{clause}",
    Column.UNHOOK: "on unhook{when} {effect}{clause}",
}

# What an author writes for each kind of effect.
WRITTEN: Mapping[EffectKind, tuple[str, str]] = {
    EffectKind.ALLOW: ("allow", ' because "x"'),
    EffectKind.LOG: ("log", ""),
    EffectKind.PIN: ("pin smep", ""),
    EffectKind.SKIP: ("skip", ""),
    EffectKind.DENY: ("deny", ""),
    EffectKind.FAULT: ("deny", " by fault"),
    EffectKind.INJECT: ("inject ud", ""),
    EffectKind.CRASH: ("crash", ""),
}


def test_columns__each_has_a_sentence() -> None:
    assert set(SENTENCES) == set(Column)
    assert set(WRITTEN) == set(EffectKind)
    of_events = {spec.column for spec in EVENTS.values()}
    of_accesses = {column for access in Access for column in column_of_access(access)}
    assert of_events | of_accesses == set(Column)


@pytest.mark.parametrize("column", Column, ids=lambda column: column.name.lower())
@pytest.mark.parametrize("kind", EffectKind, ids=lambda kind: kind.name.lower())
def test_legality__each_pair_compiles_or_is_refused_with_what_is_legal(
    profile: Profile, kind: EffectKind, column: Column
) -> None:
    effect, clause = WRITTEN[kind]
    result = compiled(profile, SENTENCES[column].format(effect=effect, clause=clause, when=""))
    if column in LEGALITY[kind]:
        # An `allow` alone sets nothing aside, and is said to be without effect.
        assert [d.code for d in result.diagnostics] == (["P411"] if kind is EffectKind.ALLOW else [])
        assert result.plan is not None
        assert result.plan.rules[0].effect.kind is kind
        return
    *others, last = (f"`{word}`" for word in legal_effects(column))
    (found,) = result.diagnostics
    assert found.span is not None
    assert (found.code, found.span.text) == ("P304", effect)
    assert found.message == f"`{effect}{clause}` can't be done to {column.value}"
    assert found.help == f"it can be {', '.join(others)} or {last}"


@pytest.mark.parametrize("column", Column, ids=lambda column: column.name.lower())
def test_retry__is_legal_where_the_reply_may_be_retry(profile: Profile, column: Column) -> None:
    result = compiled(profile, SENTENCES[column].format(effect="retry 3 then log", clause="", when=""))
    if column in RETRYABLE:
        assert result.plan is not None
        assert result.plan.rules[0].effect == Effect(EffectKind.LOG, 0, 3)
    else:
        (found,) = result.diagnostics
        assert (found.code, found.help) == (
            "P304",
            "leave out `retry`: the kernel doesn't offer to try this event again",
        )


@pytest.mark.parametrize(
    ("event", "legal"), [("cr0", True), ("cr3", False), ("cr4", True), ("msr efer", True), ("msr lstar", False)]
)
def test_pin__is_legal_where_bits_have_names(profile: Profile, event: str, legal: bool) -> None:
    bit = {"cr0": "wp", "cr4": "smep"}.get(event, "nxe")
    codes = [d.code for d in compiled(profile, f"on {event} pin {bit}").diagnostics]
    assert codes == ([] if legal else ["P304"])


@pytest.mark.parametrize("column", Column, ids=lambda column: column.name.lower())
def test_fields__each_is_known_or_refused_as_the_catalogue_says(profile: Profile, column: Column) -> None:
    for word, spec in FIELDS.items():
        condition = " when access != read" if word == "access" else f" when {word} != 0x10"
        text = SENTENCES[column].format(effect="log", clause="", when=condition)
        for target in TARGETS:
            event = column in (Column.CPUID, Column.CREATED)
            if event and target == "kvmi-v12":
                continue
            codes = [d.code for d in compiled(profile, text, target).diagnostics if d.code not in ("P404", "P407")]
            if not carries(column, spec):
                assert codes == ["P307"], (text, codes)
            elif target in spec.dialects.get(column, TARGETS):
                assert codes == [], (text, codes)
            else:
                assert codes == ["P306"], (text, codes)


# --- the small words ---


@pytest.mark.parametrize("severity", SEVERITIES)
def test_severity(profile: Profile, severity: str) -> None:
    assert rule_of(profile, f"on cr4 log severity {severity}").record.severity == severity


@pytest.mark.parametrize(("policy", "rule"), [*itertools.product((None, *MODES), repeat=2)])
def test_mode__of_a_rule_goes_before_its_policy_s(profile: Profile, policy: str | None, rule: str | None) -> None:
    header = 'policy "p"' + (f" mode {policy}" if policy else "")
    text = f"{header} on cr4 log" + (f" mode {rule}" if rule else "")
    assert rule_of(profile, text).enforce == ((rule or policy or "enforce") == "enforce")


@pytest.mark.parametrize("unit", RATE_SECONDS)
def test_rate(profile: Profile, unit: str) -> None:
    assert rule_of(profile, f"on cr4 log at most 10 per {unit}").record.limit == Rate(10, unit)
    assert RATE_SECONDS == {"second": 1, "minute": 60, "hour": 3600}

"""A plan's rules in the language's own words: what is printed can be compiled, and means the same."""

from __future__ import annotations

import pytest

from policyc.analysis.wording import effect_text, event_text, exemption_text, rule_place, rule_text
from policyc.catalog import EffectKind
from policyc.plan.model import Effect, EventKey
from policyc.plan.store import core_bytes
from tests.support.decided import plan_of

RULES = [
    "deny write to kernel .text",
    "deny read, write, execute to kernel .text, kernel:schedule",
    "log execute of kernel:sys_call_table + 0x8 size 0x10",
    "deny write to kernel .text by fault",
    "skip write to idt",
    "crash execute of virtual 0x1000..0x2000",
    "inject ud write to physical 0x1000..0x2000",
    "retry 3 then deny write to kernel .text by fault",
    "retry 3 then inject ss write to gdt",
    "deny write to kernel .text from kernel:memcpy, kernel:schedule",
    "deny write to kernel .text when cpl == 0x0",
    "allow write to kernel .text from kernel:memcpy when cpl == 0x0",
    "on cr0 pin wp | pg",
    "on msr efer pin sce",
    "on cr4 when old & 0x300000 != 0x0 deny",
    "on msr lstar deny",
    "on msr 0x123 log",
    "on hypercall 34/24 log",
    "on idtr write deny",
    "on idtr read deny by fault",
    "on breakpoint inject gp",
    "on unhook log",
    "on xsetbv crash",
]


@pytest.mark.parametrize("text", RULES)
def test_rule_text__is_a_rule_again(text: str) -> None:
    plan = plan_of(text)
    said = rule_text(plan, 0)
    assert said == text
    assert core_bytes(plan_of(said)) == core_bytes(plan)


def test_exemption_text() -> None:
    plan = plan_of(
        'deny write to kernel .text except from kernel:memcpy, kernel:schedule because "a" '
        'except when cpl == 0 because "b" except from kernel:memcpy when cpl == 0 because "c"'
    )
    assert {e.because: exemption_text(plan, e) for e in plan.rules[0].exemptions} == {
        "a": "except from kernel:memcpy, kernel:schedule",
        "b": "except when cpl == 0x0",
        "c": "except from kernel:memcpy when cpl == 0x0",
    }
    assert rule_place(plan, 0) == "a.policy:1"


@pytest.mark.parametrize(
    ("effect", "event", "text"),
    [
        (None, None, "allow"),
        (Effect(EffectKind.FAULT, 13), None, "deny by fault"),
        (Effect(EffectKind.INJECT, 99), None, "inject 99"),
        (Effect(EffectKind.PIN, 1 << 16), EventKey("cr0"), "pin wp"),
        (Effect(EffectKind.PIN, 1 << 16), EventKey("cr4"), "pin fsgsbase"),
        (Effect(EffectKind.PIN, 1 << 63 | 1), EventKey("cr0"), "pin pe | 0x8000000000000000"),
        (Effect(EffectKind.PIN, 1), EventKey("msr", (0x10,)), "pin 0x1"),
        (Effect(EffectKind.PIN, 1), EventKey("msr"), "pin 0x1"),
        (Effect(EffectKind.PIN, 0), None, "pin 0x0"),
    ],
)
def test_effect_text(effect: Effect | None, event: EventKey | None, text: str) -> None:
    """A plan may hold what no policy says; it is printed all the same."""
    assert effect_text(effect, event) == text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (EventKey("cpuid", (0x40000000,)), "cpuid 0x40000000"),
        (EventKey("vcpu"), "vcpu created"),
        (EventKey("tr", (2,)), "tr write"),
        (EventKey("tr", (99,)), "tr read, write"),
        (EventKey("msr"), "msr"),
        (EventKey("hypercall", (1,)), "hypercall 0x1"),
        (EventKey("cr4", (1, 2)), "cr4 0x1 0x2"),
    ],
)
def test_event_text(key: EventKey, text: str) -> None:
    """A plan may hold numbers that no policy says; they are printed all the same."""
    assert event_text(key) == text

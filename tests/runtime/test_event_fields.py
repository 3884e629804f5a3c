"""The fields of real events, in both dialects, as conditions read them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policyc.addresses import GVA_UNKNOWN, Gpa, Gva
from policyc.catalog import FIELDS, TARGETS, Column, carries
from policyc.kvmi import (
    DIALECTS,
    V7,
    V12,
    Action,
    CpuidData,
    CpuMode,
    CrData,
    Dialect,
    Event,
    EventData,
    EventKind,
    EventMsrs,
    MsrData,
    NewValue,
    PageAccess,
    PfData,
    Registers,
    Segment,
    SystemRegisters,
    VcpuState,
    XsetbvData,
)
from policyc.runtime.event_fields import READERS, EventFields
from policyc.runtime.state import Phase
from tests.support.kvmi_pair import Pair
from tests.support.scripted_kernel import (
    IMAGE_BASE,
    SLIDE,
    Conversation,
    EventAnswer,
    ScriptedKernel,
    compile_plan,
    gpa_of,
)

STATE = VcpuState(
    CpuMode.LONG,
    Registers(*range(0x100, 0x112)),
    SystemRegisters(ss=Segment(dpl=3), cs=Segment(dpl=0), cr0=0x80050033, cr3=0x1000, cr4=0x370678, efer=0xD01),
    EventMsrs(),
)
GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{number}" for number in range(8, 16)), "rip")
OF_EVERY_EVENT = {
    **{word: 0x100 + number for number, word in enumerate(GENERAL)},
    "cr0": 0x80050033,
    "cr3": 0x1000,
    "cr4": 0x370678,
    "efer": 0xD01,
    "cpl": 3,
    "bits": 64,
    "vcpu": 1,
}

PAGE_FAULT = PfData(Gva(0xFFFF888000001234), Gpa(0x1234), PageAccess.W)

EVENTS: dict[str, tuple[EventKind, EventData | None, Column, dict[str, int]]] = {
    "a write": (
        EventKind.PF,
        PAGE_FAULT,
        Column.WRITE,
        {"gva": 0xFFFF888000001234, "gpa": 0x1234, "access": 2},
    ),
    "a write without virtual address": (
        EventKind.PF,
        replace(PAGE_FAULT, gva=GVA_UNKNOWN),
        Column.WRITE,
        {"gva": GVA_UNKNOWN, "gpa": 0x1234, "access": 2},
    ),
    "a control register": (EventKind.CR, CrData(4, 0x30, 0x10), Column.REGISTER, {"old": 0x30, "new": 0x10}),
    "an MSR": (EventKind.MSR, MsrData(0xC0000082, 5, 6), Column.REGISTER, {"old": 5, "new": 6}),
    "xsetbv": (EventKind.XSETBV, XsetbvData(0, 3, 7), Column.XSETBV, {"old": 3, "new": 7}),
    "cpuid": (EventKind.CPUID, CpuidData(0x40000000, 0, 2), Column.CPUID, {"leaf": 0x40000000}),
    "hypercall": (EventKind.HYPERCALL, None, Column.HYPERCALL, {}),
}


def received(dialect: Dialect, kind: EventKind, data: EventData | None, state: VcpuState = STATE) -> Event:
    pair = Pair(dialect).open()
    pair.kernel.send_event(kind, 1, state, data)
    (event,) = pair.kernel_says()
    assert isinstance(event, Event)
    return event


@pytest.mark.parametrize("dialect", [V7, V12], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("name", EVENTS)
def test_fields__of_each_event_are_those_that_the_catalogue_says(name: str, dialect: Dialect) -> None:
    kind, data, column, own = EVENTS[name]
    if kind not in dialect.events:
        assert dialect is V12
        return
    carried = {
        word
        for word, spec in FIELDS.items()
        if carries(column, spec) and dialect.name in spec.dialects.get(column, TARGETS)
    }
    sent = data if kind is not EventKind.XSETBV or dialect is V12 else None
    fields = EventFields(received(dialect, kind, sent))
    known = {word: value for word in READERS if (value := fields(word)) is not None}
    assert known == OF_EVERY_EVENT | {word: value for word, value in own.items() if word in carried}
    assert carried - known.keys() == ({"size"} if kind is EventKind.PF else set())


@pytest.mark.parametrize(("mode", "bits"), [(CpuMode.REAL, 16), (CpuMode.PROTECTED, 32), (CpuMode.LONG, 64)])
def test_bits__are_the_width_of_the_running_code(mode: CpuMode, bits: int) -> None:
    assert EventFields(received(V12, EventKind.HYPERCALL, None, replace(STATE, mode=mode)))("bits") == bits


def test_readers__have_a_row_for_every_field_that_an_event_carries() -> None:
    assert set(FIELDS) - set(READERS) == {"size"}
    assert set(READERS) <= set(FIELDS)
    assert set(TARGETS) <= set(DIALECTS)


# --- conditions in the enforcer ---


def armed(dialect: Dialect, text: str) -> Conversation:
    talk = Conversation(compile_plan(text), ScriptedKernel(dialect))
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    return talk


DENIED, LET_PASS = "the old value", "the new value"

SMEP, SMAP, WP = 1 << 20, 1 << 21, 1 << 16

REGISTER_WRITES: dict[str, list[tuple[CrData | MsrData, str]]] = {
    "on cr4 when clears(smep | smap) deny": [
        (CrData(4, SMEP | SMAP, SMEP), DENIED),
        (CrData(4, SMEP, 0), DENIED),
        (CrData(4, 0x30 | SMEP, SMEP), LET_PASS),
        (CrData(4, 0, SMEP), LET_PASS),
    ],
    "on msr lstar when old != 0 deny": [
        (MsrData(0xC0000082, 0, 5), LET_PASS),
        (MsrData(0xC0000082, 5, 6), DENIED),
    ],
    "on cr0 when old & wp and not (new & wp) deny": [
        (CrData(0, WP | 1, 1), DENIED),
        (CrData(0, 1, WP | 1), LET_PASS),
        (CrData(0, WP, WP | 1), LET_PASS),
    ],
}


@pytest.mark.parametrize("dialect", [V7, V12], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("text", REGISTER_WRITES)
def test_enforcer__decides_register_writes_by_their_values(text: str, dialect: Dialect) -> None:
    talk = armed(dialect, text)
    for data, expected in REGISTER_WRITES[text]:
        kind = EventKind.CR if isinstance(data, CrData) else EventKind.MSR
        value = data.old if expected == DENIED else data.new
        assert talk.event(kind, data, rip=0x1000) == EventAnswer(Action.CONTINUE, NewValue(value))


GUARDED = IMAGE_BASE + 0x6104


def test_enforcer__a_condition_on_the_virtual_address_and_on_an_unknown_one() -> None:
    talk = armed(V12, "deny write to kernel:guarded_object by fault when gva in kernel .data")
    kernel_gva, direct_map_gva = Gva(GUARDED + SLIDE), Gva(0xFFFF888001006104)
    for gva, action in ((kernel_gva, Action.RETRY), (GVA_UNKNOWN, Action.RETRY), (direct_map_gva, Action.CONTINUE)):
        answer = talk.event(EventKind.PF, PfData(gva, gpa_of(GUARDED), PageAccess.W), rip=IMAGE_BASE + SLIDE)
        assert answer == EventAnswer(action, None)


def test_enforcer__a_page_whose_rule_has_a_condition_is_never_answered_from_its_address_alone() -> None:
    talk = armed(V12, "deny write to kernel .text when cpl == 3")
    assert talk.state.bound.fixed_verdict(2, gpa_of(IMAGE_BASE + 0x1000)) is None


def test_enforcer__code_that_a_condition_leaves_writable_is_not_decoded_from() -> None:
    """Sizes are believed only where nobody untrusted can have written the code."""
    for clause, kept in (
        ("", True),
        ("when cpl == 3", False),
        ('except when cpl == 0 because "x"', False),
        ('except from kernel:schedule because "x"', True),
        ('except from kernel:schedule when cpl == 0 because "x"', True),
    ):
        talk = armed(V12, f"deny write to kernel .text {clause}")
        assert talk.state.bound.keeps_unwritable(gpa_of(IMAGE_BASE + 0x1000), 16) is kept
    hole = 'deny write to kernel .text allow write to kernel .text when cpl == 0 because "x"'
    assert not armed(V12, hole).state.bound.keeps_unwritable(gpa_of(IMAGE_BASE + 0x1000), 16)

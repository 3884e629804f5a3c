"""What `crash` counts as once it has been answered: the guest may run on until the connection ends."""

from __future__ import annotations

import pytest

from policyc.addresses import Gva
from policyc.catalog import LEGALITY, Column, EffectKind
from policyc.kvmi import V12, Action, CrData, Dialect, EventKind, NewValue, PageAccess, PfData, XsetbvData
from policyc.plan.model import Effect
from policyc.runtime.aftermath import AFTER_CRASH, Aftermath
from policyc.runtime.records import StateRecord, VerdictRecord
from policyc.runtime.state import Phase
from tests.support.audit_schema import check_records
from tests.support.scripted_kernel import (
    IMAGE_BASE,
    SLIDE,
    Conversation,
    EventAnswer,
    ScriptedKernel,
    compile_plan,
    gpa_of,
)

CODE = IMAGE_BASE + 0x1005
HERE = 0xFFFFFFFFC0401000
WRITE = PfData(Gva(CODE + SLIDE), gpa_of(CODE), PageAccess.W)
CRASHED = EventAnswer(Action.CRASH, None)
TEXT = "text: crash write to kernel .text"


def armed(dialect: Dialect, *texts: str) -> Conversation:
    talk = Conversation(compile_plan("\n".join(texts)), ScriptedKernel(dialect, vcpus=2))
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    talk.records.clear()
    return talk


def write(talk: Conversation, vcpu: int = 0) -> EventAnswer:
    return talk.event(EventKind.PF, WRITE, rip=HERE, vcpu=vcpu)


def recorded(talk: Conversation) -> list[str]:
    check_records(record.to_json(talk.plan) for record in talk.records)
    return [
        record.done if isinstance(record, VerdictRecord) else record.fact
        for record in talk.records
        if isinstance(record, (VerdictRecord, StateRecord))
    ]


def runs_on(vcpu: int) -> str:
    return f"vCPU {vcpu} runs on after CRASH: what would stop the guest is kept from happening from now on"


def test_table__counts_as_deny_where_that_is_legal_else_as_what_is_strictest() -> None:
    assert AFTER_CRASH == {
        Column.WRITE: EffectKind.DENY,
        Column.READ_EXECUTE: EffectKind.DENY,
        Column.REGISTER: EffectKind.DENY,
        Column.DESCRIPTOR: EffectKind.DENY,
        Column.BREAKPOINT: EffectKind.FAULT,
        Column.HYPERCALL: EffectKind.FAULT,
        Column.XSETBV: EffectKind.CRASH,
        Column.CPUID: EffectKind.CRASH,
        Column.CREATED: EffectKind.CRASH,
    }
    assert all(column in LEGALITY[kind] for column, kind in AFTER_CRASH.items())


@pytest.mark.parametrize("kind", [kind for kind in EffectKind if kind is not EffectKind.CRASH])
def test_temper__leaves_every_other_effect_alone(kind: EffectKind) -> None:
    aftermath = Aftermath(vcpus={0})
    effect = Effect(kind, 6, 3)
    assert aftermath.temper(effect, Column.WRITE) == effect
    assert aftermath.temper(Effect(EffectKind.CRASH, retries=2), Column.BREAKPOINT) == Effect(EffectKind.FAULT, 13, 2)


def test_crash__the_next_time_it_is_denied_and_that_is_said_once(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    assert write(talk) == CRASHED
    assert write(talk).action is Action.RETRY
    assert write(talk).action is Action.RETRY
    assert recorded(talk) == [
        "asked the VMM to stop the guest",
        runs_on(0),
        "injected exception 13",
        "injected exception 13",
    ]


def test_crash__an_event_of_another_vcpu_may_have_been_on_its_way(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    write(talk)
    assert write(talk, vcpu=1).action is Action.RETRY
    assert recorded(talk) == ["asked the VMM to stop the guest", "injected exception 13"]
    write(talk)
    assert recorded(talk)[2:] == [runs_on(0), "injected exception 13"]


def test_crash__a_register_keeps_its_value_all_along(dialect: Dialect) -> None:
    talk = armed(dialect, "on cr4 crash")
    kept = NewValue(0x30)
    answers = [talk.event(EventKind.CR, CrData(4, 0x30, 0x20), rip=HERE) for _ in range(2)]
    assert answers == [EventAnswer(Action.CRASH, kept), EventAnswer(Action.CONTINUE, kept)]


def test_crash__is_answered_again_where_nothing_else_stops_it_and_recorded_once(dialect: Dialect) -> None:
    talk = armed(dialect, "on xsetbv crash", TEXT)
    data = XsetbvData(0, 1, 3) if dialect is V12 else None
    answers = [talk.event(EventKind.XSETBV, data, rip=HERE) for _ in range(3)]
    assert answers == [CRASHED] * 3
    assert recorded(talk) == ["asked the VMM to stop the guest", runs_on(0)]
    assert talk.state.counters.acted == {"crash": 3}


def test_crash__is_forgotten_with_the_connection(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    write(talk)
    write(talk)
    talk.hang_up()
    assert talk.state.aftermath == Aftermath()


def test_crash__monitored_is_let_through_however_often(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT + " mode monitor")
    assert [write(talk).action for _ in range(2)] == [Action.CONTINUE] * 2
    assert talk.state.aftermath == Aftermath()

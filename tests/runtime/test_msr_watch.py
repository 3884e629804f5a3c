"""MSR rules on hosts whose kernel reports no write to an MSR: kvmi-v12 on AMD."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from policyc.kvmi import (
    V7,
    V12,
    Command,
    ControlMsr,
    CrData,
    ErrorCode,
    EventKind,
    GetCpuid,
    GetRegisters,
    GetRegistersReply,
    MsrData,
    MsrEntry,
    NewValue,
)
from policyc.runtime.records import StateRecord, VerdictRecord
from policyc.runtime.state import Phase
from policyc.runtime.steps import Leave
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, Conversation, Result, ScriptedKernel, compile_plan

AMD = b"AuthenticAMD"
LSTAR = 0xC0000082
PAT = 0x277
ENTRY = IMAGE_BASE + 0x80 + SLIDE
TEXT = "entry: on msr lstar when old != 0 deny\npat: on msr pat when new == 0 log"


@dataclass
class Msrs:
    """The MSRs of the scripted vCPUs, as GET_REGISTERS shows them."""

    values: dict[tuple[int, int], int] = field(default_factory=dict)
    unreadable: frozenset[int] = frozenset()
    kernel: ScriptedKernel | None = None

    def __call__(self, command: Command) -> Result:
        if not isinstance(command, GetRegisters) or command.msrs == ():
            return None
        if self.unreadable & set(command.msrs):
            return ErrorCode.EINVAL
        assert self.kernel is not None
        state = self.kernel.vcpu_state(0, 0)
        entries = tuple(MsrEntry(msr, self.values.get((command.vcpu, msr), ENTRY)) for msr in command.msrs)
        return GetRegistersReply(state.mode, state.regs, state.sregs, entries)


def armed(text: str = TEXT, *, vcpus: int = 1, msrs: Msrs | None = None) -> tuple[Conversation, Msrs]:
    msrs = msrs or Msrs()
    kernel = ScriptedKernel(V12, vcpus=vcpus, maker=AMD, override=msrs)
    msrs.kernel = kernel
    talk = Conversation(compile_plan(text), kernel)
    talk.connect()
    return talk, msrs


def critical(talk: Conversation) -> list[tuple[str, object, object, object]]:
    return [
        (record.fact, record.details.get("old"), record.details.get("new"), record.details.get("rules"))
        for record in talk.records
        if isinstance(record, StateRecord) and record.severity == "critical"
    ]


def test_arming__says_that_nothing_is_stopped_there() -> None:
    talk, _ = armed()
    assert talk.state.phase is Phase.DEGRADED
    record = talk.records[-1]
    assert isinstance(record, StateRecord)
    assert record.details["notes"] == [
        "on AMD hosts, kernels of kvmi-v12 report no write to an MSR: the runtime compares the values once a second: "
        "a change is recorded there, and never stopped"
    ]


@pytest.mark.parametrize(("dialect", "maker"), [(V7, AMD), (V12, b"GenuineIntel")])
def test_arming__elsewhere_msr_rules_are_events(dialect: object, maker: bytes) -> None:
    kernel = ScriptedKernel(V7 if dialect is V7 else V12, maker=maker)
    talk = Conversation(compile_plan("on msr lstar deny"), kernel)
    talk.connect()
    assert (talk.state.phase, talk.state.msr_watch) == (Phase.ARMED, None)


def test_arming__asks_for_the_processor_only_where_it_decides_something() -> None:
    talk = Conversation(compile_plan("deny write to kernel .text"), ScriptedKernel(V12, maker=AMD))
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    assert not any(isinstance(command, GetCpuid) for command in talk.peer.commands)


def test_change__is_found_within_a_second_and_told_once() -> None:
    talk, msrs = armed(vcpus=2)
    talk.pass_time(3)
    assert critical(talk) == []
    msrs.values[1, LSTAR] = 0xFFFFFFFFC0401000
    talk.pass_time(1.1)
    fact = "MSR 0xc0000082 of vCPU 1 was changed, and this kernel reports no write to it"
    assert critical(talk) == [(fact, hex(ENTRY), "0xffffffffc0401000", ["entry"])]
    talk.pass_time(3)
    assert len(critical(talk)) == 1


def test_change__that_follows_the_arming_at_once_is_found() -> None:
    msrs = Msrs()
    kernel = ScriptedKernel(V12, vcpus=2, maker=AMD, override=msrs)
    msrs.kernel = kernel
    talk = Conversation(compile_plan(TEXT), kernel)
    enter = kernel._enter

    def go_on(vcpu: int) -> None:
        # The guest's first instruction once it may run again: before anything is read of it.
        msrs.values[vcpu, LSTAR] = 0xFFFFFFFFC0401000
        msrs.values[vcpu, PAT] = 0
        enter(vcpu)

    kernel._enter = go_on  # type: ignore[method-assign]
    talk.connect()
    assert [rules for _, _, _, rules in critical(talk)] == [["pat"], ["pat"], ["entry"], ["entry"]]


def test_processor__that_is_started_while_they_are_read_is_guarded_too() -> None:
    started = {0}
    kernel = ScriptedKernel(V12, vcpus=2, maker=AMD)

    def override(command: Command) -> Result:
        if isinstance(command, GetRegisters) and command.vcpu not in started:
            return ErrorCode.EAGAIN
        if isinstance(command, GetRegisters) and 0 in kernel.kernel.waiting and 1 not in started:
            started.add(1)
            kernel.kernel.send_event(EventKind.PAUSE, 1, kernel.vcpu_state(0, 0), None)
        return None

    kernel.override = override
    kernel.silent_pauses = {1}
    talk = Conversation(compile_plan(TEXT), kernel)
    talk.connect()
    assert started == {0, 1}
    assert talk.state.guarded == {0, 1}
    switched = [command for command in kernel.commands if isinstance(command, ControlMsr) and command.vcpu == 1]
    assert switched == [ControlMsr(1, PAT, enable=True), ControlMsr(1, LSTAR, enable=True)]


def test_change__is_told_only_if_the_rules_condition_doesnt_rule_it_out() -> None:
    talk, msrs = armed(msrs=Msrs({(0, LSTAR): 0}))
    talk.pass_time(1.1)
    msrs.values[0, LSTAR] = ENTRY
    msrs.values[0, PAT] = 7
    talk.pass_time(1.1)
    assert critical(talk) == []


def test_change__is_seen_in_the_next_event_too() -> None:
    talk, _ = armed("entry: on msr lstar deny\ncalls: on cr4 log")
    talk.pass_time(0.5)
    # The scripted events carry zeros for their MSRs.
    talk.event(EventKind.CR, CrData(4, 0x20, 0x30), rip=ENTRY)
    assert [(old, new) for _, old, new, _ in critical(talk)] == [(hex(ENTRY), "0x0")]


def test_msr_event__shows_a_kernel_that_reports_them_after_all() -> None:
    talk, msrs = armed()
    answer = talk.event(EventKind.MSR, MsrData(LSTAR, ENTRY, 5), rip=ENTRY)
    assert answer.value == NewValue(ENTRY)
    assert [record.done for record in talk.records if isinstance(record, VerdictRecord)] == ["kept the old value"]
    msrs.values[0, LSTAR] = 99
    talk.pass_time(5)
    assert critical(talk) == []


def test_unreadable_msr__is_told_once() -> None:
    talk, _ = armed(msrs=Msrs(unreadable=frozenset({PAT})))
    talk.pass_time(5)
    assert [fact for fact, *_ in critical(talk)] == ["MSR 0x277 can't be read, so nothing guards it"]


def test_leaving__ends_the_looks() -> None:
    talk, _ = armed()
    talk.feed(Leave("enough"))
    talk.pass_time(1)
    assert talk.disconnected == "the guest has been let go"

"""Commands that aren't answered: what they cost, and that the tool outlasts any number of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import pytest

from policyc.catalog import Access
from policyc.kvmi import (
    V12,
    Action,
    Command,
    ControlSinglestep,
    Dialect,
    ErrorCode,
    EventKind,
    GetInfo,
    GetRegisters,
    PauseVcpu,
    SetPageAccess,
    TranslateGva,
)
from policyc.kvmi.dialects import RunsOn
from policyc.runtime.forgotten import executor_of
from policyc.runtime.msr_watch import LOOK_PAUSE
from policyc.runtime.single_step import STOP_LIMIT
from policyc.runtime.state import Phase
from policyc.runtime.tasks import COMMAND_TIMEOUT
from tests.support.scripted_kernel import (
    IMAGE_BASE,
    SILENCE,
    SLIDE,
    Conversation,
    Result,
    ScriptedKernel,
    compile_plan,
)
from tests.support.stepping_talk import Stuck, facts, guarded, moves

DENY_OBJECT = "object: deny write to kernel:guarded_object"
COLLATERAL = IMAGE_BASE + 0x6800
EXCHANGE = "f0480fc70c25" + ((COLLATERAL + SLIDE) & 0xFFFF_FFFF).to_bytes(4, "little").hex()


def between_init_and_sipi(command: Command) -> Result:
    """vCPUs that wait for their start-up interrupts: what they're asked stays unanswered."""
    return SILENCE if executor_of(command) else None


def insist(stuck: Stuck, seconds: float) -> None:
    """vCPU 0 executes its instruction again and again."""
    end = stuck.talk.now + seconds
    while stuck.talk.now < end:
        if 0 not in stuck.standing:
            stuck.fault(COLLATERAL)
        stuck.talk.pass_time(STOP_LIMIT)


def test_executor__is_the_vcpu_whose_thread_carries_a_command_out(dialect: Dialect) -> None:
    for row in dialect.commands.values():
        if any(field.name == "vcpu" for field in fields(row.message)):
            command = object.__new__(row.message)
            object.__setattr__(command, "vcpu", 3)
            assert executor_of(command) == (3 if row.runs_on is RunsOn.VCPU else None), row.message
        else:
            assert row.runs_on is RunsOn.RECEIVER, row.message


# --- a step ---


def test_step__vcpus_that_owe_an_answer_are_asked_nothing_more(dialect: Dialect) -> None:
    stuck = guarded(dialect, EXCHANGE, DENY_OBJECT, vcpus=8)
    stuck.talk.peer.override = between_init_and_sipi
    insist(stuck, 2)
    assert stuck.talk.tool.outstanding == 7
    assert len(stuck.talk.peer.answers) > 20
    assert {answer.action for answer in stuck.talk.peer.answers} == {Action.CONTINUE}
    assert not [command for command in stuck.talk.peer.commands if isinstance(command, SetPageAccess)]
    assert facts(stuck) == ["ARMED high: stepping an instruction of vCPU 0: another vCPU didn't stand still in time"]


def test_step__can_be_made_again_when_they_have_answered(dialect: Dialect) -> None:
    stuck = guarded(dialect, EXCHANGE, DENY_OBJECT, vcpus=3)
    stuck.talk.peer.override = between_init_and_sipi
    insist(stuck, 1)
    stuck.talk.peer.override = lambda command: None
    stuck.talk.peer.answer_late()
    stuck.talk.talk()
    assert stuck.talk.tool.outstanding == 0
    assert stuck.faults(COLLATERAL, 1) == [Action.RETRY]
    stuck.stepped()
    assert stuck.rights(COLLATERAL) == Access.R | Access.X
    assert stuck.standing == set()


def test_step__an_event_shows_as_much_as_an_answer(dialect: Dialect) -> None:
    stuck = guarded(dialect, EXCHANGE, DENY_OBJECT)
    stuck.talk.peer.override = between_init_and_sipi
    insist(stuck, 1)
    stuck.talk.peer.override = lambda command: None
    stuck.send(EventKind.HYPERCALL, rip=0x1000, vcpu=1)
    assert stuck.faults(COLLATERAL, 1) == [Action.RETRY]


def test_step__single_step_is_switched_off_although_the_answer_to_switching_it_on_is_late(dialect: Dialect) -> None:
    stuck = guarded(dialect, EXCHANGE, DENY_OBJECT)
    stuck.talk.peer.override = lambda command: SILENCE if isinstance(command, ControlSinglestep) else None
    stuck.faults(COLLATERAL)
    stuck.talk.pass_time(STOP_LIMIT)
    assert moves(stuck)[-2:] == ["pages 6000:r-x", "ControlSinglestep off"]


def test_step__a_late_refusal_to_pause_leaves_nothing_behind() -> None:
    """A new vCPU's first PAUSE event is taken for what it is, whatever became of an earlier request."""
    stuck = guarded(V12, EXCHANGE, DENY_OBJECT, vcpus=1)
    peer = stuck.talk.peer
    peer.vcpus = 2
    peer.kernel.vcpu_count = 2
    peer.override = lambda command: SILENCE if isinstance(command, PauseVcpu) else None
    stuck.faults(COLLATERAL)
    stuck.talk.pass_time(STOP_LIMIT)
    peer.answer_late(ErrorCode.EBUSY)
    stuck.talk.talk()
    peer.override = lambda command: None
    peer.commands.clear()
    stuck.talk.pass_time(2)
    assert "ControlEvents" in {type(command).__name__ for command in peer.commands if executor_of(command) == 1}
    assert stuck.standing == set()


def test_step__a_new_vcpu_that_it_stops_is_guarded_before_it_goes_on() -> None:
    stuck = guarded(V12, EXCHANGE, DENY_OBJECT, vcpus=1)
    peer = stuck.talk.peer
    peer.vcpus = 2
    peer.kernel.vcpu_count = 2
    assert stuck.faults(COLLATERAL)[-1] is Action.RETRY
    assert stuck.standing == {1}
    peer.commands.clear()
    stuck.stepped()
    assert stuck.standing == set()
    assert "ControlEvents" in {type(command).__name__ for command in peer.commands if executor_of(command) == 1}


# --- looking at MSRs ---


def msr_talk(vcpus: int) -> Conversation:
    peer = ScriptedKernel(V12, vcpus=vcpus, maker=b"AuthenticAMD")
    talk = Conversation(compile_plan("entry: on msr lstar deny"), peer)
    talk.connect()
    assert talk.state.msr_watch is not None
    peer.commands.clear()
    return talk


def looks(talk: Conversation) -> Mapping[int, int]:
    found = [command.vcpu for command in talk.peer.commands if isinstance(command, GetRegisters)]
    return {vcpu: found.count(vcpu) for vcpu in set(found)}


def test_msrs__of_a_guest_that_is_suspended_are_asked_for_once() -> None:
    talk = msr_talk(3)
    talk.peer.override = lambda command: SILENCE if isinstance(command, GetRegisters) else None
    talk.pass_time(600)
    assert talk.tool.outstanding == 3
    assert looks(talk) == {0: 1, 1: 1, 2: 1}
    talk.peer.override = lambda command: None
    talk.peer.answer_late()
    talk.talk()
    talk.pass_time(3 * LOOK_PAUSE)
    assert all(count > 1 for count in looks(talk).values())


def test_msrs__of_the_others_are_looked_at_while_one_is_silent() -> None:
    talk = msr_talk(2)
    talk.peer.override = lambda command: SILENCE if isinstance(command, GetRegisters) and command.vcpu == 0 else None
    talk.pass_time(20 * LOOK_PAUSE + 2 * COMMAND_TIMEOUT)
    assert looks(talk)[0] == 1
    assert looks(talk)[1] > 10


# --- a kernel that never answers ---


def test_limit__of_unanswered_commands_costs_answers_and_not_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("policyc.runtime.tasks", "policyc.kvmi.tool"):
        monkeypatch.setattr(f"{module}.MAX_OUTSTANDING", 20)
    stuck = guarded(V12, EXCHANGE, DENY_OBJECT)
    stuck.talk.peer.override = lambda command: SILENCE if isinstance(command, (GetInfo, TranslateGva)) else None
    insist(stuck, 60)
    assert stuck.talk.tool.outstanding == 20
    assert stuck.phase() is Phase.ARMED
    assert stuck.standing <= {0}
    before = len(stuck.talk.peer.answers)
    insist(stuck, 3 * COMMAND_TIMEOUT)
    assert len(stuck.talk.peer.answers) > before
    assert stuck.rights(COLLATERAL) == Access.R | Access.X

"""vCPUs that are plugged in under a kernel that doesn't announce them: stopped until each has its events."""

from __future__ import annotations

import pytest

from policyc.kvmi import (
    V7,
    V12,
    Command,
    ControlEvents,
    ErrorCode,
    EventKind,
    KernelConnection,
    PauseVcpu,
    ReplyData,
)
from policyc.runtime.new_vcpus import VCPU_POLL
from policyc.runtime.records import StateRecord
from policyc.runtime.state import Phase
from policyc.runtime.tasks import COMMAND_TIMEOUT
from tests.support.scripted_kernel import SILENCE, Conversation, Result, ScriptedKernel, compile_plan

TEXT = "object: deny write to kernel:guarded_object"
STOPPED_LATE = "vCPU 1 is new, and ran unguarded for up to {:.1f} seconds"


def plugged(vcpus: int, answers: dict[int, list[Result]]) -> Conversation:
    """A guest that was armed with one vCPU and has so many now.

    Args:
        answers: what the kernel says to PAUSE_VCPU, by vCPU, before it takes the request.
    """
    talk = Conversation(compile_plan(TEXT), ScriptedKernel(V12))
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    talk.peer.vcpus = talk.peer.kernel.vcpu_count = vcpus
    talk.peer.commands.clear()

    def pause(command: Command) -> Result:
        left = answers.get(command.vcpu) if isinstance(command, PauseVcpu) else None
        return left.pop(0) if left else None

    talk.peer.override = pause
    return talk


def guarded(talk: Conversation) -> set[int]:
    return {command.vcpu for command in talk.peer.commands if isinstance(command, ControlEvents)}


def told(talk: Conversation) -> list[tuple[str, str]]:
    return [
        (record.severity, record.fact)
        for record in talk.records
        if isinstance(record, StateRecord) and "new" in record.fact
    ]


@pytest.mark.parametrize(
    ("answer", "seconds", "why"),
    [
        (ErrorCode.EBUSY, VCPU_POLL, "PauseVcpu: EBUSY (-16)"),
        (ErrorCode.EAGAIN, VCPU_POLL, "PauseVcpu: EAGAIN (-11)"),
        (SILENCE, VCPU_POLL + COMMAND_TIMEOUT, "the kernel doesn't answer"),
    ],
    ids=["EBUSY", "EAGAIN", "silence"],
)
def test_refusal__is_said_and_the_vcpu_asked_again(answer: ReplyData | ErrorCode, seconds: float, why: str) -> None:
    talk = plugged(2, {1: [answer]})
    talk.pass_time(seconds)
    assert guarded(talk) == set()
    assert talk.state.phase is Phase.DEGRADED
    ((severity, fact),) = told(talk)
    assert severity == "critical"
    assert fact.startswith(f"vCPU 1 is new and can't be stopped, so nothing guards it: {why}")
    talk.pass_time(VCPU_POLL)
    assert guarded(talk) == {1}
    assert told(talk)[1:] == [("high", STOPPED_LATE.format(seconds + VCPU_POLL))]
    assert talk.peer.kernel.waiting == {}


def test_refusal__is_said_once_however_long_it_lasts() -> None:
    talk = plugged(2, {1: [ErrorCode.EBUSY] * 100})
    talk.pass_time(20 * VCPU_POLL)
    assert sum(isinstance(command, PauseVcpu) for command in talk.peer.commands) == 20
    assert len(told(talk)) == 1


def test_refusal__of_one_keeps_no_other_from_being_guarded() -> None:
    talk = plugged(4, {2: [ErrorCode.EBUSY]})
    talk.pass_time(VCPU_POLL)
    assert guarded(talk) == {1, 3}
    talk.pass_time(VCPU_POLL)
    assert guarded(talk) == {1, 2, 3}
    assert talk.state.phase is Phase.DEGRADED


def test_new__is_looked_for_where_the_vmm_doesnt_allow_announcements() -> None:
    peer = ScriptedKernel(V7)
    peer.kernel = KernelConnection(V7, 1, events=V7.events.keys() - {EventKind.CREATE_VCPU})
    talk = Conversation(compile_plan(TEXT), peer)
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    peer.vcpus = peer.kernel.vcpu_count = 2
    talk.pass_time(VCPU_POLL)
    assert guarded(talk) == {0, 1}
    assert told(talk) == [("high", STOPPED_LATE.format(VCPU_POLL))]


def test_new__is_said_with_how_long_it_may_have_run() -> None:
    talk = plugged(2, {})
    talk.pass_time(VCPU_POLL)
    assert told(talk) == [("high", STOPPED_LATE.format(VCPU_POLL))]
    assert talk.state.phase is Phase.ARMED

"""Exceptions that are asked for and overtaken, refused, never confirmed, or that nobody asked for."""

from __future__ import annotations

import pytest

from policyc.addresses import Gva
from policyc.kvmi import (
    Action,
    Command,
    CrData,
    Dialect,
    ErrorCode,
    EventKind,
    InjectException,
    PageAccess,
    PfData,
    ReplyData,
    TrapData,
)
from policyc.runtime.records import JsonObject
from policyc.runtime.state import Phase
from policyc.runtime.steps import Leave
from tests.support.audit_schema import check_records
from tests.support.scripted_kernel import (
    IMAGE_BASE,
    SILENCE,
    SLIDE,
    Conversation,
    EventAnswer,
    ScriptedKernel,
    compile_plan,
    gpa_of,
)

CODE = IMAGE_BASE + 0x1005
ELSEWHERE = 0xFFFFFFFFC0401000
TIMER = 0xEC

TEXT = "text: deny write to kernel .text by fault"
CALL = "call: on hypercall 34/24 inject ud"
WRITE = PfData(Gva(CODE + SLIDE), gpa_of(CODE), PageAccess.W)

AGAIN = EventAnswer(Action.RETRY, None)
GOES_ON = EventAnswer(Action.CONTINUE, None)


def armed(dialect: Dialect, *texts: str, vcpus: int = 1) -> Conversation:
    talk = Conversation(compile_plan("\n".join(texts)), ScriptedKernel(dialect, vcpus=vcpus))
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    talk.peer.commands.clear()
    talk.records.clear()
    return talk


def write(talk: Conversation, *, vcpu: int = 0) -> EventAnswer:
    return talk.event(EventKind.PF, WRITE, rip=ELSEWHERE, vcpu=vcpu)


def call(talk: Conversation) -> EventAnswer:
    return talk.event(EventKind.HYPERCALL, rip=ELSEWHERE)


def trap(talk: Conversation, vector: int, *, vcpu: int = 0) -> None:
    """The kernel delivers something by its own."""
    talk.peer.kernel.send_event(EventKind.TRAP, vcpu, talk.peer.vcpu_state(ELSEWHERE, 0), TrapData(vector, 0, 0))
    talk.talk()


def said(talk: Conversation) -> list[JsonObject]:
    described = [record.to_json(talk.plan) for record in talk.records]
    check_records(described)
    return described


def outcomes(talk: Conversation) -> list[tuple[object, object]]:
    """What each record says was done, or is the fact, and which vector was delivered."""
    found = []
    for record in said(talk):
        delivered = record.get("delivered")
        vector = delivered["vector"] if isinstance(delivered, dict) else None
        found.append((record.get("done", record.get("fact")), vector))
    return found


def injections(talk: Conversation) -> list[InjectException]:
    return [command for command in talk.peer.commands if isinstance(command, InjectException)]


# --- the access comes back by itself ---


def test_access__is_recorded_when_the_exception_is_confirmed(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.silent_traps = True
    assert write(talk) == AGAIN
    assert talk.records == []
    trap(talk, 13)
    assert outcomes(talk) == [("injected exception 13", 13)]


def test_access__overtaken_comes_back_and_is_asked_for_again(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.overtaking = [TIMER]
    assert [write(talk), write(talk)] == [AGAIN, AGAIN]
    assert injections(talk) == [InjectException(0, 13)] * 2
    assert outcomes(talk) == [
        ("had the guest try again: exception 13 was overtaken by 236", TIMER),
        ("injected exception 13", 13),
    ]


def test_access__an_exception_with_another_error_code_is_not_ours(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.silent_traps = True
    write(talk)
    talk.peer.kernel.send_event(EventKind.TRAP, 0, talk.peer.vcpu_state(0, 0), TrapData(13, 0x18, 0))
    talk.talk()
    assert outcomes(talk) == [("had the guest try again: exception 13 was overtaken by 13", 13)]


def test_access__while_another_is_pending_it_is_sent_back(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.injections[0] = InjectException(0, 14)
    assert [write(talk), write(talk)] == [AGAIN, AGAIN]
    assert outcomes(talk) == [
        ("had the guest try again: exception 13 was overtaken by 14", 14),
        ("injected exception 13", 13),
    ]


def test_access__while_nothing_can_be_taken_it_is_sent_back(dialect: Dialect) -> None:
    """As on v12 while an instruction is stepped: no TRAP comes either."""
    talk = armed(dialect, TEXT)
    talk.peer.override = lambda command: ErrorCode.EBUSY if isinstance(command, InjectException) else None
    assert write(talk) == AGAIN
    talk.peer.override = lambda command: None
    assert write(talk) == AGAIN
    assert outcomes(talk) == [
        ("had the guest try again: the kernel takes no exception now (EBUSY)", None),
        ("injected exception 13", 13),
    ]


@pytest.mark.parametrize("errno", [ErrorCode.EPERM, ErrorCode.EOPNOTSUPP, ErrorCode.EINVAL])
def test_access__is_never_performed_where_the_exception_is_refused(dialect: Dialect, errno: ErrorCode) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.override = lambda command: errno if isinstance(command, InjectException) else None
    assert write(talk) == AGAIN
    assert outcomes(talk) == [(f"had the guest try again: the exception was refused ({errno.name})", None)]


def test_access__is_never_performed_where_the_kernel_is_silent(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.override = lambda command: SILENCE
    talk.peer.kernel.send_event(EventKind.PF, 0, talk.peer.vcpu_state(ELSEWHERE, 0), WRITE)
    talk.talk()
    assert talk.peer.answers == []
    talk.pass_time(6)
    assert talk.peer.answers == [AGAIN]
    assert outcomes(talk) == [("had the guest try again: the kernel didn't say whether it takes the exception", None)]


NEVER = ("asked for exception 13, which the kernel never confirmed", None)


def test_access__is_recorded_where_nothing_confirms_the_exception(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.silent_traps = True
    write(talk)
    talk.pass_time(6)
    assert outcomes(talk) == [NEVER]
    trap(talk, 13)
    assert outcomes(talk)[1:] == [("exception 13 was delivered to vCPU 0, and nobody waits for that", 13)]


def test_access__is_recorded_before_the_next_event_of_its_vcpu(dialect: Dialect) -> None:
    """As on v7 while an instruction is stepped: the exception stays pending."""
    talk = armed(dialect, TEXT, "on cr4 log")
    talk.peer.silent_traps = True
    write(talk)
    assert talk.event(EventKind.CR, CrData(4, 1, 2), rip=ELSEWHERE).action is Action.CONTINUE
    assert outcomes(talk) == [NEVER, ("let through", None)]


def test_access__of_another_vcpu_has_its_own_exception(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT, vcpus=2)
    talk.peer.silent_traps = True
    write(talk, vcpu=0)
    write(talk, vcpu=1)
    assert set(talk.state.scheduler.awaiting) == {0, 1}
    trap(talk, 13, vcpu=1)
    trap(talk, TIMER, vcpu=0)
    assert outcomes(talk) == [
        ("injected exception 13", 13),
        ("had the guest try again: exception 13 was overtaken by 236", TIMER),
    ]
    assert talk.state.scheduler.awaiting == {}


def test_lost__records_what_was_open_and_keeps_nothing(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.silent_traps = True
    write(talk)
    talk.hang_up()
    assert [record["kind"] for record in said(talk)] == ["verdict", "state"]
    assert outcomes(talk)[:1] == [NEVER]
    assert talk.state.scheduler.awaiting == {}
    assert talk.state.scheduler.deadline is None


def test_leaving__does_not_wait_for_a_confirmation(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.silent_traps = True
    write(talk)
    talk.feed(Leave("asked to leave"))
    assert talk.disconnected == "the guest has been let go"
    talk.hang_up()
    assert outcomes(talk)[-1] == NEVER


# --- a hypercall doesn't come back ---


def test_hypercall__is_asked_for_again_from_the_trap_of_what_overtook_it(dialect: Dialect) -> None:
    talk = armed(dialect, CALL)
    talk.peer.overtaking = [TIMER, 14]
    assert call(talk) == GOES_ON
    assert injections(talk) == [InjectException(0, 6)] * 3
    assert outcomes(talk) == [("injected exception 6", 6)]
    assert talk.peer.kernel.waiting == {}


def test_hypercall__is_given_up_after_three(dialect: Dialect) -> None:
    talk = armed(dialect, CALL)
    talk.peer.overtaking = [TIMER, 14, 2]
    assert call(talk) == GOES_ON
    assert len(injections(talk)) == 3
    assert outcomes(talk) == [("not injected: overtaken 3 times", 2)]
    assert talk.peer.kernel.waiting == {}


def test_hypercall__waits_for_what_is_pending(dialect: Dialect) -> None:
    talk = armed(dialect, CALL)
    talk.peer.injections[0] = InjectException(0, 6)  # not ours, though it looks like it
    assert call(talk) == GOES_ON
    assert len(injections(talk)) == 2
    assert outcomes(talk) == [("injected exception 6", 6)]


def test_hypercall__goes_on_where_the_exception_is_refused(dialect: Dialect) -> None:
    talk = armed(dialect, CALL)
    talk.peer.override = lambda command: ErrorCode.EPERM if isinstance(command, InjectException) else None
    assert call(talk) == GOES_ON
    assert outcomes(talk) == [("not injected: the exception was refused (EPERM)", None)]


@pytest.mark.parametrize("answered", [0, 1])
def test_hypercall__goes_on_where_the_kernel_is_silent(dialect: Dialect, answered: int) -> None:
    """At once, or in the TRAP event of what overtook it, which has to be answered all the same."""
    talk = armed(dialect, CALL)
    talk.peer.overtaking = [TIMER]

    def then_silent(command: Command) -> ReplyData | None:
        return SILENCE if len(injections(talk)) > answered and isinstance(command, InjectException) else None

    talk.peer.override = then_silent
    talk.peer.kernel.send_event(EventKind.HYPERCALL, 0, talk.peer.vcpu_state(ELSEWHERE, 0), None)
    talk.talk()
    assert len(talk.peer.kernel.waiting) == 1
    talk.pass_time(6)
    assert talk.peer.kernel.waiting == {}
    fact = "not injected: the kernel didn't say whether it takes the exception"
    assert outcomes(talk) == [(fact, TIMER if answered else None)]


# --- nobody asked ---


def test_trap__that_nobody_asked_for_is_answered_and_recorded(dialect: Dialect) -> None:
    talk = armed(dialect, CALL)
    trap(talk, 14)
    assert talk.peer.kernel.waiting == {}
    (record,) = said(talk)
    assert record == {
        "kind": "state",
        "state": "ARMED",
        "severity": "high",
        "fact": "exception 14 was delivered to vCPU 0, and nobody waits for that",
        "delivered": {"vector": 14, "error_code": 0},
    }

"""`retry N then EFFECT`: what counts as the same event again, and what is recorded of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.addresses import Gva
from policyc.kvmi import V12, Action, BreakpointData, Dialect, EventKind, PageAccess, PfData, TrapData
from policyc.runtime.records import VerdictRecord
from policyc.runtime.state import Phase
from tests.support.audit_schema import check_records
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, Conversation, ScriptedKernel, compile_plan, gpa_of

TEXT = "text: retry 2 then deny write to kernel .text by fault"
CODE = IMAGE_BASE + 0x1005
HERE, THERE = 0xFFFFFFFFC0401000, 0xFFFFFFFFC0402000

RETRY, CONTINUE = Action.RETRY, Action.CONTINUE
AGAIN, INJECTED = "had the guest try again", "injected exception 13"


def armed(dialect: Dialect, *texts: str, vcpus: int = 1) -> Conversation:
    talk = Conversation(compile_plan("\n".join(texts)), ScriptedKernel(dialect, vcpus=vcpus))
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    talk.records.clear()
    return talk


def write(talk: Conversation, at: int = CODE, *, rip: int = HERE, vcpu: int = 0, rsp: int = 0) -> Action | None:
    data = PfData(Gva(at + SLIDE), gpa_of(at), PageAccess.W)
    return talk.event(EventKind.PF, data, rip=rip, vcpu=vcpu, rsp=rsp).action


def recorded(talk: Conversation) -> list[tuple[str, int]]:
    """What the verdict records say was done, and after how many attempts."""
    check_records(record.to_json(talk.plan) for record in talk.records)
    return [(record.done, record.retried) for record in talk.records if isinstance(record, VerdictRecord)]


def test_retry__counts_to_n_and_is_recorded_once(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    assert [write(talk), write(talk)] == [RETRY, RETRY]
    assert (talk.peer.injections, recorded(talk)) == ({}, [])
    assert write(talk) is RETRY
    assert recorded(talk) == [(INJECTED, 2)]
    assert talk.state.counters.acted == {"fault": 1}


def test_retry__begins_anew_once_the_effect_took_place(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    for _ in range(6):
        write(talk)
    assert recorded(talk) == [(INJECTED, 2)] * 2


@pytest.mark.parametrize("other", ["byte", "code"])
def test_retry__another_event_starts_the_count_anew(dialect: Dialect, other: str) -> None:
    talk = armed(dialect, TEXT)
    at, rip = (CODE + 1, HERE) if other == "byte" else (CODE, THERE)
    for _ in range(3):
        assert [write(talk), write(talk, at, rip=rip)] == [RETRY, RETRY]
    # However long that goes on: neither access has been performed, and each was recorded.
    assert recorded(talk) == [(AGAIN, 1)] * 5


def test_retry__so_does_one_that_is_let_through(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    write(talk)
    assert write(talk, IMAGE_BASE + 0x2900) is CONTINUE
    assert recorded(talk) == [(AGAIN, 1)]
    assert talk.state.counters.collateral == 1
    assert [write(talk) for _ in range(2)] == [RETRY, RETRY]
    assert recorded(talk) == [(AGAIN, 1)]


def test_retry__each_vcpu_counts_for_itself(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT, vcpus=2)
    for vcpu in (0, 1, 0, 1):
        assert write(talk, vcpu=vcpu) is RETRY
    assert recorded(talk) == []
    write(talk, vcpu=1)
    assert recorded(talk) == [(INJECTED, 2)]


def test_retry__what_we_asked_for_ourselves_does_not_count(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    write(talk)
    state = talk.peer.vcpu_state(HERE, 0)
    talk.peer.kernel.send_event(EventKind.PAUSE, 0, state, None)
    talk.talk()
    talk.peer.kernel.send_event(EventKind.TRAP, 0, state, TrapData(14, 0, 0))
    talk.talk()
    assert talk.peer.kernel.waiting == {}
    write(talk)
    write(talk)
    assert recorded(talk) == [(INJECTED, 2)]


def test_retry__a_guest_that_never_comes_back_is_recorded_after_a_second(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    write(talk)
    write(talk)
    talk.pass_time(2)
    assert recorded(talk) == [(AGAIN, 2)]
    assert talk.state.scheduler.awaiting == {}


def test_retry__the_end_of_the_connection_is_the_end_of_it(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    write(talk)
    talk.hang_up()
    assert recorded(talk) == [(AGAIN, 1)]
    assert talk.state.scheduler.awaiting == {}


def test_retry__each_attempt_is_judged_by_itself(dialect: Dialect) -> None:
    """The same instruction on the same bytes, with other registers."""
    talk = armed(dialect, "text: deny write to kernel .text when rsp == 0x10 by fault", TEXT.replace("text:", "all:"))
    data = PfData(Gva(CODE + SLIDE), gpa_of(CODE), PageAccess.W)
    assert talk.event(EventKind.PF, data, rip=HERE, rsp=0x20).action is RETRY
    assert talk.event(EventKind.PF, data, rip=HERE, rsp=0x10).action is RETRY
    assert recorded(talk) == [(INJECTED, 1)]


def test_retry__of_what_is_only_logged(dialect: Dialect) -> None:
    talk = armed(dialect, "text: retry 2 then log write to kernel .text")
    assert [write(talk) for _ in range(3)] == [RETRY, RETRY, CONTINUE]
    assert recorded(talk) == [("let through", 2)]


def test_retry__of_a_breakpoint(dialect: Dialect) -> None:
    talk = armed(dialect, "debug: on breakpoint retry 1 then log")
    data = BreakpointData(gpa_of(CODE), 1)
    answers = [talk.event(EventKind.BREAKPOINT, data, rip=HERE).action for _ in range(2)]
    assert answers == [RETRY, CONTINUE]
    assert recorded(talk) == [("let through", 1)]


def test_retry__monitored_lets_the_first_attempt_through(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT + " mode monitor")
    assert write(talk) is CONTINUE
    assert recorded(talk) == [("let through", 0)]


ATTEMPTS = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([HERE, THERE])), max_size=12)


@settings(deadline=None)
@given(ATTEMPTS, st.integers(1, 3))
def test_retry__whatever_two_vcpus_do(attempts: list[tuple[int, int]], retries: int) -> None:
    """Against the sentence itself: N times RETRY for the same event in a row, then the effect, one record a run."""
    talk = armed(V12, f"text: retry {retries} then log write to kernel .text", vcpus=2)
    runs: dict[int, tuple[int, int]] = {}
    expected: list[tuple[str, int]] = []
    # The stack pointer moves, or the same access let through again and again would be one that CONTINUE can't perform.
    for rsp, (vcpu, rip) in enumerate(attempts):
        before, tried = runs.pop(vcpu, (rip, 0))
        if before != rip:
            expected.append((AGAIN, tried))
            tried = 0
        if tried < retries:
            runs[vcpu] = (rip, tried + 1)
            assert write(talk, rip=rip, vcpu=vcpu, rsp=rsp) is RETRY
        else:
            expected.append(("let through", retries))
            assert write(talk, rip=rip, vcpu=vcpu, rsp=rsp) is CONTINUE
        assert recorded(talk) == expected
    talk.hang_up()
    assert sorted(recorded(talk)) == sorted([*expected, *((AGAIN, tried) for _, tried in runs.values())])


def test_retry__a_guest_that_wishes_to_be_let_go_meanwhile_is(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    write(talk)
    assert talk.state.scheduler.awaiting
    # It comes from the VMM and names no vCPU: not what the attempt waits for.
    talk.peer.kernel.send_vm_event(EventKind.UNHOOK)
    talk.talk()
    assert set(talk.phases()) == {"UNHOOKING"}
    assert talk.disconnected == "the guest has been let go"
    assert talk.peer.rights == {}

"""Stepping as a transcript: what the tool does when CONTINUE performs nothing, in both dialects."""

from __future__ import annotations

import pytest

from policyc.addresses import Gva, gfn_of
from policyc.catalog import Access
from policyc.kvmi import (
    Action,
    Command,
    ControlEvents,
    ControlSinglestep,
    Dialect,
    ErrorCode,
    EventKind,
    GetInfo,
    InjectException,
    PageAccess,
    PauseVcpu,
    PfData,
    SetPageAccess,
    SinglestepData,
    page_entries,
)
from policyc.runtime.futile import PATIENCE, PAUSE
from policyc.runtime.opened import OPEN_SECONDS
from policyc.runtime.repeats import LOOP_EVENTS, MAX_FAILURES
from policyc.runtime.single_step import STOP_LIMIT
from policyc.runtime.state import Phase
from policyc.runtime.stepping_state import MAX_STEPS
from policyc.runtime.steps import Leave
from tests.support.scripted_kernel import IMAGE_BASE, SILENCE, SLIDE, Result, gpa_of
from tests.support.stepping_talk import MODULE_GVA, Stuck, facts, guarded, moves

LOG_OBJECT = "object: log write to kernel:guarded_object"
DENY_OBJECT = "object: deny write to kernel:guarded_object"
LOG_RODATA = "rodata: log write to kernel .rodata"
LOG_DATA = "data: log write to kernel .data"
DENY_DATA = "data: deny write to kernel .data"

GUARDED = IMAGE_BASE + 0x6104
COLLATERAL = IMAGE_BASE + 0x6800
SEAM = IMAGE_BASE + 0x6000  # between .rodata and .data

STUCK = [Action.CONTINUE, Action.CONTINUE]


def absolute(code: str, link_address: int) -> str:
    """An instruction whose operand's address follows as 32 bits."""
    return code + ((link_address + SLIDE) & 0xFFFF_FFFF).to_bytes(4, "little").hex()


def exchange(link_address: int) -> str:
    return absolute("f0480fc70c25", link_address)  # lock cmpxchg16b


def vector(link_address: int) -> str:
    return absolute("c5fe7f0425", link_address)  # vmovdqu, 32 bytes


def state_save(link_address: int) -> str:
    return absolute("0fae2425", link_address)  # xsave, of a size that nobody says


def override(stuck: Stuck, kind: type[Command], result: Result) -> None:
    """Answer every command of a kind like this from now on."""
    stuck.talk.peer.override = lambda command: result if isinstance(command, kind) else None


# --- the step itself ---


def test_step__every_other_vcpu_stands_still_while_the_page_is_open(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(GUARDED), LOG_OBJECT)
    assert stuck.faults(GUARDED) == [*STUCK, Action.RETRY]
    assert stuck.rights(GUARDED) == Access.R | Access.W | Access.X
    assert stuck.standing == {1}
    assert moves(stuck) == [
        *("TranslateGva", "ReadPhysical", "TranslateGva", "ReadPhysical", "TranslateGva", "ReadPhysical"),
        *("GetInfo", "TranslateGva", "PauseVcpu"),
        *("TranslateGva", "ReadPhysical", "TranslateGva"),
        *("pages 6000:rwx", "ControlEvents on", "ControlSinglestep on"),
    ]
    stuck.talk.peer.commands.clear()
    assert stuck.stepped().action is Action.CONTINUE
    assert moves(stuck) == ["pages 6000:r-x", "ControlSinglestep off"]
    assert stuck.rights(GUARDED) == Access.R | Access.X
    assert stuck.standing == set()
    assert facts(stuck) == [
        "let through",
        "let through",
        "ARMED info: stepping an instruction of vCPU 0: it was executed",
        "performed by a single step",
    ]
    assert stuck.phase() is Phase.ARMED


def test_step__a_neighbour_on_a_page_with_denied_bytes(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    assert stuck.faults(COLLATERAL) == [*STUCK, Action.RETRY]
    stuck.stepped()
    assert stuck.rights(GUARDED) == Access.R | Access.X
    assert stuck.standing == set()
    assert facts(stuck) == ["ARMED info: stepping an instruction of vCPU 0: it was executed"]
    (record,) = stuck.talk.records
    assert record.to_json(stuck.talk.plan) == {
        "kind": "state",
        "state": "ARMED",
        "severity": "info",
        "fact": "stepping an instruction of vCPU 0: it was executed",
        "pages": [hex(gpa_of(SEAM))],
        "rules": ["object"],
        "vcpu": 0,
        "rip": hex(MODULE_GVA),
        "gpa": hex(gpa_of(COLLATERAL)),
        "instruction": "lock cmpxchg16b xmmword ptr [0xffffffff85206800]",
    }


def test_step__an_operand_on_two_pages_opens_both(dialect: Dialect) -> None:
    stuck = guarded(dialect, vector(SEAM - 16), LOG_RODATA, LOG_DATA)
    assert stuck.faults(SEAM - 16) == [*STUCK, Action.RETRY]
    assert "pages 5000:rwx" in moves(stuck)
    assert "pages 6000:rwx" in moves(stuck)
    stuck.stepped()
    assert (stuck.rights(SEAM - 1), stuck.rights(SEAM)) == (Access.R | Access.X, Access.R | Access.X)


def test_step__a_denied_byte_of_the_operand_is_faulted_before_anything_is_opened(dialect: Dialect) -> None:
    stuck = guarded(dialect, vector(SEAM - 16), LOG_RODATA, DENY_DATA)
    assert stuck.faults(SEAM - 16) == [*STUCK, Action.RETRY]
    assert not [command for command in stuck.talk.peer.commands if isinstance(command, SetPageAccess)]
    assert [c for c in stuck.talk.peer.commands if isinstance(c, InjectException)] == [InjectException(0, 13)]
    assert stuck.standing == set()
    assert facts(stuck)[-1] == "injected exception 13: the instruction can't be let through"


@pytest.mark.parametrize("policy", [DENY_OBJECT, DENY_DATA])
def test_step__an_operand_of_unknown_size_is_faulted_where_its_page_has_denied_bytes(
    dialect: Dialect, policy: str
) -> None:
    place = COLLATERAL if policy is DENY_OBJECT else SEAM - 0x400
    stuck = guarded(dialect, state_save(place), policy, LOG_RODATA)
    stuck.faults(place)
    if policy is DENY_OBJECT:
        assert [type(command) for command in stuck.talk.peer.commands][-1] is InjectException
        assert stuck.rights(GUARDED) == Access.R | Access.X
        return
    # It comes to the denied page with an event of its own, standing on the page before, which is open.
    assert stuck.rights(place) == Access.R | Access.W | Access.X
    stuck.fault(SEAM)
    assert stuck.talk.peer.answers[-1].action is Action.RETRY
    assert [c for c in stuck.talk.peer.commands if isinstance(c, InjectException)] == [InjectException(0, 13)]
    assert (stuck.rights(place), stuck.rights(SEAM)) == (Access.R | Access.X, Access.R | Access.X)
    assert stuck.standing == set()


def test_step__an_operand_of_unknown_size_opens_page_after_page(dialect: Dialect) -> None:
    stuck = guarded(dialect, state_save(SEAM - 0x400), LOG_RODATA, LOG_DATA)
    stuck.faults(SEAM - 0x400)
    stuck.fault(SEAM)
    assert (stuck.rights(SEAM - 1), stuck.rights(SEAM)) == (Access.R | Access.W | Access.X,) * 2
    assert stuck.stepped(length=8).action is Action.CONTINUE
    assert (stuck.rights(SEAM - 1), stuck.rights(SEAM)) == (Access.R | Access.X,) * 2
    assert stuck.standing == set()


def test_step__monitor_lets_denied_operands_through(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(GUARDED), DENY_OBJECT)
    stuck.talk.state.monitor = True
    assert stuck.faults(GUARDED) == [*STUCK, Action.RETRY]
    stuck.stepped()
    assert stuck.rights(GUARDED) == Access.R | Access.X
    assert facts(stuck)[-1] == "performed by a single step"


def test_loop__of_an_instruction_that_kvm_performs_is_left_alone(dialect: Dialect) -> None:
    stuck = guarded(dialect, absolute("48890425", COLLATERAL), DENY_OBJECT)  # mov [...], rax
    assert set(stuck.faults(COLLATERAL, 900)) == {Action.CONTINUE}
    assert not [command for command in stuck.talk.peer.commands if isinstance(command, GetInfo)]
    assert stuck.talk.records == []


def test_loop__that_goes_on_for_ever_is_stepped_to_be_sure(dialect: Dialect) -> None:
    stuck = guarded(dialect, absolute("48890425", COLLATERAL), DENY_OBJECT)
    answers = stuck.faults(COLLATERAL, LOOP_EVENTS + 2)
    assert answers[:-1] == [Action.CONTINUE] * (LOOP_EVENTS + 1)
    assert answers[-1] is Action.RETRY
    stuck.stepped(length=8)
    assert facts(stuck) == ["ARMED info: stepping an instruction of vCPU 0: it was executed"]


def test_progress__between_events_is_no_repetition(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    for count in range(50):
        stuck.fault(COLLATERAL, rip=MODULE_GVA + count % 2)
    assert {answer.action for answer in stuck.talk.peer.answers} == {Action.CONTINUE}


# --- the others ---


def test_others__one_at_an_event_stands_already_and_its_answer_waits_for_the_end(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(GUARDED), LOG_OBJECT)
    stuck.talk.peer.silent_pauses = {1}
    assert stuck.faults(GUARDED) == STUCK
    stuck.send(EventKind.HYPERCALL, rip=0x1000, vcpu=1)
    assert stuck.rights(GUARDED) == Access.R | Access.W | Access.X
    assert stuck.standing == {1}
    stuck.stepped()
    assert stuck.standing == set()
    assert stuck.rights(GUARDED) == Access.R | Access.X
    # The PAUSE event that it was asked for comes now.
    stuck.send(EventKind.PAUSE, rip=0x1003, vcpu=1)
    assert stuck.standing == set()


def test_others__one_that_is_denied_for_ever_keeps_nobody_from_being_stepped(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.talk.peer.silent_traps = True
    stuck.talk.peer.silent_pauses = {1}
    denied = PfData(Gva(GUARDED + SLIDE), gpa_of(GUARDED), PageAccess.W)
    for _ in range(PATIENCE + 1):
        stuck.talk.peer.kernel.send_event(EventKind.PF, 1, stuck.talk.peer.vcpu_state(MODULE_GVA, 0x1234), denied)
        stuck.talk.talk()
        stuck.talk.peer.injections.clear()
    assert stuck.standing == {1}  # The answer waits for a while, longer than a step may take.
    stuck.talk.peer.answers.clear()
    assert stuck.faults(COLLATERAL) == [*STUCK, Action.RETRY]
    assert not [command for command in stuck.talk.peer.commands if isinstance(command, PauseVcpu)]
    stuck.stepped()
    assert stuck.rights(GUARDED) == Access.R | Access.X
    assert stuck.standing == {1}
    stuck.talk.pass_time(PAUSE)
    assert stuck.standing == set()


def test_others__one_that_stands_still_too_late_ends_the_attempt(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.talk.peer.silent_pauses = {1}
    assert stuck.faults(COLLATERAL) == STUCK
    stuck.talk.pass_time(STOP_LIMIT)
    assert [answer.action for answer in stuck.talk.peer.answers] == [*STUCK, Action.CONTINUE]
    assert not [command for command in stuck.talk.peer.commands if isinstance(command, SetPageAccess)]
    stuck.talk.peer.commands.clear()
    stuck.send(EventKind.PAUSE, rip=0x1003, vcpu=1)
    assert stuck.standing == set()
    assert stuck.talk.peer.commands == []
    # The next attempt has everybody in time.
    stuck.talk.peer.silent_pauses = set()
    assert stuck.faults(COLLATERAL, 1) == [Action.RETRY]
    stuck.stepped()
    assert stuck.standing == set()


def test_others__one_late_and_nothing_denied_opens_the_page(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(GUARDED), LOG_OBJECT)
    stuck.talk.peer.silent_pauses = {1}
    stuck.faults(GUARDED)
    stuck.talk.pass_time(STOP_LIMIT)
    assert stuck.talk.peer.answers[-1].action is Action.RETRY
    assert stuck.phase() is Phase.DEGRADED
    assert stuck.rights(GUARDED) == Access.R | Access.W | Access.X


def test_others__one_that_has_not_started_is_not_waited_for(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(GUARDED), LOG_OBJECT)
    stuck.talk.peer.override = lambda command: (
        ErrorCode.EAGAIN if getattr(command, "vcpu", 0) == 1 and not isinstance(command, PauseVcpu) else None
    )
    assert stuck.faults(GUARDED) == [*STUCK, Action.RETRY]
    assert not [command for command in stuck.talk.peer.commands if isinstance(command, PauseVcpu)]
    # It starts in the middle of the step, and waits until the pages are closed.
    stuck.send(EventKind.PAUSE, rip=0xFFF0, vcpu=1)
    assert stuck.standing == {1}
    stuck.talk.peer.override = lambda command: None
    stuck.stepped()
    assert stuck.standing == set()
    assert stuck.rights(GUARDED) == Access.R | Access.X


def test_others__two_stuck_at_once_take_turns(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(GUARDED), LOG_OBJECT)
    stuck.talk.peer.silent_pauses = {1}
    fault = PfData(Gva(GUARDED + SLIDE), gpa_of(GUARDED), PageAccess.W)
    stuck.faults(GUARDED, 2)
    for _ in range(2):
        stuck.send(EventKind.PF, fault, rip=MODULE_GVA, vcpu=1)
    assert stuck.standing == set()
    stuck.fault(GUARDED)
    stuck.send(EventKind.PF, fault, rip=MODULE_GVA, vcpu=1)
    assert stuck.standing == {1}
    stuck.stepped()
    assert stuck.standing == set()
    stuck.send(EventKind.PAUSE, rip=MODULE_GVA, vcpu=1)
    stuck.send(EventKind.PF, fault, rip=MODULE_GVA, vcpu=1)
    assert stuck.standing == {0}
    stuck.send(EventKind.SINGLESTEP, SinglestepData(False), rip=MODULE_GVA + 9, vcpu=1)
    assert stuck.standing == set()
    assert facts(stuck).count("performed by a single step") == 2


# --- what goes wrong ---


@pytest.mark.parametrize("kind", [SetPageAccess, PauseVcpu])
def test_failure__a_kernel_that_refuses_leaves_everything_as_it_was(dialect: Dialect, kind: type[Command]) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    override(stuck, kind, ErrorCode.EBUSY)
    stuck.faults(COLLATERAL, 4)
    stuck.talk.peer.override = lambda command: None
    stuck.talk.pass_time(5)
    assert stuck.rights(GUARDED) == Access.R | Access.X
    assert stuck.standing == set()
    assert not stuck.talk.state.stepping.busy
    assert {answer.action for answer in stuck.talk.peer.answers} == {Action.CONTINUE}


def test_failure__a_step_that_fails_three_times_ends_in_a_fault(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.faults(COLLATERAL)
    for _ in range(2):
        assert stuck.stepped(failed=True).action is Action.CONTINUE
        assert stuck.rights(GUARDED) == Access.R | Access.X
        assert stuck.faults(COLLATERAL, 1) == [Action.RETRY]
        assert stuck.rights(GUARDED) == Access.R | Access.W | Access.X
    stuck.stepped(failed=True)
    assert stuck.faults(COLLATERAL, 1) == [Action.RETRY]
    assert [c for c in stuck.talk.peer.commands if isinstance(c, InjectException)] == [InjectException(0, 13)]
    assert stuck.rights(GUARDED) == Access.R | Access.X
    assert stuck.standing == set()


def test_failure__no_event_in_time_puts_everything_back(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.faults(COLLATERAL)
    assert stuck.standing == {1}
    stuck.talk.peer.commands.clear()
    stuck.talk.pass_time(STOP_LIMIT)
    assert moves(stuck) == ["pages 6000:r-x", "ControlSinglestep off"]
    assert stuck.standing == set()
    # The event that was waited for comes late: answered, and worth no record.
    stuck.talk.records.clear()
    assert stuck.stepped().action is Action.CONTINUE
    assert stuck.talk.records == []


def test_failure__an_instruction_that_never_comes_to_its_end_is_faulted_at_last(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.faults(COLLATERAL, 2)
    for _ in range(MAX_FAILURES):
        assert stuck.faults(COLLATERAL, 1) == [Action.RETRY]
        stuck.talk.pass_time(1)
    assert not [c for c in stuck.talk.peer.commands if isinstance(c, InjectException)]
    assert stuck.faults(COLLATERAL, 1) == [Action.RETRY]
    assert [c for c in stuck.talk.peer.commands if isinstance(c, InjectException)] == [InjectException(0, 13)]
    assert stuck.rights(GUARDED) == Access.R | Access.X
    assert stuck.standing == set()


def test_failure__another_event_of_its_vcpu_is_judged_when_all_is_put_back(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.faults(COLLATERAL)
    stuck.fault(GUARDED, rip=MODULE_GVA + 0x40)
    assert stuck.rights(GUARDED) == Access.R | Access.X
    assert stuck.standing == set()
    assert facts(stuck) == [
        "ARMED high: stepping an instruction of vCPU 0: its vCPU did something else first",
        "injected exception 13",
    ]


def test_failure__a_page_that_cannot_be_closed_is_closed_later(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.faults(COLLATERAL)
    override(stuck, SetPageAccess, ErrorCode.ENOMEM)
    stuck.stepped()
    assert stuck.standing == set()
    assert stuck.phase() is Phase.DEGRADED
    stuck.talk.pass_time(3)
    assert stuck.phase() is Phase.DEGRADED
    stuck.talk.peer.override = lambda command: None
    stuck.talk.pass_time(2)
    assert stuck.phase() is Phase.ARMED
    assert stuck.rights(GUARDED) == Access.R | Access.X
    assert facts(stuck)[0] == "DEGRADED critical: pages that were opened for one instruction couldn't be closed"
    name = f"page {gpa_of(SEAM):#x}"
    assert facts(stuck)[-1] == f"ARMED high: {name} is guarded again, and whether bytes were changed on it isn't known"


def test_failure__a_kernel_that_falls_silent_is_survived(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.faults(COLLATERAL, 2)
    stuck.talk.peer.override = lambda command: SILENCE
    stuck.fault(COLLATERAL)
    stuck.talk.pass_time(20)
    assert stuck.standing == set()
    assert stuck.talk.peer.answers[-1].action is Action.RETRY


# --- how much of it ---


def test_rate__a_guest_cannot_have_itself_stopped_all_the_time(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    for _ in range(MAX_STEPS):
        assert stuck.faults(COLLATERAL) == [*STUCK, Action.RETRY]
        stuck.stepped()
    # Too many in a second: it comes again until there is room, and its page stays closed.
    assert stuck.faults(COLLATERAL, 20) == [Action.CONTINUE] * 20
    assert stuck.rights(GUARDED) == Access.R | Access.X
    stuck.talk.pass_time(1)
    assert stuck.faults(COLLATERAL, 1) == [Action.RETRY]
    stuck.stepped()
    assert stuck.phase() is Phase.ARMED


def test_rate__counts_the_time_that_the_guest_stands_still(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    steps = 0
    while stuck.faults(COLLATERAL)[-1] is Action.RETRY and steps < MAX_STEPS:
        steps += 1
        stuck.talk.now += STOP_LIMIT * 0.9
        stuck.stepped()
    assert steps == 6


# --- without single-step ---


def test_no_step__a_logged_page_is_opened_and_closed_again(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(GUARDED), LOG_OBJECT, singlestep=False)
    assert stuck.faults(GUARDED) == [*STUCK, Action.RETRY]
    assert stuck.rights(GUARDED) == Access.R | Access.W | Access.X
    assert stuck.phase() is Phase.DEGRADED
    stuck.talk.pass_time(OPEN_SECONDS)
    assert stuck.rights(GUARDED) == Access.R | Access.X
    assert stuck.phase() is Phase.ARMED
    page = f"page {gpa_of(SEAM):#x}"
    assert facts(stuck) == [
        "let through",
        "let through",
        f"DEGRADED critical: {page} is open for 30 seconds: KVM can't perform `lock cmpxchg16b xmmword ptr "
        "[0xffffffff85206104]`, and this host has no single-step",
        "opened the page",
        f"ARMED info: {page} is guarded again",
    ]
    # Should it happen again, the page is opened again.
    assert stuck.faults(GUARDED) == [*STUCK, Action.RETRY]
    assert stuck.phase() is Phase.DEGRADED


def test_no_step__what_was_written_meanwhile_on_denied_bytes_is_found(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT, singlestep=False)
    assert stuck.faults(COLLATERAL) == [*STUCK, Action.RETRY]
    stuck.talk.peer.memory.write(gpa_of(COLLATERAL), b"free for all")
    stuck.talk.pass_time(OPEN_SECONDS)
    assert facts(stuck)[-1] == f"ARMED info: page {gpa_of(SEAM):#x} is guarded again"
    stuck.faults(COLLATERAL)
    stuck.talk.peer.memory.write(gpa_of(GUARDED) + 4, b"rooted")
    stuck.talk.pass_time(OPEN_SECONDS)
    assert facts(stuck)[-1] == (
        f"ARMED critical: page {gpa_of(SEAM):#x} is guarded again, and bytes were changed on it that rules deny to "
        f"change: [{gpa_of(GUARDED):#x}, {gpa_of(GUARDED) + 16:#x})"
    )


def test_no_step__a_denied_operand_is_faulted(dialect: Dialect) -> None:
    stuck = guarded(dialect, vector(SEAM - 16), LOG_RODATA, DENY_DATA, singlestep=False)
    assert stuck.faults(SEAM - 16) == [*STUCK, Action.RETRY]
    assert [c for c in stuck.talk.peer.commands if isinstance(c, InjectException)] == [InjectException(0, 13)]
    assert stuck.phase() is Phase.ARMED


@pytest.mark.parametrize("kind", [ControlEvents, ControlSinglestep])
@pytest.mark.parametrize("errno", [ErrorCode.EPERM, ErrorCode.EBUSY, ErrorCode.EAGAIN, ErrorCode.EINVAL])
def test_failure__a_refusal_to_step_is_no_reason_to_open_a_page_with_denied_bytes(
    dialect: Dialect, kind: type[Command], errno: ErrorCode
) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    override(stuck, kind, errno)
    assert stuck.faults(COLLATERAL) == [*STUCK, Action.CONTINUE]
    assert stuck.rights(COLLATERAL) == Access.R | Access.X
    assert (stuck.standing, stuck.phase()) == (set(), Phase.ARMED)
    assert facts(stuck) == ["ARMED high: stepping an instruction of vCPU 0: the kernel refused to step it"]
    # It is tried again: the refusal may have been about that moment.
    stuck.talk.peer.override = lambda command: None
    assert stuck.faults(COLLATERAL, 1) == [Action.RETRY]
    stuck.stepped()
    assert stuck.rights(COLLATERAL) == Access.R | Access.X
    assert stuck.standing == set()


def test_no_step__a_host_that_says_so_only_when_asked(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(GUARDED), LOG_OBJECT)
    override(stuck, ControlSinglestep, ErrorCode.EOPNOTSUPP)
    assert stuck.faults(GUARDED) == [*STUCK, Action.RETRY]
    assert stuck.standing == set()
    assert stuck.phase() is Phase.DEGRADED
    pages = [entry for c in stuck.talk.peer.commands if isinstance(c, SetPageAccess) for entry in page_entries(c)]
    frame = gpa_of(SEAM)
    assert pages == [(frame, PageAccess.RWX), (frame, PageAccess.RX), (frame, PageAccess.RWX)]
    stuck.talk.peer.commands.clear()
    assert stuck.faults(GUARDED + 0x40) == [*STUCK, Action.RETRY]
    assert not [command for command in stuck.talk.peer.commands if isinstance(command, ControlSinglestep)]


def test_no_step__an_open_page_makes_no_code_on_it_trusted(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(GUARDED), LOG_OBJECT, "deny write to kernel .data", singlestep=False)
    stuck.talk.state.monitor = True
    stuck.faults(GUARDED)
    assert gfn_of(gpa_of(GUARDED)) in stuck.talk.state.bound.code_cache.exposed
    stuck.talk.pass_time(OPEN_SECONDS)
    assert stuck.talk.state.bound.code_cache.exposed == set()


# --- the end ---


def test_leaving__in_the_middle_of_a_step_lifts_everything(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.faults(COLLATERAL)
    stuck.talk.feed(Leave("asked to leave"))
    stuck.stepped()
    stuck.talk.pass_time(STOP_LIMIT)
    assert stuck.talk.peer.rights == {}
    assert stuck.standing == set()
    assert stuck.talk.disconnected == "the guest has been let go"


def test_leaving__with_a_page_open_lifts_everything(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(GUARDED), LOG_OBJECT, singlestep=False)
    stuck.faults(GUARDED)
    stuck.talk.feed(Leave("asked to leave"))
    assert stuck.talk.peer.rights == {}
    assert stuck.talk.disconnected == "the guest has been let go"


def test_hang_up__in_the_middle_of_a_step_leaves_nothing_behind(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.faults(COLLATERAL)
    stuck.talk.hang_up()
    assert stuck.phase() is Phase.LOST
    assert not stuck.talk.state.stepping.busy
    assert stuck.talk.state.deadline is None

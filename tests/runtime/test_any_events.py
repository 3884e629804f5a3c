"""Whatever vCPUs send and however the kernel takes it: each event is answered once, and nothing is kept for ever."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.addresses import Gva
from policyc.catalog import TARGETS
from policyc.kvmi import (
    DIALECTS,
    DONE,
    Command,
    CrData,
    ErrorCode,
    EventData,
    EventKind,
    InjectException,
    PageAccess,
    PfData,
    ReplyData,
    SetRegisters,
    TrapData,
    XsetbvData,
)
from policyc.runtime.state import Phase
from tests.support.audit_schema import check_records
from tests.support.scripted_kernel import (
    IMAGE_BASE,
    SILENCE,
    SLIDE,
    Conversation,
    ScriptedKernel,
    compile_plan,
    gpa_of,
)

POLICY = """
text: retry 2 then deny write to kernel .text
table: inject ud write to kernel:sys_call_table
object: crash write to kernel:guarded_object
on cr4 crash
on hypercall 34/24 inject gp
on xsetbv crash
"""


def page_fault(at: int) -> tuple[EventKind, EventData]:
    return EventKind.PF, PfData(Gva(at + SLIDE), gpa_of(at), PageAccess.W)


EVENTS: tuple[tuple[EventKind, EventData | None], ...] = (
    page_fault(IMAGE_BASE + 0x1005),
    page_fault(IMAGE_BASE + 0x4248),
    page_fault(IMAGE_BASE + 0x6104),
    page_fault(IMAGE_BASE + 0x6900),
    (EventKind.CR, CrData(4, 0x30, 0x20)),
    (EventKind.HYPERCALL, None),
    (EventKind.XSETBV, XsetbvData(0, 1, 3)),
    (EventKind.PAUSE, None),
    (EventKind.TRAP, TrapData(14, 0, 0)),
)
ANSWERS: tuple[ReplyData | ErrorCode | None, ...] = (None, ErrorCode.EBUSY, ErrorCode.EPERM, DONE, SILENCE)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(EVENTS),
        st.integers(0, 1),
        st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=3),
        st.sampled_from([(), (0xEC,), (14, 13), (2, 3, 4)]),
        st.sampled_from([0.0, 0.0, 0.5, 6.0]),
    ),
    max_size=12,
)


def in_turn(answers: list[ReplyData | ErrorCode | None]) -> Callable[[Command], ReplyData | ErrorCode | None]:
    """What becomes of one INJECT_EXCEPTION or SET_REGISTERS after the other; the last answer stays."""
    left = list(answers)

    def answer(command: Command) -> ReplyData | ErrorCode | None:
        if isinstance(command, (InjectException, SetRegisters)):
            return left.pop(0) if len(left) > 1 else left[0]
        return None

    return answer


@settings(deadline=None)
@given(STEPS, st.sampled_from(TARGETS))
def test_events__are_answered_once_and_leave_nothing_behind(
    steps: list[
        tuple[tuple[EventKind, EventData | None], int, list[ReplyData | ErrorCode | None], tuple[int, ...], float]
    ],
    dialect: str,
) -> None:
    peer = ScriptedKernel(DIALECTS[dialect], vcpus=2)
    talk = Conversation(compile_plan(POLICY), peer)
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    for (kind, data), vcpu, answers, overtaking, seconds in steps:
        peer.override = in_turn(answers)
        peer.overtaking = list(overtaking)
        if vcpu not in peer.kernel.waiting:
            carried = data if peer.dialect.events[kind].data_type is not None else None
            # Two answers to one event, or one to none, end the conversation here.
            peer.kernel.send_event(kind, vcpu, peer.vcpu_state(0xFFFFFFFFC0401000, 0), carried)
            talk.talk()
        talk.pass_time(seconds)
        assert set(talk.state.scheduler.awaiting) <= {0, 1}
    peer.override = lambda command: None
    talk.pass_time(30)
    assert peer.kernel.waiting == {}
    assert talk.state.scheduler.awaiting == {}
    check_records(record.to_json(talk.plan) for record in talk.records)
    talk.hang_up()
    assert talk.state.scheduler.deadline is None

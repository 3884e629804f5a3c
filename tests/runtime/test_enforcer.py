"""The enforcer as a transcript: what the kernel says in, what the tool does out, in both dialects."""

from __future__ import annotations

import pytest

from policyc.addresses import Gpa, Gva, gfn_of
from policyc.guest.paging import AddressSpace
from policyc.kvmi import (
    V7,
    V12,
    Action,
    Command,
    ControlEvents,
    ControlVmEvents,
    CrData,
    Dialect,
    ErrorCode,
    EventKind,
    GetInfo,
    GetRegisters,
    InjectException,
    NewValue,
    PageAccess,
    PauseVcpu,
    PfData,
    ReadPhysical,
    ReadPhysicalReply,
    ReplyData,
    SetPageAccess,
    SetRegisters,
    TranslateGva,
)
from policyc.runtime.records import VerdictRecord
from policyc.runtime.state import Phase
from policyc.runtime.steps import Inquire, Leave, Told
from tests.support.audit_schema import check_records
from tests.support.scripted_kernel import (
    IMAGE_BASE,
    SILENCE,
    SLIDE,
    SYSTEM_MAP,
    Conversation,
    EventAnswer,
    ScriptedKernel,
    compile_plan,
    gpa_of,
)

TEXT = "text: deny write to kernel .text"
PATCHED = TEXT + ' except from kernel:__text_poke because "the kernel patches itself"'
CALLS = "call: on hypercall 34/24 log"
OBJECT = "object: deny write to kernel:guarded_object"

SCHEDULE = IMAGE_BASE + 0x1000
MEMCPY = IMAGE_BASE + 0x1300
TEXT_POKE = IMAGE_BASE + 0x1240
DATA = IMAGE_BASE + 0x6000
GUARDED = IMAGE_BASE + 0x6104
NEIGHBOUR = IMAGE_BASE + 0x6114
MODULE_GVA = 0xFFFFFFFFC0401000

STORE = bytes.fromhex("488903")  # mov [rbx], rax
EXCHANGE = bytes.fromhex("488703")  # xchg [rbx], rax

SKIPPED = EventAnswer(Action.RETRY, None)
LET_PASS = EventAnswer(Action.CONTINUE, None)


def armed(dialect: Dialect, *texts: str) -> Conversation:
    """A conversation with a guest that is armed, with a module's page of code mapped."""
    talk = Conversation(compile_plan("\n".join(texts)), ScriptedKernel(dialect))
    page = talk.peer.memory.new_page()
    talk.peer.memory.map(talk.peer.root, MODULE_GVA, page)
    talk.peer.memory.write(page, STORE)
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    talk.peer.log.clear()
    talk.records.clear()
    talk.peer.commands.clear()
    return talk


def write_to(talk: Conversation, link_address: int, *, rip: int = MODULE_GVA, rsp: int = 0) -> EventAnswer:
    """A write fault on a byte of the image."""
    data = PfData(Gva(link_address + SLIDE), gpa_of(link_address), PageAccess.W)
    return talk.event(EventKind.PF, data, rip=rip, rsp=rsp)


def done(talk: Conversation) -> list[str]:
    """What the verdict records say was done; all records keep to the schema."""
    check_records(record.to_json(talk.plan) for record in talk.records)
    return [record.done for record in talk.records if isinstance(record, VerdictRecord)]


# --- arming ---


def test_arming__asks_in_the_order_that_leaves_no_gap(dialect: Dialect) -> None:
    talk = Conversation(compile_plan(TEXT, 'policy "calls" ' + CALLS), ScriptedKernel(dialect))
    talk.connect()
    assert talk.peer.log == [
        "GetVersion",
        "ControlVmEvents",
        "GetRegisters",
        "ReadPhysical",
        *(["ControlVmEvents"] if EventKind.CREATE_VCPU in dialect.events else []),
        "GetInfo",
        "GetRegisters",
        "ReadPhysical",
        "PauseVcpu",
        "GetRegisters",
        "ReadPhysical",
        "ControlEvents",
        "SetPageAccess",
    ]
    first = next(command for command in talk.peer.commands if isinstance(command, ControlVmEvents))
    assert first == ControlVmEvents(EventKind.UNHOOK, enable=True)
    assert [c.event for c in talk.peer.commands if isinstance(c, ControlEvents)] == [EventKind.HYPERCALL, EventKind.PF]
    assert talk.peer.rights == {gfn_of(Gpa(gpa_of(IMAGE_BASE) + page)): 5 for page in (0, 0x1000, 0x2000)}
    assert talk.phases() == ["NEGOTIATING", "BINDING", "ARMED"]
    assert talk.peer.kernel.waiting == {}


def refusing(kind: type[Command], errno: ErrorCode) -> Conversation:
    talk = Conversation(
        compile_plan(TEXT), ScriptedKernel(V7, override=lambda command: errno if isinstance(command, kind) else None)
    )
    talk.connect()
    return talk


def test_arming__a_kernel_that_refuses_rights_is_left_as_it_was() -> None:
    talk = refusing(SetPageAccess, ErrorCode.EINVAL)
    assert talk.state.phase is Phase.REFUSED
    assert talk.peer.rights == {}
    assert [c for c in talk.peer.commands if isinstance(c, ControlEvents)] == [
        ControlEvents(0, EventKind.PF, enable=True),
        ControlEvents(0, EventKind.PF, enable=False),
    ]
    assert talk.peer.kernel.waiting == {}
    assert talk.disconnected == "the kernel refuses what the plan needs"


def test_arming__rights_that_were_taken_before_a_refusal_are_lifted() -> None:
    plan = compile_plan("deny write to physical 0x0..0x400000")
    sent = 0

    def second_refused(command: Command) -> ErrorCode | None:
        nonlocal sent
        if isinstance(command, SetPageAccess):
            sent += 1
            return ErrorCode.ENOMEM if sent == 2 else None
        return None

    talk = Conversation(plan, ScriptedKernel(V12, override=second_refused))
    talk.connect()
    assert talk.state.phase is Phase.REFUSED
    assert sent == 6
    assert talk.peer.rights == {}


@pytest.mark.parametrize("kind", [ControlEvents, GetInfo, PauseVcpu])
def test_arming__any_refusal_ends_in_refused(kind: type[Command]) -> None:
    talk = refusing(kind, ErrorCode.EINVAL)
    talk.pass_time(10)
    assert talk.state.phase is Phase.REFUSED
    assert talk.peer.rights == {}
    assert talk.peer.kernel.waiting == {}


def test_arming__permissions_may_come_late() -> None:
    asked = 0

    def denied_at_first(command: Command) -> ErrorCode | None:
        nonlocal asked
        if isinstance(command, ControlVmEvents) and command.event is EventKind.UNHOOK:
            asked += 1
            return ErrorCode.EPERM if asked < 3 else None
        return None

    talk = Conversation(compile_plan(TEXT), ScriptedKernel(V7, override=denied_at_first))
    talk.connect()
    assert talk.phases() == ["NEGOTIATING", "BINDING"]
    talk.pass_time(1)
    assert talk.phases() == ["NEGOTIATING", "BINDING", "ARMED"]


def test_arming__permissions_that_never_come_are_named() -> None:
    talk = refusing(ControlVmEvents, ErrorCode.EPERM)
    talk.pass_time(10)
    assert talk.state.outcome is not None
    assert talk.state.outcome.fact == "the VMM doesn't allow what the plan needs"
    assert "ControlVmEvents" in talk.state.outcome.details[0]


def test_arming__a_kernel_that_stops_answering_is_given_up() -> None:
    silent = ScriptedKernel(V7, override=lambda command: SILENCE if isinstance(command, GetRegisters) else None)
    talk = Conversation(compile_plan(TEXT), silent)
    talk.connect()
    assert talk.state.phase is Phase.BINDING
    talk.pass_time(6)
    assert talk.state.outcome is not None
    assert "doesn't answer" in talk.state.outcome.fact


def test_arming__page_tables_that_change_while_read_are_walked_again() -> None:
    talk = Conversation(compile_plan(TEXT), ScriptedKernel(V7))
    moved = talk.peer.memory.new_page()
    changed = False

    def remap_once(command: Command) -> None:
        nonlocal changed
        if isinstance(command, PauseVcpu) and not changed:
            changed = True
            talk.peer.memory.map(talk.peer.root, SCHEDULE + SLIDE, moved)

    talk.peer.override = remap_once
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    assert gfn_of(moved) in talk.peer.rights
    assert gfn_of(gpa_of(SCHEDULE)) not in talk.peer.rights


def test_arming__page_tables_that_never_rest_are_refused() -> None:
    talk = Conversation(compile_plan(TEXT), ScriptedKernel(V7))
    pages = [talk.peer.memory.new_page() for _ in range(200)]

    def remap_always(command: Command) -> None:
        if isinstance(command, ReadPhysical) and pages:
            talk.peer.memory.map(talk.peer.root, SCHEDULE + SLIDE, pages.pop())

    talk.peer.override = remap_always
    talk.connect()
    assert talk.state.outcome is not None
    assert "page tables changed" in talk.state.outcome.fact
    assert talk.peer.rights == {}


def test_arming__a_kernel_whose_entry_points_are_elsewhere_is_refused() -> None:
    other = SYSTEM_MAP.replace(b"ffffffff81000c60 T asm_exc_page_fault", b"ffffffff81000c70 T asm_exc_page_fault")
    talk = Conversation(compile_plan(TEXT, system_map=other), ScriptedKernel(V7))
    talk.connect()
    assert talk.state.outcome is not None
    assert talk.state.outcome.fact == "1 of 3 anchors leads elsewhere, and 2 agree: its entry points were changed"
    assert any("vector 14" in detail for detail in talk.state.outcome.details)


def test_arming__unmapped_bytes_are_refused() -> None:
    talk = Conversation(compile_plan("deny write to virtual 0xffffffffa0000000 size 4K"), ScriptedKernel(V7))
    talk.connect()
    assert talk.state.outcome is not None
    assert "can't be guarded whole" in talk.state.outcome.fact


# --- verdicts ---


def test_deny__a_pure_store_is_stepped_over(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    assert write_to(talk, SCHEDULE + 5) == SKIPPED
    assert [type(c) for c in talk.peer.commands] == [TranslateGva, ReadPhysical, SetRegisters]
    (set_registers,) = [c for c in talk.peer.commands if isinstance(c, SetRegisters)]
    assert set_registers.regs.rip == MODULE_GVA + len(STORE)
    assert done(talk) == ["skipped the instruction"]


def test_deny__an_exchange_gets_a_fault(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    found = talk.peer.memory.translate(_space(talk), MODULE_GVA)
    assert found is not None
    talk.peer.memory.write(found[0], EXCHANGE)
    assert write_to(talk, SCHEDULE + 5) == SKIPPED
    assert [c for c in talk.peer.commands if isinstance(c, InjectException)] == [InjectException(0, 13)]
    assert not any(isinstance(c, SetRegisters) for c in talk.peer.commands)
    assert done(talk) == ["injected exception 13"]


def test_deny__code_that_cannot_be_read_gets_a_fault(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    assert write_to(talk, SCHEDULE, rip=0x1234000) == SKIPPED
    assert done(talk) == ["injected exception 13"]


def test_deny__by_fault_never_decodes(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT + " by fault")
    assert write_to(talk, SCHEDULE) == SKIPPED
    assert [type(c) for c in talk.peer.commands] == [InjectException]


def test_deny__skip_refused_by_the_kernel_becomes_a_fault(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.override = lambda command: ErrorCode.EOPNOTSUPP if isinstance(command, SetRegisters) else None
    assert write_to(talk, SCHEDULE) == SKIPPED
    assert done(talk) == ["injected exception 13"]


def test_deny__a_silent_kernel_is_answered_strictly(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.override = lambda command: SILENCE
    talk.peer.kernel.send_event(
        EventKind.PF,
        0,
        talk.peer.vcpu_state(MODULE_GVA, 0),
        PfData(Gva(SCHEDULE + SLIDE), gpa_of(SCHEDULE), PageAccess.W),
    )
    talk.talk()
    assert talk.peer.answers == []
    talk.pass_time(6)
    assert talk.peer.answers == [EventAnswer(Action.RETRY, None)]


def test_collateral__the_rest_of_a_page_is_let_through_and_counted(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    assert write_to(talk, IMAGE_BASE + 0x2345 + 600) == LET_PASS
    assert talk.peer.commands == []
    assert talk.records == []
    assert talk.state.counters.collateral == 1


def test_near_zone__an_untrusted_store_below_the_object_is_denied(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT, OBJECT)
    assert write_to(talk, GUARDED - 100) == SKIPPED
    assert done(talk) == ["skipped the instruction"]


def test_near_zone__a_trusted_store_counts_by_its_size(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT, OBJECT)
    talk.peer.memory.write(gpa_of(SCHEDULE), STORE)
    rip = SCHEDULE + SLIDE
    assert write_to(talk, GUARDED - 8, rip=rip) == LET_PASS
    assert talk.state.counters.collateral == 1
    assert write_to(talk, GUARDED - 4, rip=rip) == SKIPPED
    assert write_to(talk, NEIGHBOUR, rip=rip) == LET_PASS


def test_exception__the_caller_of_memcpy_counts(dialect: Dialect) -> None:
    talk = armed(dialect, PATCHED)
    stack = talk.peer.memory.new_page()
    talk.peer.memory.map(talk.peer.root, 0xFFFFC90000000000, stack)

    def store_from(caller: int) -> EventAnswer:
        talk.peer.memory.write(stack + 0xF00, (caller + SLIDE).to_bytes(8, "little"))
        return write_to(talk, SCHEDULE + 5, rip=MEMCPY + SLIDE, rsp=0xFFFFC90000000F00)

    assert store_from(TEXT_POKE + 0x10) == LET_PASS
    assert talk.state.counters.exempted == {0: 1}
    assert talk.records == []
    assert store_from(SCHEDULE) == SKIPPED
    assert write_to(talk, SCHEDULE, rip=TEXT_POKE + SLIDE) == LET_PASS


def test_exception__does_not_hold_for_code_behind_an_exchanged_page_table_entry(dialect: Dialect) -> None:
    talk = armed(dialect, PATCHED)
    forged = talk.peer.memory.new_page()
    talk.peer.memory.write(forged + 0x240, STORE)
    talk.peer.memory.map(talk.peer.root, (TEXT_POKE & ~0xFFF) + SLIDE, forged)
    assert write_to(talk, SCHEDULE, rip=TEXT_POKE + SLIDE) == SKIPPED
    assert done(talk) == ["skipped the instruction"]


def test_exception__an_unreadable_stack_makes_nobody_the_caller(dialect: Dialect) -> None:
    talk = armed(dialect, PATCHED)
    assert write_to(talk, SCHEDULE, rip=MEMCPY + SLIDE, rsp=0x10) == SKIPPED


def test_hypercall__is_logged(dialect: Dialect) -> None:
    talk = armed(dialect, CALLS)
    assert talk.event(EventKind.HYPERCALL, rip=MODULE_GVA) == LET_PASS
    (record,) = talk.records
    described = record.to_json(talk.plan)
    assert (described["event"], described["effect"], described["done"]) == ("hypercall", "log", "let through")
    assert described["rules"] == [
        {"policy": "0.policy", "rule": "call", "mode": "enforce", "severity": "medium", "file": "0.policy", "line": 1}
    ]


def test_monitor__a_ceiling_lets_everything_through_and_says_what_would_have_been(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.state.monitor = True
    assert write_to(talk, SCHEDULE) == LET_PASS
    (record,) = talk.records
    described = record.to_json(talk.plan)
    assert (described["effect"], described["would"], described["done"]) == ("allow", "deny", "let through")


def test_register__deny_writes_the_old_value(dialect: Dialect) -> None:
    talk = armed(dialect, "on cr4 deny")
    assert talk.event(EventKind.CR, CrData(4, 0x30, 0x20), rip=MODULE_GVA) == EventAnswer(
        Action.CONTINUE, NewValue(0x30)
    )


def test_register__pin_keeps_the_bits(dialect: Dialect) -> None:
    talk = armed(dialect, "on cr0 pin wp")
    answer = talk.event(EventKind.CR, CrData(0, 0x80050033, 0x80040031), rip=MODULE_GVA)
    assert answer == EventAnswer(Action.CONTINUE, NewValue(0x80050031))


# --- others who ask, and the end ---


def test_inquiry__reads_memory_and_changes_nothing(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.feed(Inquire(7, ReadPhysical(gpa_of(SCHEDULE), 4)))
    talk.feed(Inquire(8, InjectException(0, 13)))
    expected: list[tuple[int, ReplyData | None]] = [(7, ReadPhysicalReply(b"\x90" * 4)), (8, None)]
    assert [(told.number, told.result) for told in talk.told] == expected
    assert all(isinstance(told, Told) for told in talk.told)


def test_leave__lifts_what_is_restricted_before_it_closes(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.feed(Leave("asked to leave"))
    assert talk.peer.rights == {}
    assert talk.disconnected == "the guest has been let go"
    assert talk.phases() == ["UNHOOKING", "UNHOOKING"]


def test_leave__the_vmm_may_ask(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.kernel.send_vm_event(EventKind.UNHOOK)
    talk.talk()
    assert talk.peer.rights == {}
    assert talk.disconnected == "the guest has been let go"


def test_leave__a_kernel_that_does_not_answer_is_left_all_the_same(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.peer.override = lambda command: SILENCE
    talk.feed(Leave("asked to leave"))
    talk.pass_time(20)
    assert talk.disconnected is not None


def test_lost__says_that_protection_is_gone(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    talk.hang_up()
    assert [record.to_json(talk.plan)["severity"] for record in talk.records] == ["critical"]
    assert talk.phases() == ["LOST"]


def test_handshake__a_silent_peer_is_dropped() -> None:
    talk = Conversation(compile_plan(TEXT), ScriptedKernel(V7))
    talk.pass_time(11)
    assert talk.disconnected == "the peer was silent for 10 seconds"


def test_new_vcpu__gets_the_plans_events_before_it_runs() -> None:
    talk = armed(V7, TEXT, CALLS)
    talk.event(EventKind.CREATE_VCPU, rip=0xFFF0)
    assert [c.event for c in talk.peer.commands if isinstance(c, ControlEvents)] == [EventKind.HYPERCALL, EventKind.PF]
    assert talk.peer.answers[-1] == LET_PASS


def test_unstarted_vcpu__gets_its_events_with_its_pause() -> None:
    def second_not_started(command: Command) -> ErrorCode | None:
        started = not isinstance(command, GetRegisters) or command.vcpu == 0
        return None if started else ErrorCode.EAGAIN

    talk = Conversation(compile_plan(TEXT), ScriptedKernel(V7, vcpus=2, override=second_not_started))
    talk.peer.silent_pauses = {1}
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    assert [c.vcpu for c in talk.peer.commands if isinstance(c, ControlEvents)] == [0]
    talk.peer.commands.clear()
    talk.peer.kernel.send_event(EventKind.PAUSE, 1, talk.peer.vcpu_state(0xFFF0, 0), None)
    talk.talk()
    assert [c.vcpu for c in talk.peer.commands if isinstance(c, ControlEvents)] == [1]
    assert talk.peer.kernel.waiting == {}


def test_two_vcpus__both_are_stopped_and_guarded(dialect: Dialect) -> None:
    talk = Conversation(compile_plan(TEXT), ScriptedKernel(dialect, vcpus=2))
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    assert [c.vcpu for c in talk.peer.commands if isinstance(c, PauseVcpu)] == [0, 1]
    assert [c.vcpu for c in talk.peer.commands if isinstance(c, ControlEvents)] == [0, 1]


def _space(talk: Conversation) -> AddressSpace:
    return AddressSpace(talk.peer.root)

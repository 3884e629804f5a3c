"""Guarded addresses that the guest comes to map elsewhere: the rule follows them, and their old frame is released."""

from __future__ import annotations

import pytest

from policyc.addresses import PAGE_SIZE, Gpa, Gva, gfn_of
from policyc.kvmi import (
    V12,
    Action,
    Command,
    Dialect,
    ErrorCode,
    EventKind,
    Features,
    GetVersion,
    GetVersionReply,
    PageAccess,
    PfData,
    ReadPhysical,
    SetPageAccess,
)
from policyc.runtime.moved import LOOK_PAUSE
from policyc.runtime.opened import OPEN_SECONDS
from policyc.runtime.records import StateRecord, VerdictRecord
from policyc.runtime.state import Phase
from policyc.runtime.steps import Leave
from tests.support.scripted_kernel import (
    IMAGE_BASE,
    SILENCE,
    SLIDE,
    Conversation,
    Result,
    ScriptedKernel,
    compile_plan,
    gpa_of,
)

MODULE = 0xFFFFFFFFC0401000
OTHER = MODULE + 0x2000
OUTSIDER = IMAGE_BASE + SLIDE + 0x6000
TEXT = f"module: deny write to virtual {MODULE:#x} size 4K"
SKIPPED = Action.RETRY
LET_PASS = Action.CONTINUE
STORE = bytes.fromhex("488903")  # mov [rbx], rax


class Module:
    """A conversation with a guest whose module lies in a frame of its own."""

    def __init__(self, dialect: Dialect, *texts: str, override: object = None, vcpus: int = 1) -> None:
        kernel = ScriptedKernel(dialect, vcpus=vcpus)
        if callable(override):
            kernel.override = override
        self.talk = Conversation(compile_plan("\n".join(texts)), kernel)
        self.memory = kernel.memory
        self.root = kernel.root
        self.first, self.second, self.other = (self.memory.new_page() for _ in range(3))
        self.memory.map(self.root, OTHER, self.other)
        self.memory.map(self.root, MODULE, self.first)
        self.memory.write(gpa_of(IMAGE_BASE + 0x6000), STORE)
        self.talk.connect()
        assert self.talk.state.phase is Phase.ARMED, self.talk.disconnected

    def write(self, frame: Gpa, offset: int = 0) -> Action | None:
        """Store to a frame, and wait until the next look is due; what the tool answered."""
        data = PfData(Gva(MODULE + offset), Gpa(frame + offset), PageAccess.W)
        answer = self.talk.event(EventKind.PF, data, rip=OUTSIDER)
        return answer.action

    @property
    def guarded(self) -> set[int]:
        return set(self.talk.peer.rights)

    def moves(self) -> list[StateRecord]:
        return [r for r in self.talk.records if isinstance(r, StateRecord) and "mapped guarded" in r.fact]


def test_denial__stands_while_the_address_leads_there(dialect: Dialect) -> None:
    module = Module(dialect, TEXT)
    assert module.write(module.first) is SKIPPED
    assert (module.guarded, module.moves()) == ({gfn_of(module.first)}, [])


def test_denial__is_let_through_where_the_frame_has_another_owner(dialect: Dialect) -> None:
    module = Module(dialect, TEXT)
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first) is LET_PASS
    assert module.guarded == {gfn_of(module.second)}
    assert module.write(module.second) is SKIPPED
    (record,) = module.moves()
    assert record.severity == "critical"
    assert record.details == {
        "released": [hex(gfn_of(module.first))],
        "guarded": [hex(gfn_of(module.second))],
        "unmapped": [],
        "refused": [],
    }
    done = [r.done for r in module.talk.records if isinstance(r, VerdictRecord)]
    assert done == ["skipped the instruction"]


def test_denial__is_let_through_where_the_address_leads_nowhere(dialect: Dialect) -> None:
    module = Module(dialect, TEXT)
    module.memory.map(module.root, MODULE, 0, flags=0)
    assert module.write(module.first) is LET_PASS
    assert module.guarded == set()
    (record,) = module.moves()
    assert record.details["unmapped"] == [f"virtual {MODULE:#x}..{MODULE + 0x1000:#x}"]


def test_look__is_taken_once_a_second(dialect: Dialect) -> None:
    module = Module(dialect, TEXT)
    assert module.write(module.first) is SKIPPED
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first) is SKIPPED
    module.talk.pass_time(LOOK_PAUSE)
    assert module.write(module.first) is LET_PASS


def test_moving_on_and_on__is_followed_once_a_second(dialect: Dialect) -> None:
    module = Module(dialect, TEXT)
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first) is LET_PASS
    module.memory.map(module.root, MODULE, module.first)
    assert module.write(module.second) is SKIPPED
    assert len(module.moves()) == 1
    module.talk.pass_time(LOOK_PAUSE)
    assert module.write(module.second) is LET_PASS
    assert module.guarded == {gfn_of(module.first)}


def test_hole__doesnt_follow_to_new_frames(dialect: Dialect) -> None:
    module = Module(dialect, TEXT, f"allow write to virtual {MODULE + 0x800:#x} size 0x800")
    assert module.write(module.first, 0x800) is LET_PASS
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first, 0x100) is LET_PASS
    assert module.write(module.second, 0x800) is SKIPPED


def test_two_vcpus__are_both_judged_by_where_the_addresses_lead(dialect: Dialect) -> None:
    module = Module(dialect, TEXT, vcpus=2)
    module.memory.map(module.root, MODULE, module.second)
    kernel = module.talk.peer.kernel
    for vcpu in (0, 1):
        # Both events are on their way before either is answered.
        data = PfData(Gva(MODULE), module.first, PageAccess.W)
        kernel.send_event(EventKind.PF, vcpu, module.talk.peer.vcpu_state(OUTSIDER, 0), data)
    module.talk.talk()
    module.talk.pass_time(0.1)
    assert [answer.action for answer in module.talk.peer.answers] == [LET_PASS, LET_PASS]
    assert (module.guarded, len(module.moves())) == ({gfn_of(module.second)}, 1)


@pytest.mark.parametrize("number", range(1, 15))
def test_an_event__at_any_time_of_a_rebinding_is_judged_by_the_new_binding(dialect: Dialect, number: int) -> None:
    left: list[Module] = []
    seen = 0

    def override(command: Command) -> Result:
        nonlocal seen
        seen += bool(left)
        if left and seen == number:
            send(left.pop(), vcpu=1)
        return None

    def send(module: Module, vcpu: int) -> None:
        data = PfData(Gva(MODULE), module.first, PageAccess.W)
        module.talk.peer.kernel.send_event(EventKind.PF, vcpu, module.talk.peer.vcpu_state(OUTSIDER, 0), data)

    module = Module(dialect, TEXT, override=override, vcpus=2)
    module.memory.map(module.root, MODULE, module.second)
    left.append(module)
    send(module, vcpu=0)
    module.talk.talk()
    module.talk.pass_time(0.1)
    if not left:
        assert [answer.action for answer in module.talk.peer.answers] == [LET_PASS, LET_PASS]
    # Nothing is left restricted that isn't guarded.
    assert module.guarded == {gfn_of(module.second)} == set(module.talk.state.bound.rights)
    assert len(module.moves()) == 1


@pytest.mark.parametrize("number", range(1, 9))
def test_tables_that_cannot_be_read__move_nothing(dialect: Dialect, number: int) -> None:
    armed, reads = False, 0

    def override(command: Command) -> Result:
        nonlocal reads
        if not armed or not isinstance(command, ReadPhysical) or command.size != PAGE_SIZE:
            return None
        reads += 1
        return ErrorCode.ENOMEM if reads in (number, number + 1) else None

    module = Module(dialect, TEXT, override=override)
    armed = True
    assert module.write(module.first) is SKIPPED
    module.talk.pass_time(60)
    assert module.write(module.first) is SKIPPED
    assert module.guarded == {gfn_of(module.first)}
    assert module.moves() == []


def test_rights_that_come_late__are_told_and_degrade(dialect: Dialect) -> None:
    sets = 0

    def override(command: Command) -> Result:
        nonlocal sets
        if not armed or not isinstance(command, SetPageAccess):
            return None
        sets += 1
        return ErrorCode.ENOMEM if sets == 1 else SILENCE

    armed = False
    module = Module(dialect, TEXT, override=override)
    armed = True
    module.memory.map(module.root, MODULE, module.second)
    data = PfData(Gva(MODULE), module.first, PageAccess.W)
    module.talk.peer.kernel.send_event(EventKind.PF, 0, module.talk.peer.vcpu_state(OUTSIDER, 0), data)
    module.talk.talk()
    module.talk.pass_time(6)
    assert module.talk.state.phase is Phase.DEGRADED
    (record,) = module.moves()
    refused = record.details["refused"]
    assert isinstance(refused, list)
    assert refused[1:] == ["unanswered"]


def test_frame__that_was_not_released_is_when_an_instruction_is_stuck_there(dialect: Dialect) -> None:
    sets = 0

    def override(command: Command) -> Result:
        nonlocal sets
        sets += armed and isinstance(command, SetPageAccess)
        return ErrorCode.ENOMEM if sets == 2 else None

    armed = False
    module = Module(dialect, TEXT, override=override)
    module.memory.write(gpa_of(IMAGE_BASE + 0x6000), bytes.fromhex("480fc70b"))  # cmpxchg16b [rbx]
    armed = True
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first) is LET_PASS
    assert gfn_of(module.first) in module.guarded
    sets = 10
    for _ in range(10):
        module.write(module.first)
    assert gfn_of(module.first) not in module.guarded
    assert not [record for record in module.talk.records if "is open" in str(getattr(record, "fact", ""))]


def test_guest_that_is_let_go__is_not_restricted_once_more(dialect: Dialect) -> None:
    armed = False

    def override(command: Command) -> Result:
        if armed and isinstance(command, ReadPhysical) and not module.talk.disconnected and not left:
            left.append(1)
            return SILENCE
        return None

    left: list[int] = []
    module = Module(dialect, TEXT, override=override)
    module.memory.map(module.root, MODULE, module.second)
    armed = True
    data = PfData(Gva(MODULE), module.first, PageAccess.W)
    module.talk.peer.kernel.send_event(EventKind.PF, 0, module.talk.peer.vcpu_state(OUTSIDER, 0), data)
    module.talk.talk()
    module.talk.feed(Leave("enough"))
    module.talk.peer.answer_late()
    module.talk.talk()
    module.talk.pass_time(1)
    assert (module.talk.disconnected, module.guarded) == ("the guest has been let go", set())


def test_what_is_being_patched__stays_so_when_the_plan_is_bound_anew(dialect: Dialect) -> None:
    patching = 'text: deny write to kernel .text except from kernel:__text_poke because "the kernel patches itself"'
    module = Module(dialect, TEXT, patching, "object: deny write to kernel:guarded_object")
    talk, code = module.talk, gpa_of(IMAGE_BASE + 0x1000)
    rip, below = IMAGE_BASE + SLIDE + 0x1000, IMAGE_BASE + 0x6100

    def store(gva: int, gpa: Gpa, by: int) -> Action | None:
        return talk.event(EventKind.PF, PfData(Gva(gva), gpa, PageAccess.W), rip=by).action

    module.memory.write(code, bytes.fromhex("8803"))  # mov [rbx], al
    assert store(rip, code, IMAGE_BASE + SLIDE + 0x1240) is LET_PASS
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first) is LET_PASS
    assert len(module.moves()) == 1
    assert store(below + SLIDE, gpa_of(below), rip) is LET_PASS
    # Only now does the host perform the patch that it was allowed: eight bytes reach the object.
    module.memory.write(code, STORE)
    assert store(below + SLIDE, gpa_of(below), rip) is SKIPPED


def test_an_opened_page__that_is_guarded_no_more_is_not_closed() -> None:
    def no_single_step(command: Command) -> Result:
        if isinstance(command, GetVersion):
            return GetVersionReply(max_message_size=8184, features=Features(singlestep=False))
        return None

    rules = [f"{name}: deny write to virtual {at:#x} size 16" for name, at in (("near", MODULE), ("other", OTHER))]
    module = Module(V12, *rules, override=no_single_step)
    talk = module.talk
    exchange = bytes.fromhex("480fc70c25") + (MODULE + 0x800 & 0xFFFF_FFFF).to_bytes(4, "little")  # cmpxchg16b
    module.memory.write(gpa_of(IMAGE_BASE + 0x6000), exchange)
    assert [module.write(module.first, 0x800) for _ in range(3)] == [LET_PASS, LET_PASS, SKIPPED]
    assert (talk.state.phase, module.guarded) == (Phase.DEGRADED, {gfn_of(module.other)})
    elsewhere = module.memory.new_page()
    module.memory.map(module.root, MODULE, module.second)
    module.memory.map(module.root, OTHER, elsewhere)
    assert module.write(module.other) is LET_PASS
    assert talk.state.phase is Phase.ARMED
    talk.pass_time(OPEN_SECONDS + 1)
    assert (talk.state.phase, talk.disconnected) == (Phase.ARMED, None)
    assert module.guarded == {gfn_of(module.second), gfn_of(elsewhere)}


def test_image__stays_where_it_was_bound(dialect: Dialect) -> None:
    module = Module(dialect, TEXT, "text: deny write to kernel .rodata")
    module.memory.map(module.root, IMAGE_BASE + SLIDE + 0x4000, module.second)
    frame = Gpa(gpa_of(IMAGE_BASE + 0x4000))
    assert module.write(frame) is SKIPPED
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first) is LET_PASS
    assert gfn_of(frame) in module.guarded


def test_kernel_that_refuses__degrades_and_guards_what_it_can(dialect: Dialect) -> None:
    refusing = False

    def override(command: Command) -> Result:
        return ErrorCode.ENOMEM if refusing and isinstance(command, SetPageAccess) else None

    module = Module(dialect, TEXT, override=override)
    refusing = True
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first) is LET_PASS
    assert module.talk.state.phase is Phase.DEGRADED
    (record,) = module.moves()
    assert isinstance(record.details["refused"], list)
    assert len(record.details["refused"]) == 2

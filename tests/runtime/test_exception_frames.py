"""Frames of exceptions: no instruction writes them, they go downwards, and the guest chooses where they go."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest

from policyc.addresses import PAGE_SIZE, Gfn, Gpa, Gva, frame_start, gfn_of
from policyc.guest.paging import AddressSpace
from policyc.kvmi import (
    V7,
    V12,
    Action,
    Command,
    Dialect,
    ErrorCode,
    EventKind,
    GetInfo,
    InjectException,
    PageAccess,
    PfData,
    ReadPhysical,
    SetPageAccess,
)
from tests.support.guarded_bench import Guarded, StuckError
from tests.support.laboratory import LAB, LAB_GPA, OBJECT, POLICY, Outcome, Span
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, TSS_GVA, Conversation, ScriptedKernel, compile_plan, gpa_of
from tests.support.stepping_talk import Stuck, guarded, moves

DENY_OBJECT = "object: deny write to kernel:guarded_object"
OBJECT_END = IMAGE_BASE + 0x6114
ABOVE = IMAGE_BASE + 0x6118
"""The first word of a frame whose last ones would lie in the object."""
COLLATERAL = IMAGE_BASE + 0x6800
EXCHANGE = "480fc70c25" + (COLLATERAL + SLIDE & 0xFFFF_FFFF).to_bytes(4, "little").hex()  # cmpxchg16b
STACKS = {"rsp0": 4, "rsp2": 20, "ist1": 36, "ist7": 84}
"""Where a 64-bit task state segment names them."""


def task_state(talk: Conversation) -> Gfn:
    """The frame that holds the task state segment."""
    found = talk.peer.memory.translate(AddressSpace(talk.peer.root), Gva(TSS_GVA))
    assert found is not None
    return gfn_of(found[0])


def name_stack(talk: Conversation, which: str, top: int) -> None:
    """Let the task state segment name another stack."""
    talk.peer.memory.write(frame_start(task_state(talk)) + STACKS[which], struct.pack("<Q", top))


# --- the first word of a frame ---


def pushed(talk: Conversation, at: int, *, rsp: int = 0) -> Action | None:
    """The answer to a word that is stored while a harmless instruction is at RIP."""
    data = PfData(Gva(at + SLIDE), gpa_of(at), PageAccess.W)
    return talk.event(EventKind.PF, data, rip=IMAGE_BASE + SLIDE + 0x1000, rsp=rsp).action


def armed(dialect: Dialect, text: str = DENY_OBJECT) -> Conversation:
    talk = Conversation(compile_plan(text), ScriptedKernel(dialect))
    talk.peer.memory.write(gpa_of(IMAGE_BASE + 0x1000), bytes.fromhex("8803"))  # mov [rbx], al
    talk.connect()
    talk.peer.commands.clear()
    return talk


@pytest.mark.parametrize("which", STACKS)
def test_first_word__on_a_stack_of_the_task_state_counts_with_what_lies_below(dialect: Dialect, which: str) -> None:
    talk = armed(dialect)
    assert pushed(talk, ABOVE) is Action.CONTINUE
    name_stack(talk, which, ABOVE + 8 + SLIDE)
    assert pushed(talk, ABOVE) is Action.RETRY
    # The processor aligns a stack before it pushes.
    name_stack(talk, which, ABOVE + 8 + 15 + SLIDE)
    assert pushed(talk, ABOVE) is Action.RETRY


def test_first_word__on_the_stack_in_use_does_too(dialect: Dialect) -> None:
    talk = armed(dialect)
    assert pushed(talk, ABOVE, rsp=ABOVE + 8 + SLIDE) is Action.RETRY
    assert pushed(talk, ABOVE, rsp=ABOVE + 8 + 32 + SLIDE) is Action.CONTINUE


def test_first_word__of_a_frame_that_ends_above_passes(dialect: Dialect) -> None:
    talk = armed(dialect)
    clear = OBJECT_END + 12 + 48
    name_stack(talk, "ist1", clear + SLIDE)
    assert pushed(talk, clear - 8) is Action.CONTINUE


def test_first_word__may_be_one_wherever_the_task_state_cannot_be_read(dialect: Dialect) -> None:
    talk = armed(dialect)
    frame = task_state(talk)
    talk.peer.override = lambda command: (
        ErrorCode.ENOENT if isinstance(command, ReadPhysical) and gfn_of(command.gpa) == frame else None
    )
    assert pushed(talk, ABOVE) is Action.RETRY


PAGE_END = IMAGE_BASE + 0x7000
AT_PAGE_END = f"end: deny write to virtual {PAGE_END - 0x20 + SLIDE:#x} size 24"


@pytest.mark.parametrize(("above", "denied"), [(0, True), (0x10, True), (0x20, True), (0x28, True), (0x30, False)])
@pytest.mark.parametrize("by_task_state", [False, True])
def test_first_word__of_a_frame_on_this_page_counts_though_it_began_above(
    dialect: Dialect, above: int, denied: bool, by_task_state: bool
) -> None:
    talk = armed(dialect, AT_PAGE_END)
    top = PAGE_END + above + SLIDE
    if by_task_state:
        name_stack(talk, "ist1", top)
    answer = pushed(talk, PAGE_END - 8, rsp=0 if by_task_state else top)
    assert answer is (Action.RETRY if denied else Action.CONTINUE)


@pytest.mark.parametrize("rsp", [0, 8, 15])
def test_first_word__at_the_end_of_the_address_space(dialect: Dialect, rsp: int) -> None:
    talk = armed(dialect, AT_PAGE_END)
    talk.peer.memory.map(talk.peer.root, (1 << 64) - PAGE_SIZE, gpa_of(PAGE_END - PAGE_SIZE))
    data = PfData(Gva((1 << 64) - 8), gpa_of(PAGE_END - 8), PageAccess.W)
    assert talk.event(EventKind.PF, data, rip=IMAGE_BASE + SLIDE + 0x1000, rsp=rsp).action is Action.RETRY


def test_first_word__nothing_is_asked_where_it_makes_no_difference(dialect: Dialect) -> None:
    talk = armed(dialect)
    assert pushed(talk, COLLATERAL + 8) is Action.CONTINUE
    assert talk.peer.commands == []


# --- while a page is open for a step ---


def is_opened(stuck: Stuck) -> bool:
    """Whether the third repetition opened the page; else the instruction was faulted."""
    stuck.faults(COLLATERAL)
    opened = any(isinstance(command, SetPageAccess) for command in stuck.talk.peer.commands)
    faulted = InjectException(0, 13) in stuck.talk.peer.commands
    assert opened is not faulted, moves(stuck)
    return opened


@pytest.mark.parametrize("which", STACKS)
@pytest.mark.parametrize(("below", "expected"), [(8, False), (40, False), (60, True)])
def test_step__opens_nothing_onto_which_a_frame_could_be_pushed(
    dialect: Dialect, which: str, below: int, expected: bool
) -> None:
    stuck = guarded(dialect, EXCHANGE, DENY_OBJECT)
    name_stack(stuck.talk, which, (OBJECT_END + below & ~15) + SLIDE)
    assert is_opened(stuck) is expected


def test_step__opens_nothing_where_the_task_state_cannot_be_read(dialect: Dialect) -> None:
    stuck = guarded(dialect, EXCHANGE, DENY_OBJECT)
    stuck.talk.peer.memory.map(stuck.talk.peer.root, TSS_GVA, 0, flags=0)
    assert not is_opened(stuck)


def test_step__is_free_where_no_byte_is_denied(dialect: Dialect) -> None:
    stuck = guarded(dialect, EXCHANGE, "object: log write to kernel:guarded_object")
    name_stack(stuck.talk, "ist1", OBJECT_END + 12 + SLIDE)
    assert is_opened(stuck)


# --- real code ---

PAGE = LAB + 33 * PAGE_SIZE
FILL = 0x1122334455667788


def attempt(bench: Guarded, code: str, registers: dict[str, int]) -> Outcome:
    """Run it to its end, or to where it makes no end: nobody's stack is left to tell it of a fault."""
    at = LAB + (bench.slot() or 0)
    with suppress(StuckError):
        bench.run(at, bytes.fromhex(code), registers, fill=FILL)
    return bench.lab.outcome()


def unharmed(outcome: Outcome) -> bool:
    return outcome.bytes_at(OBJECT) == FILL.to_bytes(8, "little") * (len(outcome.bytes_at(OBJECT)) // 8)


def test_attack__a_fault_in_the_middle_of_a_step_pushes_nothing_onto_the_object(dialect: Dialect) -> None:
    bench = Guarded(dialect, "intel")
    bench.lab.map(34, None)
    # fxsave64 [rdi]: it runs into a page that isn't mapped, with the stack at the object.
    assert unharmed(attempt(bench, "480fae07", {"rdi": PAGE + 0xF00, "rsp": OBJECT.end}))


def test_attack__a_page_made_read_only_before_the_others_stand_still(dialect: Dialect) -> None:
    bench = Guarded(dialect, "intel")
    machine, left = bench.lab.machine, [True]

    def protect(command: Command) -> None:
        if isinstance(command, GetInfo) and left:
            left.pop()
            entry = machine.gpa(machine.symbol("level1_module_pgt")) + 8 * (LAB // PAGE_SIZE % 512 + 33)
            machine.memory.write(Gpa(entry), struct.pack("<Q", LAB_GPA + 33 * PAGE_SIZE | 1))
            bench.lab.engine.flush_tlb()

    bench.meanwhile = protect
    # cmpxchg16b [rdi]: the processor refuses it by then, with the stack in the object.
    assert unharmed(attempt(bench, "480fc70f", {"rdi": PAGE + 0xF00, "rsp": OBJECT.start + 0x30, "rax": 1}))
    assert bool(left) is (dialect is V7)


AT_END = Span(PAGE + PAGE_SIZE - 0x20, PAGE + PAGE_SIZE - 8)


@pytest.mark.parametrize("above", [0, 0x10, 0x20])
def test_attack__a_frame_that_begins_on_the_page_above(dialect: Dialect, above: int) -> None:
    bench = Guarded(dialect, "intel", f"{POLICY}\nend: deny write to virtual {AT_END.start:#x} size 24\n")
    # mov [rdi], rax: nothing is mapped there.
    outcome = attempt(bench, "488907", {"rdi": 0x7000_0000_0000, "rsp": PAGE + PAGE_SIZE + above})
    assert outcome.bytes_at(AT_END) == FILL.to_bytes(8, "little") * 3


def test_step__with_its_stack_elsewhere_is_performed() -> None:
    bench = Guarded(V12, "intel")
    outcome = attempt(bench, "480fc70f", {"rdi": PAGE + 0xF00, "rax": FILL, "rdx": FILL, "rbx": 5, "rcx": 6})
    assert outcome.memory[PAGE + 0xF00 - LAB - 32 * PAGE_SIZE :][:16] == struct.pack("<QQ", 5, 6)
    assert unharmed(outcome)

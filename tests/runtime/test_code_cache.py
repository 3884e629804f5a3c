"""Decoded instructions are kept where code can't change unseen, and nowhere else."""

from __future__ import annotations

from policyc.addresses import Gfn, Gpa, Gva, gfn_of
from policyc.kvmi import (
    Action,
    Command,
    CpuMode,
    Dialect,
    Event,
    EventKind,
    PageAccess,
    PfData,
    ReadPhysical,
    SetRegisters,
    TranslateGva,
)
from policyc.runtime.code_cache import MAX_ENTRIES, MAX_GUESSES, CodeCache
from policyc.runtime.decode import Instruction, decode
from policyc.runtime.enforcer import step
from policyc.runtime.state import Phase
from policyc.runtime.steps import Send
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, Conversation, ScriptedKernel, compile_plan, gpa_of

TEXT = "text: deny write to kernel .text"
EXCEPTED = TEXT + ' except from kernel:__text_poke because "the kernel patches itself"'
OBJECT = "object: deny write to kernel:guarded_object"

SCHEDULE = IMAGE_BASE + 0x1000
TEXT_POKE = IMAGE_BASE + 0x1240
GUARDED = IMAGE_BASE + 0x6104
MODULE_GVA = 0xFFFFFFFFC0401000

STORE_8 = bytes.fromhex("488903")  # mov [rbx], rax
STORE_1 = bytes.fromhex("8803")  # mov [rbx], al

LONG = CpuMode.LONG


def armed(dialect: Dialect, *texts: str) -> Conversation:
    talk = Conversation(compile_plan("\n".join(texts)), ScriptedKernel(dialect))
    page = talk.peer.memory.new_page()
    talk.peer.memory.map(talk.peer.root, MODULE_GVA, page)
    talk.peer.memory.write(page, STORE_8)
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    return talk


def write(talk: Conversation, link_address: int, rip: int) -> tuple[Action | None, list[type[Command]]]:
    """A write fault: what was answered, and the commands that it took."""
    talk.peer.commands.clear()
    data = PfData(Gva(link_address + SLIDE), gpa_of(link_address), PageAccess.W)
    answer = talk.event(EventKind.PF, data, rip=rip)
    return answer.action, [type(command) for command in talk.peer.commands]


def test_guarded_code__is_read_once(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT, OBJECT)
    talk.peer.memory.write(gpa_of(SCHEDULE), STORE_8)
    first = write(talk, GUARDED - 4, SCHEDULE + SLIDE)
    again = write(talk, GUARDED - 4, SCHEDULE + SLIDE)
    assert first == (Action.RETRY, [TranslateGva, ReadPhysical, SetRegisters])
    assert again == (Action.RETRY, [TranslateGva, SetRegisters])


def test_unguarded_code__is_read_each_time(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    expected = (Action.RETRY, [TranslateGva, ReadPhysical, SetRegisters])
    assert write(talk, SCHEDULE, MODULE_GVA) == expected
    assert write(talk, SCHEDULE, MODULE_GVA) == expected


def test_unguarded_code__has_no_size_in_the_record(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT, OBJECT)
    # It may change until it is executed, so the store counts with the most that it could become.
    assert write(talk, GUARDED - 4, MODULE_GVA)[0] is Action.RETRY
    record = talk.records[-1].to_json(talk.plan)
    assert (record["instruction"], "size" in record) == ("mov qword ptr [rbx], rax", False)


def test_unguarded_code__is_asked_for_together_with_where_it_lies(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    write(talk, SCHEDULE, MODULE_GVA)
    data = PfData(Gva(SCHEDULE + SLIDE), gpa_of(SCHEDULE), PageAccess.W)
    talk.peer.kernel.send_event(EventKind.PF, 0, talk.peer.vcpu_state(MODULE_GVA, 0), data)
    talk.peer.commands.clear()
    # One turn of the tool: everything that it sends before it has heard anything.
    talk.tool.receive_data(b"".join(talk.peer.kernel.data_to_send()))
    event = talk.tool.next_event()
    assert isinstance(event, Event)
    sent = [output.command for output in step(talk.state, talk.now, event) if isinstance(output, Send)]
    assert [type(command) for command in sent] == [TranslateGva, ReadPhysical]


def test_unguarded_code__that_has_moved_is_read_where_it_lies_now(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    write(talk, SCHEDULE, MODULE_GVA)
    moved = talk.peer.memory.new_page()
    talk.peer.memory.write(moved, bytes.fromhex("48c70300000000"))  # seven bytes long
    talk.peer.memory.map(talk.peer.root, MODULE_GVA, moved)
    assert write(talk, SCHEDULE, MODULE_GVA)[1] == [TranslateGva, ReadPhysical, ReadPhysical, SetRegisters]
    (skipped,) = [command for command in talk.peer.commands if isinstance(command, SetRegisters)]
    assert skipped.regs.rip == MODULE_GVA + 7


def test_code_that_patches_itself__is_never_taken_for_what_it_was(dialect: Dialect) -> None:
    talk = armed(dialect, EXCEPTED, OBJECT)
    talk.peer.memory.write(gpa_of(SCHEDULE), STORE_1)
    assert write(talk, GUARDED - 4, SCHEDULE + SLIDE)[0] is Action.CONTINUE  # one byte doesn't reach the object
    assert write(talk, GUARDED - 3, SCHEDULE + SLIDE)[1] == [TranslateGva]
    # The kernel patches its own text: let through by the exception, and performed some time after the reply.
    assert write(talk, SCHEDULE, TEXT_POKE + SLIDE)[0] is Action.CONTINUE
    assert write(talk, GUARDED - 3, SCHEDULE + SLIDE) == (Action.CONTINUE, [TranslateGva, ReadPhysical])
    talk.peer.memory.write(gpa_of(SCHEDULE), STORE_8)
    assert write(talk, GUARDED - 4, SCHEDULE + SLIDE)[0] is Action.RETRY


def test_monitor__keeps_nothing_of_code_that_is_written_unhindered(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT, OBJECT)
    talk.state.monitor = True
    talk.peer.memory.write(gpa_of(SCHEDULE), STORE_1)
    write(talk, GUARDED - 4, SCHEDULE + SLIDE)
    write(talk, SCHEDULE, MODULE_GVA)
    talk.peer.memory.write(gpa_of(SCHEDULE), STORE_8)
    write(talk, GUARDED - 4, SCHEDULE + SLIDE)
    assert [record.to_json(talk.plan).get("size") for record in talk.records[-2:]] == [None, 8]


def test_an_exposed_frame__is_not_trusted(dialect: Dialect) -> None:
    talk = armed(dialect, TEXT)
    bound = talk.state.bound
    assert bound.keeps_unwritable(gpa_of(SCHEDULE), 3)
    bound.code_cache.exposed.add(gfn_of(gpa_of(SCHEDULE)))
    assert not bound.keeps_unwritable(gpa_of(SCHEDULE), 3)
    assert bound.keeps_unwritable(gpa_of(IMAGE_BASE), 3)


def store() -> Instruction:
    """Three bytes long."""
    found = decode(LONG, STORE_8)
    assert found is not None
    return found


def test_the_cache__is_bounded() -> None:
    cache = CodeCache(lambda gpa, size: True, {Gfn(number) for number in range(8)})
    kept = store()
    for number in range(MAX_ENTRIES + 1):
        cache.put(LONG, Gpa(number * 4), kept)
    assert cache.get(LONG, Gpa(0)) is None
    assert cache.get(LONG, Gpa(MAX_ENTRIES * 4)) is kept
    for number in range(MAX_GUESSES + 1):
        cache.note_translation(Gva(number), Gpa(number))
    assert cache.guess(Gva(0)) is None
    assert cache.guess(Gva(MAX_GUESSES)) == MAX_GUESSES


def test_the_cache__keeps_modes_and_pages_apart() -> None:
    cache = CodeCache(lambda gpa, size: True, {Gfn(1), Gfn(2)})
    kept = store()
    cache.put(LONG, Gpa(0x1FFE), kept)  # it crosses into the next page
    cache.put(LONG, Gpa(0x1000), kept)
    cache.put(LONG, Gpa(0x2000), kept)
    cache.written(Gpa(0x1800))
    cache.put(LONG, Gpa(0x1000), kept)
    found = [cache.get(mode, Gpa(gpa)) for mode in (LONG, CpuMode.PROTECTED) for gpa in (0x1FFE, 0x1000, 0x2000)]
    assert found == [None, None, kept, None, None, None]


def test_the_cache__takes_nothing_that_others_can_write() -> None:
    cache = CodeCache(lambda gpa, size: False, {Gfn(1)})
    cache.put(LONG, Gpa(0x1000), store())
    assert cache.get(LONG, Gpa(0x1000)) is None

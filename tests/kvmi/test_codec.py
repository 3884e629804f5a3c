"""Every message of every dialect, with any values: there and back, cut short, followed by others, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.addresses import Gfn, Gpa, Gva
from policyc.kvmi import (
    DIALECTS,
    DONE,
    V6,
    V7,
    V12,
    Action,
    ChangeGfn,
    CheckCommand,
    CheckEvent,
    Command,
    ControlCmdResponse,
    ControlEvents,
    CpuidData,
    CpuMode,
    CrData,
    Dialect,
    EventKind,
    Features,
    GetCpuid,
    GetMapToken,
    GetMapTokenReply,
    GetMaxGfn,
    GetRegisters,
    GetRegistersReply,
    GetVersion,
    GetVersionReply,
    GetXsave,
    GetXsaveReply,
    InjectException,
    LocalProtocolError,
    MsrEntry,
    NewValue,
    PageAccess,
    PfData,
    PfReply,
    ReadPhysical,
    Registers,
    RemoteProtocolError,
    ReplyData,
    SetPageAccess,
    SetXsave,
    SystemRegisters,
    TrapData,
    VcpuState,
    WritePhysical,
)
from policyc.kvmi.codec import codec_of
from policyc.kvmi.framing import HEADER_SIZE
from tests.support import kvmi_strategies as any_
from tests.support.kvmi_wire import Answer, EventAnswer, Item, Request, VcpuEvent, VmEvent, seq_of

COMMANDS = [(dialect.name, cls) for dialect in DIALECTS.values() for cls in dialect.commands]
EVENTS = [(dialect.name, kind) for dialect in DIALECTS.values() for kind in dialect.events]
FEW = settings(max_examples=8, deadline=None)


def ids(rows: list[tuple[str, type[Command]]] | list[tuple[str, EventKind]]) -> list[str]:
    return [f"{name}: {what.__name__ if isinstance(what, type) else what.value}" for name, what in rows]


def there_and_back(dialect: Dialect, item: Item, seq: int) -> bytes:
    message = item.encode(dialect, seq)
    assert item.decode(dialect, message) == item
    assert seq_of(message) == seq
    assert int.from_bytes(message[2:4], "little") == len(message) - HEADER_SIZE
    return message


@pytest.mark.parametrize(("name", "cls"), COMMANDS, ids=ids(COMMANDS))
@FEW
@given(data=st.data(), seq=any_.u32)
def test_commands(name: str, cls: type[Command], data: st.DataObject, seq: int) -> None:
    dialect = DIALECTS[name]
    there_and_back(dialect, Request(data.draw(any_.command(cls, dialect))), seq)


@pytest.mark.parametrize(("name", "cls"), COMMANDS, ids=ids(COMMANDS))
@FEW
@given(data=st.data(), seq=any_.u32, errno=any_.errno)
def test_replies_and_no_other_length_of_them(
    name: str, cls: type[Command], data: st.DataObject, seq: int, errno: int
) -> None:
    dialect = DIALECTS[name]
    command = data.draw(any_.command(cls, dialect))
    there_and_back(dialect, Answer(command, errno), seq)
    message = there_and_back(dialect, Answer(command, data.draw(any_.replies(command, dialect))), seq)
    cut = data.draw(st.integers(HEADER_SIZE, len(message) - 1))
    for wrong in (message[:cut], message + b"\0"):
        with pytest.raises(RemoteProtocolError):
            Answer(command, 0).decode(dialect, wrong)


@pytest.mark.parametrize(("name", "kind"), EVENTS, ids=ids(EVENTS))
@FEW
@given(data=st.data(), seq=any_.u32, vcpu=any_.u16)
def test_events(name: str, kind: EventKind, data: st.DataObject, seq: int, vcpu: int) -> None:
    dialect = DIALECTS[name]
    content = data.draw(any_.event_data(kind, dialect))
    if isinstance(content, PfData) and not content.access:
        content = PfData(content.gva, content.gpa, data.draw(st.sampled_from([1, 2, 4]).map(type(content.access))))
    if dialect.events[kind].vm_level:
        message = there_and_back(dialect, VmEvent(kind, content), seq)
    else:
        message = there_and_back(dialect, VcpuEvent(kind, content, vcpu, data.draw(any_.states(dialect))), seq)
    for wrong in (message[:-1], message + b"\0"):
        framed = message[:2] + (len(wrong) - HEADER_SIZE).to_bytes(2, "little") + wrong[4:]
        with pytest.raises(RemoteProtocolError):
            codec_of(dialect).events.decode(framed)


@pytest.mark.parametrize(("name", "kind"), EVENTS, ids=ids(EVENTS))
@FEW
@given(data=st.data(), seq=any_.u32, vcpu=any_.u16)
def test_event_replies(name: str, kind: EventKind, data: st.DataObject, seq: int, vcpu: int) -> None:
    dialect = DIALECTS[name]
    if not dialect.events[kind].vm_level:
        content = data.draw(any_.event_reply_data(kind, dialect))
        there_and_back(dialect, EventAnswer(kind, data.draw(any_.actions(kind, dialect)), content, vcpu), seq)


UNSAYABLE = [
    (V12, SetPageAccess(b"", view=1), "no views"),
    (V6, ControlCmdResponse(True, True, report_errors=True), "no error reports"),
    (V7, ReadPhysical(Gpa(-1), 8), "not an address"),
    (V12, ReadPhysical(Gpa(0), 65536), "size has 16 bits"),
    (V7, SetXsave(0, bytes(4095)), "too short"),
    (V7, SetXsave(0, bytes(4097)), "too long"),
    (V7, SetXsave(65536, bytes(4096)), "not a vCPU"),
    (V7, WritePhysical(Gpa(0), bytes(8184 - 15)), "longer than a message"),
    (V6, SetPageAccess(bytes(16 * 256)), "longer than v6 surely takes"),
    (V7, GetRegisters(0, (1 << 32,)), "not an MSR"),
    (V7, ControlEvents(0, 65536, True), "not an event"),
    (V12, CheckEvent(EventKind.CPUID), "an event of another dialect"),
    (V12, CheckCommand(GetMaxGfn), "a command of another dialect"),
    (V12, GetMaxGfn(), "a command of another dialect"),
    (V6, ChangeGfn(0, Gfn(1), Gfn(2)), "a command of another dialect"),
]


@pytest.mark.parametrize(
    ("dialect", "command", "why"), UNSAYABLE, ids=[f"{d}: {type(c).__name__}: {w}" for d, c, w in UNSAYABLE]
)
def test_a_command_that_a_dialect_cannot_say(dialect: Dialect, command: Command, why: str) -> None:
    with pytest.raises(LocalProtocolError):
        Request(command).encode(dialect, 1)


UNANSWERABLE = [
    (V7, GetVersion(), GetVersionReply(max_message_size=8184), "v7 announces no size"),
    (V12, GetVersion(), GetVersionReply(features=Features(spp=True)), "v12 has no such feature"),
    (V7, GetVersion(), DONE, "data are missing"),
    (V7, GetXsave(0), GetXsaveReply(bytes(4095)), "too short"),
    (V7, GetMapToken(), GetMapTokenReply(bytes(31)), "too short"),
]


@pytest.mark.parametrize(("dialect", "command", "reply", "why"), UNANSWERABLE, ids=[row[3] for row in UNANSWERABLE])
def test_a_reply_that_a_dialect_cannot_say(dialect: Dialect, command: Command, reply: ReplyData, why: str) -> None:
    with pytest.raises(LocalProtocolError):
        Answer(command, reply).encode(dialect, 1)


WRONG_EVENTS: list[tuple[Dialect, VcpuEvent | VmEvent, str]] = [
    (V7, VcpuEvent(EventKind.UNHOOK), "an event of the VM"),
    (V12, VmEvent(EventKind.PAUSE), "an event of a vCPU"),
    (V7, VmEvent(EventKind.CREATE_VCPU), "an event of a vCPU"),
    (V7, VmEvent(EventKind.CMD_ERROR), "data are missing"),
    (V12, VcpuEvent(EventKind.CPUID, CpuidData(1, 0, 2)), "an event of another dialect"),
    (V7, VcpuEvent(EventKind.PF), "data are missing"),
    (V7, VcpuEvent(EventKind.PAUSE, CrData(3, 0, 1)), "data of another event"),
    (V7, VcpuEvent(EventKind.PF, PfData(Gva(0), Gpa(0), PageAccess.W, view=1)), "the view belongs to the event"),
    (V12, VcpuEvent(EventKind.PAUSE, state=VcpuState(view=1)), "no views"),
    (V7, VcpuEvent(EventKind.TRAP, TrapData(14, 0, 0, type=1)), "no type"),
    (V7, VcpuEvent(EventKind.PAUSE, vcpu=65536), "not a vCPU"),
]


@pytest.mark.parametrize(("dialect", "event", "why"), WRONG_EVENTS, ids=[f"{row[0]}: {row[2]}" for row in WRONG_EVENTS])
def test_an_event_that_a_dialect_cannot_say(dialect: Dialect, event: VcpuEvent | VmEvent, why: str) -> None:
    with pytest.raises(LocalProtocolError):
        event.encode(dialect, 1)


WRONG_ANSWERS = [
    (V7, EventAnswer(EventKind.CR, Action.CONTINUE), "the new value is missing"),
    (V12, EventAnswer(EventKind.MSR, Action.CRASH), "the new value is missing"),
    (V7, EventAnswer(EventKind.PAUSE, Action.RETRY), "an action that the event doesn't support"),
    (V12, EventAnswer(EventKind.TRAP, Action.RETRY), "an action that the event doesn't support"),
    (V12, EventAnswer(EventKind.PF, Action.CONTINUE, PfReply(Gva(0))), "v12 takes no data"),
    (V7, EventAnswer(EventKind.PF, Action.CONTINUE, NewValue(1)), "data of another event"),
    (V7, EventAnswer(EventKind.PF, Action.RETRY, PfReply(Gva(0), singlestep=True)), "only v6 steps"),
    (V7, EventAnswer(EventKind.PF, Action.CONTINUE, PfReply(Gva(0), bytes(257))), "too long"),
    (V7, EventAnswer(EventKind.UNHOOK, Action.CONTINUE), "has no reply"),
]


@pytest.mark.parametrize(
    ("dialect", "answer", "why"), WRONG_ANSWERS, ids=[f"{row[0]}: {row[2]}" for row in WRONG_ANSWERS]
)
def test_an_event_reply_that_a_kernel_would_not_take(dialect: Dialect, answer: EventAnswer, why: str) -> None:
    with pytest.raises(LocalProtocolError):
        answer.encode(dialect, 1)


def test_has_error_follows_from_the_vector_in_v6() -> None:
    assert [Request(InjectException(0, vector)).encode(V6, 1)[17] for vector in (3, 6, 8, 12, 13, 14, 17)] == [
        0, 0, 1, 1, 1, 1, 1
    ]  # fmt: skip


def test_the_count_in_a_reply_must_be_that_of_the_request() -> None:
    asked = GetRegisters(0, (1, 2))
    reply = bytearray(
        Answer(asked, GetRegistersReply(CpuMode.LONG, Registers(), SystemRegisters(), MSRS)).encode(V7, 1)
    )
    reply[16 + 464] = 1
    with pytest.raises(RemoteProtocolError):
        Answer(asked, 0).decode(V7, bytes(reply))


MSRS = (MsrEntry(1, 10), MsrEntry(2, 20))


def test_a_value_without_meaning_is_the_peers_fault() -> None:
    asked = GetRegisters(0)
    reply = bytearray(Answer(asked, GetRegistersReply(CpuMode.LONG, Registers(), SystemRegisters())).encode(V7, 1))
    reply[16] = 3
    with pytest.raises(RemoteProtocolError, match="a value of `mode` that means something, got 3"):
        Answer(asked, 0).decode(V7, bytes(reply))


def test_too_few_bytes_for_a_struct() -> None:
    codec = codec_of(V7)
    with pytest.raises(RemoteProtocolError, match="at least 16 bytes of kvmi_vcpu_get_cpuid_reply, got 15"):
        codec.commands[GetCpuid].reply.decode(bytes(15))
    with pytest.raises(RemoteProtocolError, match="an event reply of 16 bytes or more, got 15"):
        codec.events.decode_reply(EventKind.PF, bytes(15))

"""The tool's end: what it refuses to send, what it refuses to receive, and what it makes of the rest."""

from __future__ import annotations

import pytest

from policyc.addresses import Gfn, Gpa, Gva
from policyc.kvmi import (
    CLOSED,
    DONE,
    NEED_DATA,
    V6,
    V7,
    V12,
    Action,
    CmdErrorData,
    CommandReceived,
    ControlCmdResponse,
    CpuMode,
    CrData,
    Dialect,
    Event,
    EventKind,
    EventReplyReceived,
    GetInfo,
    GetInfoReply,
    GetRegisters,
    InjectException,
    LocalProtocolError,
    NewValue,
    PageAccess,
    PageRun,
    PfData,
    ReadPhysical,
    ReadPhysicalReply,
    Refused,
    Registers,
    RemoteProtocolError,
    Reply,
    SetRegisters,
    State,
    ToolConnection,
    TranslateGva,
    VcpuGetInfo,
    VcpuGetInfoReply,
    VcpuState,
    WritePhysical,
    set_page,
    set_pages,
)
from policyc.kvmi.codec import codec_of
from policyc.kvmi.connection import MAX_UNREAD
from policyc.kvmi.handshake import encode_hello
from policyc.kvmi.received import EventReplyRefused
from policyc.kvmi.tool import MAX_OUTSTANDING, MAX_VCPUS
from tests.support.kvmi_pair import HELLO, Pair
from tests.support.kvmi_wire import COMPUTED_STATE

ALL = pytest.mark.parametrize("dialect", [V6, V7, V12], ids=repr)
WRITE = PfData(Gva(0xFFFF_8880_0000_7010), Gpa(0x7010), PageAccess.W)


def pf(dialect: Dialect, seq: int, vcpu: int = 0) -> bytes:
    return codec_of(dialect).events.encode(EventKind.PF, seq, vcpu, COMPUTED_STATE, WRITE)


def opened(dialect: Dialect) -> ToolConnection:
    """An open connection from which nothing has been sent since."""
    tool = Pair(dialect).open().tool
    assert tool.state is State.OPEN
    return tool


def events_of(tool: ToolConnection, data: bytes) -> list[Event]:
    tool.receive_data(data)
    events = []
    while isinstance(event := tool.next_event(), Event):
        events.append(event)
    assert event is NEED_DATA
    return events


# --- commands and replies ---


@ALL
def test_replies_are_matched_by_number_and_may_come_in_any_order(dialect: Dialect) -> None:
    pair = Pair(dialect).open()
    commands = [GetInfo(), VcpuGetInfo(0), ReadPhysical(Gpa(0x1000), 4)]
    seqs = [pair.tool.send(command) for command in commands]
    assert pair.tool.outstanding == 3
    first, second, third = pair.tool_says()
    assert isinstance(first, CommandReceived)
    assert isinstance(second, CommandReceived)
    assert isinstance(third, CommandReceived)
    pair.kernel.answer(third, ReadPhysicalReply(b"abcd"))
    pair.kernel.refuse(first, -22)
    pair.kernel.answer(second, VcpuGetInfoReply(2_400_000_000))
    refused = Refused(
        GetInfo(), -22, "EINVAL", "a field holds a value that the kernel doesn't accept, or there is no such vCPU"
    )
    assert pair.kernel_says() == [
        Reply(seqs[2], commands[2], ReadPhysicalReply(b"abcd")),
        Reply(seqs[0], commands[0], refused),
        Reply(seqs[1], commands[1], VcpuGetInfoReply(2_400_000_000)),
    ]
    assert pair.tool.outstanding == 0


def test_a_refusal_says_what_it_means_for_its_command() -> None:
    pair = Pair(V7).open()
    received = pair.ask(SetRegisters(0, Registers()))
    pair.kernel.refuse(received, -95)
    (reply,) = pair.kernel_says()
    assert isinstance(reply, Reply)
    assert str(reply.result) == "SetRegisters: EOPNOTSUPP (-95): the vCPU doesn't wait for an event reply"


@ALL
@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ("{id}0800 63000000 0000000000000000", "a reply to a command that was sent"),
        ("ff000800 {seq} 0000000000000000", "a reply to a command that was sent"),
        ("{id}0400 {seq} 00000000", "a reply of at least 8 bytes, got 4"),
        ("{id}0800 {seq} 0000000000000000", "24 bytes in answer to GetInfo, got 8"),
        ("{id}1800 {seq} eaffffff00000000 02000000000000000000000000000000", "8 bytes in answer to GetInfo, got 24"),
        ("{id}0800 {seq} 0100000000000000", "8 bytes in answer to GetInfo, got 8 with error code 1"),
        ("{id}f91f {seq}", "a message of at most 8184 bytes, got 8185"),
    ],
    ids=["unknown seq", "unknown id", "no error code", "no data", "data with an error", "positive error", "too long"],
)
def test_a_reply_that_is_not_one(dialect: Dialect, reply: str, complaint: str) -> None:
    tool = opened(dialect)
    seq = tool.send(GetInfo()).to_bytes(4, "little").hex()
    number = dialect.commands[GetInfo].id.to_bytes(2, "little").hex()
    tool.receive_data(bytes.fromhex(reply.format(id=number, seq=seq)))
    with pytest.raises(RemoteProtocolError, match=complaint):
        tool.next_event()
    assert tool.state is State.ERROR
    assert tool.next_event() is CLOSED
    with pytest.raises(LocalProtocolError, match="in ERROR"):
        tool.send(GetInfo())


def test_commands_without_reply_are_limited() -> None:
    tool = opened(V7)
    for _ in range(MAX_OUTSTANDING):
        tool.send(GetInfo())
    with pytest.raises(LocalProtocolError, match="at most 8192 commands"):
        tool.send(GetInfo())


@ALL
@pytest.mark.parametrize("access", [PageAccess.W, PageAccess.WX], ids=repr)
def test_write_without_read_is_never_sent(dialect: Dialect, access: PageAccess) -> None:
    tool = opened(dialect)
    tool.execute_only = True
    with pytest.raises(LocalProtocolError, match="rights that a page table entry can hold"):
        tool.send(set_page(Gpa(0x7000), access))
    assert tool.data_to_send() == []


def test_execute_only_needs_a_cpu_that_has_it() -> None:
    tool = opened(V7)
    with pytest.raises(LocalProtocolError):
        tool.send(set_page(Gpa(0x7000), PageAccess.X))
    tool.execute_only = True
    tool.send(set_page(Gpa(0x7000), PageAccess.X))


def test_one_bad_page_among_many_is_seen() -> None:
    tool = opened(V7)
    runs = [PageRun(Gfn(1), 300, PageAccess.R), PageRun(Gfn(900), 1, PageAccess.W), PageRun(Gfn(1000), 9, PageAccess.R)]
    (command,) = set_pages(runs)
    with pytest.raises(LocalProtocolError):
        tool.send(command)


@ALL
@pytest.mark.parametrize("vector", [-1, 32, 256])
def test_exceptions_above_31_are_never_sent(dialect: Dialect, vector: int) -> None:
    tool = opened(dialect)
    with pytest.raises(LocalProtocolError, match="an exception vector up to 31"):
        tool.send(InjectException(0, vector))
    tool.send(InjectException(0, 31))


def test_nothing_is_sent_before_the_connection_is_open() -> None:
    tool = ToolConnection()
    with pytest.raises(LocalProtocolError, match="in HANDSHAKE"):
        tool.send(GetInfo())
    with pytest.raises(LocalProtocolError, match="after the hello"):
        tool.answer_hello()
    tool.receive_data(encode_hello(HELLO))
    assert tool.next_event() == HELLO
    tool.answer_hello(b"secret")
    assert tool.data_to_send()[0].hex() == "18000000e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4"
    with pytest.raises(LocalProtocolError, match="in NEGOTIATING"):
        tool.send(GetInfo())
    with pytest.raises(LocalProtocolError, match="one answer"):
        tool.answer_hello()


def test_a_command_that_cannot_be_said_leaves_the_connection_as_it_was() -> None:
    tool = opened(V12)
    with pytest.raises(LocalProtocolError):
        tool.send(WritePhysical(Gpa(0), bytes(9000)))
    assert (tool.data_to_send(), tool.outstanding) == ([], 0)
    first = tool.send(GetInfo())
    assert tool.send(GetInfo()) == first + 1


# --- events ---


@ALL
def test_an_event_is_read_field_by_field(dialect: Dialect) -> None:
    (event,) = events_of(opened(dialect), pf(dialect, 1, vcpu=1))
    assert (event.seq, event.vcpu, event.kind) == (1, 1, EventKind.PF)
    assert (event.gva, event.gpa, event.access) == (WRITE.gva, WRITE.gpa, WRITE.access)
    assert (event.rip, event.rsp) == (COMPUTED_STATE.regs.rip, COMPUTED_STATE.regs.rsp)
    assert (event.mode, event.view) == (CpuMode.LONG, 0)
    assert (event.regs, event.sregs, event.msrs) == (COMPUTED_STATE.regs, COMPUTED_STATE.sregs, COMPUTED_STATE.msrs)
    assert (event.state, event.data) == (COMPUTED_STATE, WRITE)
    assert Registers.unpack(event.regs_raw) == event.regs
    assert event.needs_reply
    assert event.actions == tuple(Action)
    assert repr(event) == f"Event(pf, vcpu=1, seq=1, data={WRITE!r})"


def test_fields_that_an_event_does_not_carry() -> None:
    pair = Pair(V12).open()
    pair.kernel.send_event(EventKind.PAUSE, 0, COMPUTED_STATE)
    (event,) = pair.kernel_says()
    assert isinstance(event, Event)
    for field in ("gva", "gpa", "access"):
        with pytest.raises(AttributeError, match=f"pause events of kvmi-v12 carry no {field}"):
            getattr(event, field)


def test_the_view_of_a_v7_event() -> None:
    pair = Pair(V7).open()
    pair.kernel.send_event(EventKind.PF, 0, VcpuState(view=2), WRITE)
    (event,) = pair.kernel_says()
    assert isinstance(event, Event)
    assert event.view == 2


@ALL
def test_each_event_is_answered_exactly_once(dialect: Dialect) -> None:
    pair = Pair(dialect).open()
    pair.kernel.send_event(EventKind.CR, 1, COMPUTED_STATE, CrData(3, 1, 2))
    (event,) = pair.kernel_says()
    assert isinstance(event, Event)
    assert pair.tool.unanswered == {1: 1}
    with pytest.raises(LocalProtocolError, match="answer that cr events take"):
        pair.tool.reply(event, Action.CONTINUE)
    assert pair.tool.unanswered == {1: 1}
    pair.tool.reply(event, Action.CONTINUE, NewValue(5))
    with pytest.raises(LocalProtocolError, match="an event that waits"):
        pair.tool.reply(event, Action.CONTINUE, NewValue(5))
    assert pair.tool_says() == [EventReplyReceived(1, 1, EventKind.CR, Action.CONTINUE, NewValue(5))]
    assert pair.tool.unanswered == {}


@ALL
def test_a_whole_kernel_buffer_at_once(dialect: Dialect) -> None:
    data = b"".join(pf(dialect, vcpu + 1, vcpu) for vcpu in range(100))
    events = events_of(opened(dialect), data)
    assert [(event.seq, event.vcpu) for event in events] == [(vcpu + 1, vcpu) for vcpu in range(100)]


@ALL
def test_byte_by_byte(dialect: Dialect) -> None:
    tool = opened(dialect)
    data = pf(dialect, 1)
    for byte in data[:-1]:
        tool.receive_data(bytes([byte]))
        assert tool.next_event() is NEED_DATA
    (event,) = events_of(tool, data[-1:] + pf(dialect, 2, 1)[:9])
    assert event.data == WRITE
    (other,) = events_of(tool, pf(dialect, 2, 1)[9:])
    assert (other.seq, other.vcpu) == (2, 1)


@ALL
def test_events_of_several_vcpus_may_overtake_each_other(dialect: Dialect) -> None:
    tool = opened(dialect)
    events = events_of(tool, pf(dialect, 2, 1) + pf(dialect, 1, 0) + pf(dialect, 4, 3) + pf(dialect, 3, 2))
    assert [event.seq for event in events] == [2, 1, 4, 3]
    assert tool.unanswered == {0: 1, 1: 2, 2: 3, 3: 4}


def test_the_event_counter_may_run_over() -> None:
    tool = opened(V7)
    tool._last_event = 0xFFFF_FFFE
    events = events_of(tool, pf(V7, 0xFFFF_FFFF, 0) + pf(V7, 0, 1) + pf(V7, 1, 2))
    assert [event.seq for event in events] == [0xFFFF_FFFF, 0, 1]


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    ("dialect", "data", "complaint"),
    [
        (V7, pf(V7, 1) + pf(V7, 2), "vCPU 0 to wait for its reply, got pf event 2"),
        (V7, pf(V7, 1) + pf(V7, 1, 1), "an event number near 1, got 1"),
        (V7, pf(V7, 5000), "an event number near 0, got 5000"),
        (V12, pf(V12, 0xFFFF_0000), "an event number near 0"),
        (V7, pf(V7, 1, MAX_VCPUS), "a vCPU index below 4096"),
        (V7, changed(pf(V7, 1), 8, b"\x18"), "544 bytes of registers, got 1802"),
        (V12, changed(pf(V12, 1), 16, b"\x18"), "544 bytes of registers, got 1802"),
        (V7, changed(pf(V7, 1), 12, b"\x63"), "an event of kvmi-v7, got event 99"),
        (V7, changed(pf(V7, 1), 12, b"\x0a"), "544 bytes, got event 10 of 568 bytes"),
        (V12, changed(pf(V12, 1), 8, b"\x02"), "an event of kvmi-v12, got event 2"),
        (V12, changed(pf(V12, 1), 0, b"\0"), "576 bytes, got event 17 of 576 bytes with id 0"),
        (V7, changed(pf(V7, 1), 16 + 536 + 16, b"\0"), "a known value at offset 568, got 0"),
        (V7, changed(pf(V7, 1), 16 + 536 + 16, b"\x09"), "a known value at offset 568, got 9"),
        (V7, bytes.fromhex("0100080001000000 0000000000000000"), "544 bytes, got event 0 of 8 bytes"),
        (V7, bytes.fromhex("0100020001000000 0000"), "an event, got 2 bytes with id 1"),
        (V12, bytes.fromhex("0000000001000000"), "an event, got 0 bytes with id 0"),
        (V7, bytes.fromhex("0000080001000000 eaffffff00000000"), "an error in answer to an event reply"),
        (V12, bytes.fromhex("0100080001000000 0000000000000000"), "an error in answer to an event reply"),
    ],
)
def test_an_event_that_is_not_one(dialect: Dialect, data: bytes, complaint: str) -> None:
    tool = opened(dialect)
    tool.receive_data(data)
    with pytest.raises(RemoteProtocolError, match=complaint):
        list(iter(tool.next_event, NEED_DATA))
    assert tool.state is State.ERROR
    assert tool.unanswered == {}


@pytest.mark.parametrize("kind", [EventKind.PAUSE, EventKind.HYPERCALL], ids=lambda kind: kind.value)
def test_a_mode_that_no_processor_has(kind: EventKind) -> None:
    tool = opened(V7)
    tool.receive_data(changed(codec_of(V7).events.encode(kind, 1, 0, COMPUTED_STATE, None), 16, b"\x03"))
    with pytest.raises(RemoteProtocolError, match="a known value at offset 16, got 3"):
        tool.next_event()


@ALL
def test_dirty_padding_in_events_means_nothing(dialect: Dialect) -> None:
    clean = pf(dialect, 1)
    dirty = bytearray(clean)
    for at in padding_offsets(dialect):
        dirty[at] = 0xA5
    (event,) = events_of(opened(dialect), bytes(dirty))
    assert (event.state, event.data, event.vcpu) == (COMPUTED_STATE, WRITE, 0)


def padding_offsets(dialect: Dialect) -> list[int]:
    from tests.support.kvmi_wire import event_padding

    return sorted(event_padding(dialect, EventKind.PF))


@ALL
def test_unhook(dialect: Dialect) -> None:
    pair = Pair(dialect).open()
    pair.kernel.send_vm_event(EventKind.UNHOOK)
    (event,) = pair.kernel_says()
    assert isinstance(event, Event)
    assert (event.kind, event.needs_reply, event.actions, event.data) == (EventKind.UNHOOK, False, (), None)
    for field in ("state", "mode", "view", "rip", "rsp", "regs", "regs_raw", "sregs", "msrs"):
        with pytest.raises(AttributeError, match=r"unhook events of kvmi-v.* carry no registers"):
            getattr(event, field)
    assert pair.tool.state is State.UNHOOKING
    with pytest.raises(LocalProtocolError, match="an event that waits"):
        pair.tool.reply(event, Action.CONTINUE)
    received = pair.ask(GetInfo())
    pair.kernel.answer(received, GetInfoReply(2))
    assert [reply.result for reply in pair.kernel_says() if isinstance(reply, Reply)] == [GetInfoReply(2)]
    pair.tool.close()
    assert pair.tool.state.value == "CLOSED"


def test_an_error_in_answer_to_an_event_reply() -> None:
    for dialect, answer in ((V7, "0000080001000000 eaffffff00000000"), (V12, "0100080001000000 eaffffff00000000")):
        tool = opened(dialect)
        (event,) = events_of(tool, pf(dialect, 1))
        tool.reply(event, Action.CONTINUE)
        tool.receive_data(bytes.fromhex(answer))
        assert tool.next_event() == EventReplyRefused(1, -22, "EINVAL")


# --- replies switched off and on ---


@pytest.mark.parametrize("dialect", [V6, V7], ids=repr)
def test_a_batch_has_one_reply(dialect: Dialect) -> None:
    """The form libkvmi sends: replies off, commands, replies on."""
    pair = Pair(dialect).open()
    for command in (ControlCmdResponse(False, True), set_page(Gpa(0x1000), PageAccess.R), InjectException(0, 3)):
        pair.tool.send(command)
    suffix = ControlCmdResponse(True, True)
    last = pair.tool.send(suffix)
    assert pair.tool.outstanding == 1
    for received in pair.tool_says():
        assert isinstance(received, CommandReceived)
        assert received.silent
        pair.kernel.answer(received)
    assert pair.kernel_says() == [Reply(last, suffix, DONE)]
    seq = pair.tool.send(GetInfo())
    (received,) = pair.tool_says()
    assert isinstance(received, CommandReceived)
    pair.kernel.answer(received, GetInfoReply(1))
    assert pair.kernel_says() == [Reply(seq, GetInfo(), GetInfoReply(1))]
    assert pair.tool._outstanding == {}


@pytest.mark.parametrize(
    ("commands", "answered"),
    [
        ([(False, True), (False, False), (True, False)], [False, False, False]),
        ([(False, False), (True, True)], [True, True]),
        ([(False, False), (True, False), (True, False)], [True, False, True]),
        ([(True, False), (True, True)], [True, True]),
    ],
)
def test_which_switch_is_answered(commands: list[tuple[bool, bool]], answered: list[bool]) -> None:
    pair = Pair(V7).open()
    sent = [ControlCmdResponse(enable, now) for enable, now in commands]
    expected = []
    for command, wanted in zip(sent, answered, strict=True):
        before = pair.tool.outstanding
        seq = pair.tool.send(command)
        assert pair.tool.outstanding - before == wanted
        if wanted:
            expected.append(Reply(seq, command, DONE))
    assert pair.tool_says() == []
    assert pair.kernel_says() == expected


def test_a_refused_switch_leaves_replies_on() -> None:
    """With the command forbidden the prefix is answered after all, and so is what follows."""
    tool = opened(V7)
    prefix = ControlCmdResponse(False, True)
    first, second = tool.send(prefix), tool.send(GetInfo())
    assert tool.outstanding == 0
    tool.receive_data(
        bytes.fromhex(f"1b000800 {first:02x}000000 ffffffff00000000")
        + bytes.fromhex(f"05001800 {second:02x}000000 0000000000000000 02000000000000000000000000000000")
    )
    refused = tool.next_event()
    assert isinstance(refused, Reply)
    assert isinstance(refused.result, Refused)
    assert tool.outstanding == 1
    assert tool.next_event() == Reply(second, GetInfo(), GetInfoReply(2))


@pytest.mark.parametrize("now", [True, False])
def test_a_refused_switch_alone(now: bool) -> None:
    tool = opened(V7)
    seq = tool.send(ControlCmdResponse(False, now))
    tool.receive_data(bytes.fromhex(f"1b000800 {seq:02x}000000 ffffffff00000000"))
    assert isinstance(tool.next_event(), Reply)
    tool.send(GetInfo())
    assert tool.outstanding == 1


def test_failures_while_replies_are_off_can_be_reported() -> None:
    pair = Pair(V7).open()
    pair.tool.send(ControlCmdResponse(False, True, report_errors=True))
    seq = pair.tool.send(set_page(Gpa(0x1000), PageAccess.R))
    (received,) = pair.tool_says()
    assert isinstance(received, CommandReceived)
    pair.kernel.refuse(received, -22)
    (event,) = pair.kernel_says()
    assert isinstance(event, Event)
    assert (event.kind, event.data, event.needs_reply) == (EventKind.CMD_ERROR, CmdErrorData(-22, seq, 21), False)


# --- beginning and end ---


def test_the_hello_comes_first_and_alone() -> None:
    tool = ToolConnection()
    tool.receive_data(encode_hello(HELLO) + b"\1")
    assert tool.next_event() == HELLO
    with pytest.raises(RemoteProtocolError, match="silence until the hello is answered"):
        tool.next_event()


def test_nothing_but_replies_before_the_dialect_is_known() -> None:
    tool = ToolConnection()
    tool.receive_data(encode_hello(HELLO))
    tool.next_event()
    tool.answer_hello()
    tool.receive_data(pf(V7, 1))
    with pytest.raises(RemoteProtocolError, match="the reply to GetVersion"):
        tool.next_event()


@ALL
def test_the_end_between_messages_is_the_end(dialect: Dialect) -> None:
    tool = opened(dialect)
    tool.receive_data(pf(dialect, 1))
    tool.receive_eof()
    assert isinstance(tool.next_event(), Event)
    assert tool.next_event() is CLOSED
    assert tool.next_event() is CLOSED
    assert tool.state is State.CLOSED
    tool.receive_data(b"late")
    assert tool.next_event() is CLOSED


@ALL
@pytest.mark.parametrize("length", [1, 7, 8, 100, 575])
def test_the_end_within_a_message_is_an_error(dialect: Dialect, length: int) -> None:
    tool = opened(dialect)
    tool.receive_data(pf(dialect, 1)[:length])
    tool.receive_eof()
    with pytest.raises(RemoteProtocolError, match=f"the end of the stream after {length}"):
        tool.next_event()
    assert tool.state is State.ERROR


@pytest.mark.parametrize("length", [0, 3, 95])
def test_the_end_during_the_hello(length: int) -> None:
    tool = ToolConnection()
    tool.receive_data(encode_hello(HELLO)[:length])
    tool.receive_eof()
    if length:
        with pytest.raises(RemoteProtocolError):
            tool.next_event()
    else:
        assert tool.next_event() is CLOSED


def test_nothing_can_be_received_after_the_end() -> None:
    tool = opened(V7)
    tool.receive_eof()
    with pytest.raises(LocalProtocolError, match="nothing after the end"):
        tool.receive_data(b"\0")


def test_who_never_takes_events_out_is_stopped() -> None:
    tool = opened(V7)
    tool.receive_data(bytes(MAX_UNREAD - 1))
    tool.receive_data(b"\0")
    with pytest.raises(LocalProtocolError, match="until it needs data"):
        tool.receive_data(b"\0")


def test_after_closing_nothing_is_sent() -> None:
    tool = opened(V7)
    (event,) = events_of(tool, pf(V7, 1))
    tool.close()
    with pytest.raises(LocalProtocolError):
        tool.reply(event, Action.CONTINUE)
    with pytest.raises(LocalProtocolError, match="in CLOSED"):
        tool.send(GetRegisters(0))
    with pytest.raises(LocalProtocolError, match="in CLOSED"):
        tool.send(TranslateGva(0, Gva(0)))
    assert tool.next_event() is CLOSED

"""Messages in pieces: whole, byte by byte, with the next one's beginning, and cut off at every place."""

from __future__ import annotations

import pytest

from policyc.kvmi import (
    CLOSED,
    DIALECTS,
    NEED_DATA,
    CommandReceived,
    CrData,
    Event,
    EventKind,
    KernelConnection,
    RemoteProtocolError,
    State,
    ToolConnection,
    VcpuState,
)
from tests.support.kvmi_items import ITEMS, PF
from tests.support.kvmi_kernel import opened
from tests.support.kvmi_pair import Pair
from tests.support.kvmi_vectors import computed
from tests.support.kvmi_wire import Answer, EventAnswer, Request

CASES = [(v.generation, v.label) for v in computed() if v.label in ITEMS]
EVENT_DATA = {EventKind.PF: PF.data, EventKind.CR: CrData(3, 1, 2)}

every_message = pytest.mark.parametrize(("generation", "label"), CASES, ids=[f"{g}: {label}" for g, label in CASES])


def receiver(generation: str, label: str) -> tuple[ToolConnection | KernelConnection, bytes]:
    """The end that this message is for, ready for it, and the message."""
    dialect = DIALECTS[f"kvmi-{generation}"]
    item = ITEMS[label]
    if isinstance(item, Request):
        return opened(dialect), item.encode(dialect, 7)
    if isinstance(item, EventAnswer):
        kernel = opened(dialect)
        if item.kind is EventKind.BREAKPOINT:
            breakpoint_event = ITEMS["BREAKPOINT event, gpa 0x1000, insn_len 1"]
            kernel.send_event(item.kind, 0, VcpuState(), getattr(breakpoint_event, "data", None))
        else:
            kernel.send_event(item.kind, 0, VcpuState(), EVENT_DATA.get(item.kind))
        kernel.data_to_send()
        return kernel, item.encode(dialect, 1)
    tool = Pair(dialect).open().tool
    seq = tool.send(item.command) if isinstance(item, Answer) else 1
    tool.data_to_send()
    return tool, item.encode(dialect, seq)


def made_of(connection: ToolConnection | KernelConnection) -> list[object]:
    """What comes out of a connection, in a form that can be compared."""
    found: list[object] = []
    for event in iter(connection.next_event, NEED_DATA):
        if isinstance(event, CommandReceived):
            found.append((event.seq, event.vcpu, event.silent, event.command))
        elif isinstance(event, Event):
            found.append((event.seq, event.vcpu, event.kind, event.raw))
        else:
            found.append(event)
    return [*found, *connection.data_to_send()]


@every_message
def test_byte_by_byte_makes_the_same_as_whole(generation: str, label: str) -> None:
    connection, message = receiver(generation, label)
    connection.receive_data(message)
    whole = made_of(connection)
    if not label.startswith("CONTROL_CMD_RESPONSE batch prefix"):
        assert len(whole) == 1
    connection, message = receiver(generation, label)
    for at in range(len(message) - 1):
        connection.receive_data(message[at : at + 1])
        assert made_of(connection) == []
        assert connection.unread == at + 1
    connection.receive_data(message[-1:])
    assert made_of(connection) == whole
    assert connection.unread == 0


@every_message
def test_what_follows_is_left_alone(generation: str, label: str) -> None:
    connection, message = receiver(generation, label)
    connection.receive_data(message)
    alone = made_of(connection)
    connection, message = receiver(generation, label)
    connection.receive_data(message + b"\2\0\0\0\1")
    assert made_of(connection) == alone
    assert connection.unread == 5


@every_message
def test_the_end_at_every_place_within_a_message(generation: str, label: str) -> None:
    length = len(receiver(generation, label)[1])
    places = range(1, length) if length < 64 else [1, 7, 8, 9, 15, 16, length // 2, length - 1]
    for cut in places:
        connection, message = receiver(generation, label)
        connection.receive_data(message[:cut])
        connection.receive_eof()
        with pytest.raises(RemoteProtocolError, match=f"the end of the stream after {cut}$"):
            connection.next_event()
        assert connection.state is State.ERROR
        assert connection.next_event() is CLOSED

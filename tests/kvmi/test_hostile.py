"""A peer that sends anything: each end gives events or `RemoteProtocolError`, and keeps no more than it has to."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.addresses import Gpa
from policyc.kvmi import (
    CLOSED,
    DIALECTS,
    NEED_DATA,
    V7,
    V12,
    CommandReceived,
    Connection,
    Dialect,
    Event,
    EventKind,
    GetInfo,
    GetRegisters,
    KernelConnection,
    ReadPhysical,
    RemoteProtocolError,
    State,
    ToolConnection,
    VcpuState,
)
from policyc.kvmi.framing import HEADER, HEADER_SIZE
from policyc.kvmi.handshake import encode_hello
from tests.support.kvmi_kernel import opened
from tests.support.kvmi_pair import HELLO, Pair
from tests.support.kvmi_vectors import Line, conversations

ALL = pytest.mark.parametrize("name", DIALECTS)
MANY = settings(max_examples=150, deadline=None)
LARGEST = HEADER_SIZE + 8184


def waiting_tool(dialect: Dialect) -> ToolConnection:
    """An open connection with some commands under way."""
    tool = Pair(dialect).open().tool
    for command in (GetInfo(), GetRegisters(0, (1, 2)), ReadPhysical(Gpa(0), 8)):
        tool.send(command)
    return tool


def survive(connection: Connection, take: Callable[[], object], data: bytes, chunks: list[int]) -> None:
    """Deliver `data` in pieces; anything but events, `RemoteProtocolError` and the two statuses fails."""
    start = 0
    for size in [*chunks, len(data)]:
        connection.receive_data(data[start : start + size])
        start += size
        try:
            while (event := take()) is not NEED_DATA:
                if isinstance(event, Event):
                    assert repr(event).isprintable()
                    assert not event.needs_reply or event.state.regs == event.regs
                if event is CLOSED:
                    return
        except RemoteProtocolError:
            assert connection.state is State.ERROR
            assert take() is CLOSED
            return
        assert connection.unread < LARGEST


pieces = st.lists(st.integers(1, 700), max_size=5)


@ALL
@MANY
@given(data=st.binary(max_size=1500), chunks=pieces)
def test_noise_for_the_tool(name: str, data: bytes, chunks: list[int]) -> None:
    dialect = DIALECTS[name]
    tool = waiting_tool(dialect)
    survive(tool, tool.next_event, data, chunks)


@ALL
@MANY
@given(data=st.binary(max_size=1500), chunks=pieces)
def test_noise_for_the_kernel(name: str, data: bytes, chunks: list[int]) -> None:
    dialect = DIALECTS[name]
    kernel = opened(dialect)
    survive(kernel, kernel.next_event, data, chunks)


@MANY
@given(data=st.binary(max_size=400), chunks=pieces, greeted=st.booleans())
def test_noise_before_the_dialect_is_known(data: bytes, chunks: list[int], greeted: bool) -> None:
    tool = ToolConnection()
    if greeted:
        tool.receive_data(encode_hello(HELLO))
        assert tool.next_event() == HELLO
        tool.answer_hello()
    survive(tool, tool.next_event, data, chunks)
    kernel = KernelConnection(V7, 1)
    survive(kernel, kernel.next_event, data, chunks)


@ALL
@MANY
@given(
    message_id=st.integers(0, 70),
    seq=st.integers(0, 6),
    payload=st.binary(max_size=64),
    fill=st.sampled_from([0, 8, 16, 544, 552, 568, 576, 8184]),
)
def test_messages_that_are_nearly_right(name: str, message_id: int, seq: int, payload: bytes, fill: int) -> None:
    dialect = DIALECTS[name]
    body = payload.ljust(fill, b"\0")
    message = HEADER.pack(message_id, len(body), seq) + body
    tool, kernel = waiting_tool(dialect), opened(dialect)
    survive(tool, tool.next_event, message * 2, [])
    survive(kernel, kernel.next_event, message * 2, [])


def recorded(outgoing: bool) -> list[tuple[Dialect, list[Line]]]:
    talks = [(V7, talk) for talk in conversations("v7")] + [(V12, talk) for talk in conversations("v12")]
    found = []
    for dialect, talk in talks:
        lines = [line for line in talk.lines if line.outgoing is outgoing and line.data and line.name != "handshake"]
        found.append((dialect, lines[:60]))
    return found


@pytest.mark.parametrize("outgoing", [False, True], ids=["to the tool", "to the kernel"])
def test_recorded_conversations_with_bytes_changed(outgoing: bool) -> None:
    """Each in ten ways, with a few bytes flipped, cut out or doubled; the seed makes it the same every time."""
    chance = random.Random(1)
    for dialect, lines in recorded(outgoing):
        whole = bytearray(b"".join(line.data or b"" for line in lines))
        for _ in range(10):
            data = bytearray(whole)
            for _ in range(chance.randint(1, 5)):
                at = chance.randrange(len(data) or 1)
                kind = chance.randrange(3)
                if kind == 0 and data:
                    data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
                elif kind == 1:
                    del data[at : at + chance.randrange(20)]
                else:
                    data[at:at] = data[at : at + chance.randrange(20)]
            connection = opened(dialect) if outgoing else waiting_tool(dialect)
            chunks = [chance.randint(1, 3000) for _ in range(4)]
            survive(connection, connection.next_event, bytes(data), chunks)


@ALL
def test_a_tool_that_asks_without_end_is_stopped(name: str) -> None:
    dialect = DIALECTS[name]
    kernel = opened(dialect)
    message = HEADER.pack(dialect.commands[GetInfo].id, 0, 1)
    for _ in range(8):
        kernel.receive_data(message * 8192)
        taken = list(iter(kernel.next_event, NEED_DATA))
        assert [type(event) for event in taken] == [CommandReceived] * 8192
    kernel.receive_data(message)
    with pytest.raises(RemoteProtocolError, match="at most 65536 commands at once"):
        kernel.next_event()


@ALL
def test_every_word_of_an_error_is_short(name: str) -> None:
    """What the peer sent may be quoted, but never as much as it likes, and never as text."""
    dialect = DIALECTS[name]
    escapes = b"\x1b[2J" * 2000
    tool, kernel = waiting_tool(dialect), opened(dialect)
    kernel.send_event(EventKind.PAUSE, 0, VcpuState())
    reply = HEADER.pack(dialect.framing.event_reply, 8000, 1) + bytes(8) + escapes
    for connection, data in ((tool, HEADER.pack(0x1B5B, 8000, 1) + escapes), (kernel, reply)):
        connection.receive_data(data)
        with pytest.raises(RemoteProtocolError) as caught:
            connection.next_event()
        assert len(str(caught.value)) < 250
        assert str(caught.value).isprintable()

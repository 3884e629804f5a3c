"""Which generation the other side speaks, from the shapes of its answers alone."""

from __future__ import annotations

import pytest

from policyc.kvmi import (
    DIALECTS,
    NEED_DATA,
    V6,
    V7,
    V12,
    Dialect,
    Features,
    Hello,
    Negotiated,
    RemoteProtocolError,
    State,
    ToolConnection,
    UnsupportedDialectError,
)
from policyc.kvmi.handshake import encode_hello

V6_ANSWER = bytes.fromhex("0200100001000000 0000000000000000 0100000000000000")
V7_ANSWER = bytes.fromhex("0200180001000000 0000000000000000 0100000000000000 0000000001000000")
V12_ANSWER = bytes.fromhex("0200180001000000 0000000000000000 01000000f81f0000 0100000000000000")


def check_answer(errno: int) -> bytes:
    return bytes.fromhex("0400080002000000") + errno.to_bytes(4, "little", signed=True) + bytes(4)


def greeted(dialect: Dialect | None = None) -> ToolConnection:
    tool = ToolConnection(dialect)
    tool.receive_data(encode_hello(Hello(bytes(16))))
    assert tool.next_event() == Hello(bytes(16))
    tool.answer_hello()
    assert [message.hex() for message in tool.data_to_send()] == ["18" + "00" * 23, "0200000001000000"]
    return tool


def test_v6() -> None:
    tool = greeted()
    tool.receive_data(V6_ANSWER)
    assert tool.next_event() == Negotiated(V6, Features(), 8184)
    assert (tool.state, tool.dialect, tool.data_to_send()) == (State.OPEN, V6, [])


def test_v7() -> None:
    tool = greeted()
    tool.receive_data(V7_ANSWER)
    assert tool.next_event() == Negotiated(V7, Features(singlestep=True), 8184)
    assert (tool.state, tool.dialect, tool.data_to_send()) == (State.OPEN, V7, [])


def test_v12_is_known_by_the_command_that_it_lacks() -> None:
    tool = greeted()
    tool.receive_data(V12_ANSWER)
    assert tool.next_event() is NEED_DATA
    assert [message.hex() for message in tool.data_to_send()] == ["04000800020000001600000000000000"]
    tool.receive_data(check_answer(-2))
    assert tool.next_event() == Negotiated(V12, Features(singlestep=True), 8184)
    assert (tool.state, tool.dialect) == (State.OPEN, V12)


@pytest.mark.parametrize("errno", [0, -1], ids=["allowed", "not allowed"])
def test_v10_and_v11_are_refused_by_name(errno: int) -> None:
    tool = greeted()
    tool.receive_data(V12_ANSWER + check_answer(errno))
    with pytest.raises(UnsupportedDialectError, match="v10 or kvmi-v11"):
        tool.next_event()
    assert tool.state is State.ERROR


@pytest.mark.parametrize("errno", [-22, -1000])
def test_another_answer_to_the_probe_is_no_dialect(errno: int) -> None:
    tool = greeted()
    tool.receive_data(V12_ANSWER + check_answer(errno))
    with pytest.raises(RemoteProtocolError, match="version check"):
        tool.next_event()


@pytest.mark.parametrize(
    "answer",
    [
        "0200000001000000",
        "0200080001000000 0000000000000000",
        "0200080001000000 ffffffff00000000",
        "0200100001000000 0000000000000000 01000000f81f0000",
        "0200140001000000 0000000000000000 0100000000000000 00000000",
        "0200200001000000 0000000000000000 0100000000000000 0000000000000000 0000000000000000",
        "0200100001000000 ffffffff00000000 0100000000000000",
        "0200100002000000 0000000000000000 0100000000000000",
        "0300100001000000 0000000000000000 0100000000000000",
        "0200f91f01000000",
    ],
    ids=[
        "empty",
        "error code only",
        "refused",
        "v6's size with a second word",
        "20 bytes",
        "32 bytes",
        "data beside an error",
        "another seq",
        "another id",
        "longer than a message",
    ],
)
def test_no_known_shape(answer: str) -> None:
    tool = greeted()
    tool.receive_data(bytes.fromhex(answer))
    with pytest.raises(RemoteProtocolError):
        tool.next_event()
    assert tool.state is State.ERROR


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_can_be_insisted_on(name: str) -> None:
    answers = {"kvmi-v6": V6_ANSWER, "kvmi-v7": V7_ANSWER, "kvmi-v12": V12_ANSWER + check_answer(-2)}
    for other, answer in answers.items():
        tool = greeted(DIALECTS[name])
        tool.receive_data(answer)
        if other == name:
            assert isinstance(tool.next_event(), Negotiated)
        else:
            with pytest.raises(UnsupportedDialectError, match=f"expected {name}, got {other}"):
                tool.next_event()

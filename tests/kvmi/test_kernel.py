"""The kernel's end and its caller: answers, events, the handshake and the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from policyc.kvmi import (
    CLOSED,
    DONE,
    V6,
    V7,
    V12,
    CommandReceived,
    Dialect,
    EventKind,
    Features,
    GetCpuidReply,
    GetInfo,
    GetInfoReply,
    GetVersion,
    GetVersionReply,
    HelloAnswer,
    KernelConnection,
    LocalProtocolError,
    RemoteProtocolError,
    SetPageAccess,
    State,
    VcpuState,
    cookie_hash,
)
from tests.support.kvmi_kernel import opened, payload, take
from tests.support.kvmi_pair import HELLO
from tests.support.kvmi_vectors import computed

ALL = pytest.mark.parametrize("dialect", [V6, V7, V12], ids=repr)


@ALL
def test_each_command_is_answered_once(dialect: Dialect) -> None:
    kernel = opened(dialect)
    (received,) = take(kernel, payload(dialect, GetInfo, ""))
    assert isinstance(received, CommandReceived)
    assert (received.command, received.vcpu, received.silent) == (GetInfo(), None, False)
    wrong: list[Callable[[], None]] = [
        lambda: kernel.answer(received, DONE),
        lambda: kernel.answer(received, GetCpuidReply(1, 2, 3, 4)),
        lambda: kernel.refuse(received, 0),
        lambda: kernel.refuse(received, 22),
    ]
    for call in wrong:
        with pytest.raises(LocalProtocolError):
            call()
    kernel.answer(received, GetInfoReply(2))
    with pytest.raises(LocalProtocolError, match="one answer to each command"):
        kernel.answer(received, GetInfoReply(2))
    assert len(kernel.data_to_send()) == 1


@ALL
def test_events_are_numbered_and_one_at_a_time(dialect: Dialect) -> None:
    kernel = opened(dialect)
    assert kernel.send_event(EventKind.PAUSE, 0, VcpuState()) == 1
    assert kernel.send_event(EventKind.HYPERCALL, 1, VcpuState()) == 2
    with pytest.raises(LocalProtocolError, match="vCPU 0 to wait"):
        kernel.send_event(EventKind.PAUSE, 0, VcpuState())
    assert kernel.waiting == {0: EventKind.PAUSE, 1: EventKind.HYPERCALL}
    assert kernel.send_vm_event(EventKind.UNHOOK) == 3
    assert kernel.state is State.UNHOOKING
    assert [message[4:8].hex() for message in kernel.data_to_send()] == ["01000000", "02000000", "03000000"]


def test_the_handshake() -> None:
    kernel = KernelConnection(V7, 1)
    with pytest.raises(LocalProtocolError, match="in HANDSHAKE"):
        kernel.send_vm_event(EventKind.UNHOOK)
    kernel.send_hello(HELLO)
    with pytest.raises(LocalProtocolError, match="one hello"):
        kernel.send_hello(HELLO)
    long_answer = (40).to_bytes(4, "little") + cookie_hash(b"secret") + b"surplus bytes..."
    for byte in long_answer[:-1]:
        assert take(kernel, bytes([byte])) == []
    assert take(kernel, long_answer[-1:]) == [HelloAnswer(cookie_hash(b"secret"))]
    assert kernel.state is State.OPEN


@pytest.mark.parametrize("size", [0, 3])
def test_an_answer_that_never_ends(size: int) -> None:
    """QEMU reads on until its timeout; we do so up to the longest answer that anybody gives."""
    kernel = KernelConnection(V7, 1)
    assert take(kernel, size.to_bytes(4, "little") + bytes(4092)) == []
    kernel.receive_data(b"\0")
    with pytest.raises(RemoteProtocolError, match="a handshake of 24 to 4096 bytes"):
        kernel.next_event()


@pytest.mark.parametrize("size", [4, 23, 4097, 0xFFFF_FFFF])
def test_an_answer_of_no_sensible_size(size: int) -> None:
    kernel = KernelConnection(V7, 1)
    kernel.receive_data(size.to_bytes(4, "little"))
    with pytest.raises(RemoteProtocolError, match="a handshake of 24 to 4096 bytes"):
        kernel.next_event()


@ALL
def test_the_end(dialect: Dialect) -> None:
    kernel = opened(dialect)
    kernel.receive_data(payload(dialect, GetInfo, ""))
    kernel.receive_eof()
    received = kernel.next_event()
    assert isinstance(received, CommandReceived)
    assert kernel.next_event() is CLOSED
    with pytest.raises(LocalProtocolError):
        kernel.answer(received, GetInfoReply(1))
    half = opened(dialect)
    half.receive_data(payload(dialect, GetInfo, "")[:5])
    half.receive_eof()
    with pytest.raises(RemoteProtocolError, match="8 bytes, got the end of the stream after 5"):
        half.next_event()


def test_version_and_features_are_the_callers() -> None:
    kernel = opened(V12)
    (received,) = take(kernel, payload(V12, GetVersion, ""))
    assert isinstance(received, CommandReceived)
    kernel.answer(received, GetVersionReply(max_message_size=8184, features=Features(singlestep=True)))
    (vector,) = [v.data for v in computed() if v.label == "GET_VERSION reply (max_msg_size 8184, singlestep)"]
    assert kernel.data_to_send()[0][8:] == vector[8:]


def test_an_entry_with_unknown_rights_reaches_the_caller_as_it_was() -> None:
    entry = bytes.fromhex("0010000000000000 09 00000000000001")
    (received,) = take(opened(V7), payload(V7, SetPageAccess, "0000010000000000" + entry.hex()))
    assert isinstance(received, CommandReceived)
    assert received.command == SetPageAccess(entry)

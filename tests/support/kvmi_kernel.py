"""A kernel's end of a KVMI connection, taken apart: what it does with one message from the tool."""

from __future__ import annotations

from collections.abc import Iterable

from policyc.kvmi import (
    NEED_DATA,
    BadCommandReceived,
    Command,
    Dialect,
    EventKind,
    HelloAnswer,
    KernelConnection,
    KernelEvent,
    RemoteProtocolError,
    State,
    Status,
    messages,
)
from policyc.kvmi.framing import HEADER_SIZE, REPLY_HEAD, frame
from policyc.kvmi.handshake import encode_answer
from tests.support.kvmi_pair import HELLO

CLOSES = "closes"
SILENT = "says nothing"
RECEIVED = "hands it on"


def opened(
    dialect: Dialect,
    *,
    commands: Iterable[type[Command]] | None = None,
    events: Iterable[EventKind] | None = None,
) -> KernelConnection:
    """A kernel with two vCPUs after the handshake."""
    kernel = KernelConnection(dialect, 2, commands=commands, events=events)
    kernel.send_hello(HELLO)
    kernel.receive_data(encode_answer(None))
    assert kernel.next_event() == HelloAnswer(bytes(20))
    kernel.data_to_send()
    return kernel


def take(kernel: KernelConnection, data: bytes) -> list[KernelEvent | Status]:
    """Everything that the kernel's caller learns from these bytes."""
    kernel.receive_data(data)
    return list(iter(kernel.next_event, NEED_DATA))


def outcome(kernel: KernelConnection, data: bytes) -> int | str:
    """What happens on a message: an error number at once or in the vCPU's turn, or one of the words above."""
    kernel.receive_data(data)
    try:
        event = kernel.next_event()
    except RemoteProtocolError:
        assert kernel.state is State.ERROR
        return CLOSES
    if isinstance(event, BadCommandReceived):
        kernel.refuse(event, event.errno)
    elif event is not NEED_DATA:
        return RECEIVED
    said = kernel.data_to_send()
    if not said:
        return SILENT
    (message,) = said
    assert len(message) == HEADER_SIZE + REPLY_HEAD.size
    assert (message[:2], message[4:8]) == (data[:2], data[4:8]), "id and seq are repeated"
    return int(REPLY_HEAD.unpack_from(message, HEADER_SIZE)[0])


def payload(dialect: Dialect, cls: type[Command], hexed: str) -> bytes:
    """The whole message of a command with just this payload."""
    return frame(dialect.commands[cls].id, 0x55, bytes.fromhex(hexed))


def by_name(name: str) -> type[Command]:
    """The command of that name."""

    cls: type[Command] = getattr(messages, name)
    return cls

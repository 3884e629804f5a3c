"""Plays a recorded conversation against our own kernel's end, which must say what the real kernel said."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from policyc.kvmi import (
    NEED_DATA,
    BadCommandReceived,
    CmdErrorData,
    CommandReceived,
    Dialect,
    EventKind,
    EventReplyReceived,
    GetInfoReply,
    Hello,
    HelloAnswer,
    KernelConnection,
    Refused,
    RemoteProtocolError,
)
from policyc.kvmi.codec import codec_of
from policyc.kvmi.framing import HEADER, HEADER_SIZE
from policyc.kvmi.handshake import decode_hello
from tests.support.kvmi_vectors import Conversation, Line
from tests.support.kvmi_wire import event_padding, padding_of, without

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyc.kvmi import Command


class Replay:
    """Feeds what the tool sent to a `KernelConnection` and checks each message that the kernel sent.

    What depends on the guest (data, refusals of commands that are sound) is taken from the recording; what the
    connection decides by itself has to come out of it.
    """

    def __init__(
        self,
        dialect: Dialect,
        vcpu_count: int,
        *,
        stopped: Iterable[int] = (),
        commands: Iterable[type[Command]] | None = None,
        events: Iterable[EventKind] | None = None,
    ) -> None:
        self.dialect = dialect
        self.kernel = KernelConnection(dialect, vcpu_count, commands=commands, events=events)
        self.kernel.stopped = set(stopped)
        self.pending: deque[CommandReceived | BadCommandReceived] = deque()
        self.said: deque[bytes] = deque()
        self.closed = False
        self.checked = 0

    def run(self, conversation: Conversation) -> None:
        """Play all of it."""
        lines = list(conversation.lines)
        if lines[0].name == "handshake":
            hello, answer = lines[:2]
            assert hello.data is not None
            assert answer.data is not None
            self._shake(decode_hello(hello.data), answer.data)
            lines = lines[2:]
        else:
            self._shake(Hello(bytes(16)), bytes([24]) + bytes(23))
        for number, line in enumerate(lines, 3):
            try:
                if line.outgoing and line.data is not None:
                    self._tool_sends(line.data)
                elif line.data is not None:
                    self._kernel_said(line.data)
                elif line.outgoing:
                    return
                else:
                    assert self._ends(lines[-2]), "the kernel closed the connection"
            except AssertionError as error:
                raise AssertionError(f"{conversation.name}, line {number}, {line.name}: {error}") from error

        if not lines[-1].outgoing:
            assert not self.said, f"{conversation.name}: more was said than recorded: {list(self.said)}"

    def _shake(self, hello: Hello, answer: bytes) -> None:
        self.kernel.send_hello(hello)
        self.kernel.data_to_send()
        self.kernel.receive_data(answer)
        assert isinstance(self.kernel.next_event(), HelloAnswer)

    def _tool_sends(self, data: bytes) -> None:
        assert not self.closed, "the kernel went on"
        self.kernel.receive_data(data)
        try:
            while (event := self.kernel.next_event()) is not NEED_DATA:
                if isinstance(event, CommandReceived | BadCommandReceived):
                    self.pending.append(event)
                else:
                    assert isinstance(event, EventReplyReceived)
        except RemoteProtocolError:
            self.closed = True
        self.said.extend(self.kernel.data_to_send())

    def _ends(self, last: Line) -> bool:
        """Whether the connection is closed, or closes once the command at hand is answered, or by the tool."""
        if not last.outgoing:
            return True
        if not self.closed and self.pending and self.pending[-1].silent:
            received = self.pending.pop()
            codec = received._codec
            try:
                if codec.reply.layout is None:
                    self.kernel.answer(received)
                elif codec.row.message in self.kernel._rules.data_on_error:
                    self.kernel.refuse(received, -2)
                else:
                    return True
            except RemoteProtocolError:
                self.closed = True
        return self.closed

    def _kernel_said(self, data: bytes) -> None:
        message_id, _, seq = HEADER.unpack_from(data)
        framing = self.dialect.framing
        if data in self.said:
            self.said.remove(data)
        elif message_id in (framing.vm_event, framing.vcpu_event) and len(data) > 24:
            self._event(data)
        elif message_id == framing.vm_event != framing.vcpu_event:
            self.kernel.send_vm_event(EventKind.UNHOOK)
            self._same(self.kernel.data_to_send(), data, set())
        else:
            self._answer(message_id, seq, data)
        self.checked += 1

    def _event(self, data: bytes) -> None:
        event = codec_of(self.dialect).events.decode(data)
        if event.needs_reply:
            self.kernel.stopped.discard(event.vcpu)
            self.kernel.send_event(event.kind, event.vcpu, event.state, event.data)
        elif isinstance(event.data, CmdErrorData):
            wanted = event.data.msg_seq
            failed = next(received for received in self.pending if received.seq == wanted)
            self.pending.remove(failed)
            self.kernel.refuse(failed, event.data.err)
        else:
            self.kernel.send_vm_event(event.kind, event.data)
        self._same(self.kernel.data_to_send(), data, event_padding(self.dialect, event.kind))

    def _answer(self, message_id: int, seq: int, data: bytes) -> None:
        matching = [p for p in self.pending if (p._codec.id, p.seq) == (message_id, seq)]
        assert matching, f"one of {list(self.said)} and not {data.hex()}"
        received = matching[0]
        self.pending.remove(received)
        codec = received._codec
        padding = padding_of(codec.reply.layout, self.dialect, 16) if codec.reply.layout else set()
        if isinstance(received, BadCommandReceived):
            self.kernel.refuse(received, received.errno)
        else:
            result = codec.decode_reply(data[HEADER_SIZE:], received.command)
            if isinstance(result, Refused):
                self.kernel.refuse(received, result.errno)
            else:
                if isinstance(result, GetInfoReply):
                    self.kernel.vcpu_count = result.vcpu_count
                self.kernel.answer(received, result)
        self._same(self.kernel.data_to_send(), data, padding)

    def _same(self, ours: list[bytes], theirs: bytes, padding: set[int]) -> None:
        assert [message.hex() for message in ours] == [without(theirs, padding).hex()]

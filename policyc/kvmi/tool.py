"""The tool's end of a connection: answers the hello, finds out the dialect, sends commands, answers events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from policyc.kvmi.codec import CommandCodec, codec_of
from policyc.kvmi.connection import CLOSED, Connection, Status
from policyc.kvmi.dialects import V12, Dialect, RunsOn
from policyc.kvmi.errors import LocalProtocolError, RemoteProtocolError
from policyc.kvmi.event_data import EventReplyData
from policyc.kvmi.events import Event
from policyc.kvmi.framing import HEADER_SIZE, REPLY_HEAD
from policyc.kvmi.handshake import LENGTH_SIZE, MAX_HELLO, Hello, decode_hello, encode_answer, length_of
from policyc.kvmi.messages import (
    Command,
    ControlCmdResponse,
    InjectException,
    Refused,
    ReplyData,
    SetPageAccess,
)
from policyc.kvmi.negotiation import Negotiation
from policyc.kvmi.pages import check_rights
from policyc.kvmi.received import EventReplyRefused, Negotiated, Reply
from policyc.kvmi.refusals import error_name
from policyc.kvmi.state import Side, State, Trigger
from policyc.kvmi.vocabulary import Action, EventKind

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_OUTSTANDING", "MAX_VCPUS", "ToolConnection", "ToolEvent"]

MAX_OUTSTANDING = 8192
"""Commands that may wait for their replies at once."""

MAX_VCPUS = 4096
"""vCPUs of one VM: how many events may wait for our replies, and how far events may overtake each other."""

_SEQ_MASK = 0xFFFF_FFFF
_HIGHEST_VECTOR = 31

ToolEvent: TypeAlias = Hello | Negotiated | Reply | Event | EventReplyRefused


@dataclass(slots=True)
class _Outstanding:
    """A command that the peer will answer, or, with replies switched off, might."""

    command: Command
    codec: CommandCodec
    silent: bool


class ToolConnection(Connection):
    """A connection as the introspection tool has it.

    Args:
        dialect: insist on this one; anything else at the other end is a `RemoteProtocolError`.
        execute_only: whether the guest's CPU can hold pages that may be executed and not read. May be set later.
    """

    side: ClassVar[Side] = Side.TOOL

    def __init__(self, dialect: Dialect | None = None, *, execute_only: bool = False) -> None:
        super().__init__(dialect)
        self.execute_only = execute_only
        self._wanted = dialect
        self._hello_given = False
        self._negotiation: Negotiation | None = None
        self._next_seq = 1
        self._outstanding: dict[int, _Outstanding] = {}
        self._replies_on = True
        self._silent = 0
        self._waiting: dict[int, int] = {}
        self._last_event = 0
        self._reader: Callable[[], ToolEvent | Status] = self._read_hello
        if dialect:
            self._speak(dialect)

    @property
    def outstanding(self) -> int:
        """How many commands wait for their replies."""
        return len(self._outstanding) - self._silent

    @property
    def unanswered(self) -> dict[int, int]:
        """The vCPUs that wait for us: seq of the event by vCPU index."""
        return dict(self._waiting)

    def next_event(self) -> ToolEvent | Status:
        """The next thing that the peer has to say, or `NEED_DATA`, or `CLOSED`.

        Raises:
            RemoteProtocolError: the peer broke the protocol; nothing more will come.
        """
        try:
            return self._reader()
        except RemoteProtocolError as error:
            raise self._fault(error) from None

    def answer_hello(self, cookie: bytes | None = None) -> None:
        """Answer the hello, with the secret that QEMU was given if there is one, and ask for the version."""
        if self.state is not State.HANDSHAKE or not self._hello_given:
            raise LocalProtocolError("one answer, after the hello", f"answer_hello() in {self.state.value}")
        self._move(Trigger.HELLO_ANSWERED)
        self._out.append(encode_answer(cookie))
        self._negotiation = Negotiation(self._wanted, self._take_seq())
        self._out.append(self._negotiation.question.message)
        self._reader = self._read_negotiation

    def send(self, command: Command) -> int:
        """Queue a command; the number returned will be that of its `Reply`.

        Raises:
            LocalProtocolError: not the time for it, the dialect can't express it, or it would do harm: rights that
                no hardware holds, an exception above 31 (which stops the vCPU's thread in v12).
        """
        if self.state is not State.OPEN and self.state is not State.UNHOOKING:
            raise LocalProtocolError("a command while the connection is open", f"one in {self.state.value}")
        if len(self._outstanding) >= MAX_OUTSTANDING:
            raise LocalProtocolError(f"at most {MAX_OUTSTANDING} commands without reply", "one more")
        if isinstance(command, SetPageAccess):
            check_rights(command, execute_only=self.execute_only)
        if isinstance(command, InjectException) and not 0 <= command.vector <= _HIGHEST_VECTOR:
            raise LocalProtocolError(f"an exception vector up to {_HIGHEST_VECTOR}", str(command.vector))
        codec = self._codec.command(command)
        seq = self._take_seq()
        self._out.append(codec.encode(command, seq))
        silent = not self._answered(command)
        self._outstanding[seq] = _Outstanding(command, codec, silent)
        self._silent += silent
        return seq

    def reply(self, event: Event, action: Action, data: EventReplyData | None = None) -> None:
        """Answer an event; its vCPU goes on when the reply has been sent.

        Args:
            event: one that `next_event` gave and that wasn't answered yet.
            action: one of `event.actions`.
            data: `NewValue` for CR and MSR, always; `PfReply` for page faults in v6 and v7, or nothing.

        Raises:
            LocalProtocolError: the event doesn't wait, or the kernel wouldn't take that answer.
        """
        if self._waiting.get(event.vcpu) != event.seq or not event.needs_reply:
            raise LocalProtocolError("a reply to an event that waits for one", f"{event.kind.value} {event.seq}")
        self._out.append(event.shape.reply(event.seq, event.vcpu, action, data))
        del self._waiting[event.vcpu]

    # --- reading, by state ---

    def _read_hello(self) -> Hello | Status:
        if self._hello_given:
            return self._wait(1) or self._too_early()
        if status := self._wait(LENGTH_SIZE):
            return status
        size = length_of(self._buffer, self._offset, MAX_HELLO)
        if status := self._wait(size):
            return status
        hello = decode_hello(self._take(size))
        self._hello_given = True
        return hello

    def _too_early(self) -> Status:
        raise RemoteProtocolError("silence until the hello is answered", f"{len(self._buffer) - self._offset} bytes")

    def _read_negotiation(self) -> ToolEvent | Status:
        negotiation = self._negotiation
        assert negotiation is not None
        head = self._header(V12.max_message_size)
        if isinstance(head, Status):
            return head
        message_id, size, seq = head
        question = negotiation.question
        if (message_id, seq) != (question.reply_id, question.seq):
            raise RemoteProtocolError(f"the reply to {question.command}", f"id {message_id} with seq {seq}")
        found = negotiation.answer(self._take(HEADER_SIZE + size)[HEADER_SIZE:])
        if found is None:
            self._take_seq()
            self._out.append(negotiation.question.message)
            return self._read_negotiation()
        dialect, version = found
        self._move(Trigger.DIALECT_KNOWN)
        self._negotiation = None
        self._speak(dialect)
        self._reader = self._read_open
        return Negotiated(dialect, version.features, version.max_message_size or dialect.max_message_size)

    def _speak(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._codec = codec_of(dialect)
        head = self._codec.events.head
        self._unpack_head = head.read.unpack_from
        self._i_event, self._i_vcpu, self._least = head.event, head.vcpu, head.least
        self._shapes = self._codec.events.shapes

    def _read_open(self) -> ToolEvent | Status:
        """The hot path: one unpack recognises the next vCPU event in order; all else goes the long way."""
        buffer = self._buffer
        start = self._offset
        if len(buffer) - start >= self._least:
            values = self._unpack_head(buffer, start)
            shape = self._shapes.get(values[self._i_event])
            if shape is not None and values[:2] == shape.head and values[2] == self._last_event + 1:
                vcpu = values[self._i_vcpu]
                raw = buffer[start : start + shape.size]
                waiting = self._waiting
                if (
                    vcpu not in waiting
                    and vcpu < MAX_VCPUS
                    and len(raw) == shape.size
                    and raw[shape.check_at] in shape.check_values
                    and raw[shape.common_at : shape.common_at + 2] == shape.common
                ):
                    self._offset = start + shape.size
                    self._last_event = waiting[vcpu] = values[2]
                    return Event(values[2], vcpu, shape, raw)
        return self._read_message()

    def _read_message(self) -> ToolEvent | Status:
        head = self._header(self._codec.dialect.max_message_size)
        if isinstance(head, Status):
            return head
        message_id, size, seq = head
        framing = self._codec.dialect.framing
        if message_id == framing.event_reply and size == REPLY_HEAD.size:
            return self._event_reply_refused(seq, self._take(HEADER_SIZE + size))
        if message_id in (framing.vm_event, framing.vcpu_event):
            return self._event(seq, self._take(HEADER_SIZE + size))
        return self._reply(message_id, seq, self._take(HEADER_SIZE + size)[HEADER_SIZE:])

    def _event(self, seq: int, message: bytes) -> Event:
        event = self._codec.events.decode(message)
        self._check_event_seq(seq)
        if event.needs_reply:
            if event.vcpu >= MAX_VCPUS:
                raise RemoteProtocolError(f"a vCPU index below {MAX_VCPUS}", str(event.vcpu))
            if event.vcpu in self._waiting:
                raise RemoteProtocolError(f"vCPU {event.vcpu} to wait for its reply", f"{event.kind.value} event {seq}")
            self._waiting[event.vcpu] = seq
        if event.kind is EventKind.UNHOOK:
            self._move(Trigger.UNHOOK)
        return event

    def _check_event_seq(self, seq: int) -> None:
        """Numbers are given out by one counter, but vCPU threads may overtake each other before they write."""
        ahead = (seq - self._last_event) & _SEQ_MASK
        if ahead <= MAX_VCPUS and ahead:
            self._last_event = seq
        elif ahead <= _SEQ_MASK - MAX_VCPUS or seq in self._waiting.values():
            raise RemoteProtocolError(f"an event number near {self._last_event}", str(seq))

    def _event_reply_refused(self, seq: int, message: bytes) -> EventReplyRefused:
        errno = REPLY_HEAD.unpack_from(message, HEADER_SIZE)[0]
        behind = (self._last_event - seq) & _SEQ_MASK
        if errno >= 0 or behind > _SEQ_MASK >> 1 or seq in self._waiting.values():
            raise RemoteProtocolError("an error in answer to an event reply", f"{errno} for event {seq}")
        return EventReplyRefused(seq, errno, error_name(errno))

    def _reply(self, message_id: int, seq: int, payload: bytes) -> Reply:
        entry = self._outstanding.get(seq)
        if entry is None or entry.codec.id != message_id:
            raise RemoteProtocolError("a reply to a command that was sent", f"id {message_id} with seq {seq}")
        result = entry.codec.decode_reply(payload, entry.command)
        del self._outstanding[seq]
        self._silent -= entry.silent
        if self._silent or not self._replies_on:
            self._note_reply(entry, seq, result)
        return Reply(seq, entry.command, result)

    # --- replies switched off and on ---

    def _answered(self, command: Command) -> bool:
        """Whether the kernel will answer a command sent now; follows CONTROL_CMD_RESPONSE as the kernel does."""
        if not isinstance(command, ControlCmdResponse):
            return self._replies_on
        before = self._replies_on
        self._replies_on = command.enable
        return command.enable if command.now else before

    def _note_reply(self, entry: _Outstanding, seq: int, result: ReplyData | Refused) -> None:
        """Draw what follows from a reply for the commands that might have stayed without one."""
        if isinstance(entry.command, ControlCmdResponse) and isinstance(result, Refused):
            # The switch was refused, so replies are as before it: on, or this one would not have come.
            self._replies_on = True
            for other in self._outstanding.values():
                other.silent = False
            self._silent = 0
        elif entry.codec.row.runs_on is RunsOn.RECEIVER and not entry.silent:
            # The receiver works in order: what is older and silent has been done and will stay silent.
            older = [number for number, other in self._outstanding.items() if other.silent and number < seq]
            for number in older:
                del self._outstanding[number]
            self._silent -= len(older)

    def _take_seq(self) -> int:
        seq = self._next_seq
        self._next_seq = seq + 1 & _SEQ_MASK
        return seq

    def _shut(self) -> None:
        self._waiting.clear()
        self._outstanding.clear()
        self._silent = 0
        self._reader = self._read_nothing

    def _read_nothing(self) -> Literal[Status.CLOSED]:
        return CLOSED
